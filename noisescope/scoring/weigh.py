"""Compute W and Gamma of each pair from an audit's scores and people's decisions.

    weight, gamma = weigh(read_run_scores(run), "p_wrong")     # [N] each

    scheme   W                        Gamma
    p_wrong  max(0, 1 - 2 p_wrong)    0: the default of exports
    p_flip   max(0, 1 - 2 p_flip)     0
    u        of Adaptive-DPO (2503.16921, Eq. 14-15), as scored
    reviews  1                        0: people's decisions alone
    prior    1                        log((1 - p_prior)/p_prior): for forward-dpo only
    soft     1                        log((1 - p_wrong)/p_wrong): for soft-dpo only
    margin   1                        the calibrated held-out margin: for distilled-dpo only

For a label that is wrong with probability p, the expected DPO gradient at l = 0 is 1 - 2p times
that of a label known to be right. What people decided comes first in every scheme: p is theirs,
Gamma of the last three is log((1 - p)/p), and W is max(0, 1 - 2p) in the others, 0 for a pair to
drop in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import UsageError
from noisescope.scoring.run_scores import REVIEWED, RunScores
from noisescope.scoring.score import ScoreConfig
from noisescope.scoring.weights import adaptive_weights, belief, believed_margin

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

SCHEMES = ("p_wrong", "p_flip", "u", "reviews", "prior", "soft", "margin")
#: Those whose Gamma is a belief about the label, in log odds, and not a shift of the margin.
BELIEVED = ("prior", "soft", "margin")
#: Columns of a weights file that name its scheme, and the label that each row is about.
SCHEME, LABEL = "scheme", "label"


@final
@dataclass(frozen=True)
class Adaptive:
    """u [N] and the constants that W and Gamma of the scheme "u" are made with."""

    u: Float
    config: ScoreConfig


def weigh(
    scores: RunScores, scheme: str, flipped: Bool | None = None, adaptive: Adaptive | None = None
) -> tuple[Float, Float]:
    """Compute W [N] and Gamma [N] by a scheme; of the opposite labels where `flipped` [N].

    `adaptive` None: W and Gamma of "u" as scored. A pair without a score has W = 1, or 0 where
    Gamma is what the policy learns. Raises UsageError for an unknown scheme.
    """
    if scheme not in SCHEMES:
        raise UsageError(f"--weight {scheme}: one of {', '.join(SCHEMES)}")
    turned = np.zeros(len(scores), bool) if flipped is None else flipped
    theirs = scores.columns[REVIEWED]
    if scheme in BELIEVED:
        gamma = _belief(scores, scheme, turned)
        weight = np.where(np.isnan(gamma) | (theirs == 0.5), 0.0, 1.0)
        return weight, np.nan_to_num(np.where(turned, -gamma, gamma))
    chance = {"u": theirs, "reviews": (np.sign(theirs - 0.5) + 1) / 2}.get(scheme)
    weight = _weight(scores.columns[scheme] if chance is None else chance, turned)
    gamma = np.zeros(len(scores))
    if scheme == "u":
        decided, trusted = np.isfinite(theirs), gamma + _constants(scores, adaptive).c2
        scored = _adaptive(scores, turned & ~decided, adaptive)
        weight, gamma = _chosen(decided, (weight, trusted), scored)
    return np.nan_to_num(weight, nan=1.0), np.nan_to_num(gamma)


def _weight(p: Float, turned: Bool) -> Float:
    """max(0, 1 - 2 p) of labels that are wrong with probability p [N], `turned` or not."""
    return np.maximum(0.0, 1.0 - 2.0 * np.where(turned, 1.0 - p, p))


def _belief(scores: RunScores, scheme: str, turned: Bool) -> Float:
    """The log odds that labels as stated are right, [N].

    Of a `turned` label "prior" takes the greater of p_prior and p_wrong: p_prior contains nothing
    of the responses, for which the audit flips a label, and would undo the flip.
    """
    columns = scores.columns
    if scheme == "margin":
        theirs = columns[REVIEWED]
        return np.where(np.isfinite(theirs), belief(theirs), believed_margin(columns["margin"]))
    if scheme == "soft":
        return belief(columns["p_wrong"])
    prior = columns["p_prior"]
    return belief(np.where(turned, np.fmax(prior, columns["p_wrong"]), prior))


def _adaptive(scores: RunScores, opposite: Bool, given: Adaptive | None) -> tuple[Float, Float]:
    """W [N] and Gamma [N] of u; `opposite` labels have the instability s and 1 - c: u' = s - u.

    Raises UsageError for opposite labels under u_released, of which only the product is stored.
    """
    columns, config = scores.columns, _constants(scores, given)
    weights = columns["W"], columns["gamma"]
    if given is not None:
        weights = adaptive_weights(given.u, config.weights)
    if not opposite.any():
        return weights
    if config.metric(scores.modality) != "u":
        raise UsageError(
            "--weight u does not work with flipped labels where W is made of u_released",
            hint="Use --weight p_wrong, or drop pairs instead of flipping them.",
        )
    u = np.maximum(0.0, columns["stability"] - (columns["u"] if given is None else given.u))
    return _chosen(opposite, adaptive_weights(u, config.weights), weights)


def _constants(scores: RunScores, given: Adaptive | None) -> ScoreConfig:
    """The constants of W and Gamma: the given ones, else those that the run was scored with."""
    return given.config if given else ScoreConfig.of(scores.manifest.get("constants", {}))


def _chosen(
    where: Bool, one: tuple[Float, Float], other: tuple[Float, Float]
) -> tuple[Float, Float]:
    """W and Gamma of `one` `where` [N] holds, of `other` elsewhere."""
    return np.where(where, one[0], other[0]), np.where(where, one[1], other[1])
