"""Weigh a judge that was asked about pairs because their label is doubted.

    moved, shift, weights = with_answers(fit.margins, facts, {"judge:...": (log_odds, drawn)})

Such pairs are no sample of the labels: a judge that is right contradicts most of them, and a fit
to them would read it in reverse. So the judge has no part in the fit of the replicas. With p the
p_wrong of the audit without it, an answer x sides with the label with probability

    P(x | label, margin) = (1 - p) sigma(w x) + p sigma(-w x),

and w, 1 for a judge whose log odds are right, has a prior N(0, 1) and is found by likelihood over
pairs drawn at random. By Bayes' rule the log odds of a wrong label then change by -w x.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from noisescope.scoring.noise_models import Noise, fit_noise
from noisescope.scoring.pair_facts import PairFacts

Float = NDArray[np.float64]

#: Largest weight: log odds that understate what the judge knows fivefold.
LARGEST = 5.0
#: Range of a margin's shift, halvings to find it, and the nearest p_wrong comes to 0 or 1.
FAR, HALVINGS, LEAST = 60.0, 45, 1e-9


def judge_weight(p_wrong: Float, log_odds: Float, drawn: NDArray[np.bool_]) -> float:
    """The weight w of log odds [N] of the labelled side, from the `drawn` pairs with an answer."""
    use = drawn & np.isfinite(log_odds) & (log_odds != 0)
    p, x = p_wrong[use], log_odds[use]

    def loss(w: float) -> float:
        sides = (1 - p) * expit(w * x) + p * expit(-w * x)
        return w * w / 2 - float(np.log(np.maximum(sides, 1e-300)).sum())

    if not use.any():
        return 0.0
    found: Any = minimize_scalar(loss, bounds=(-LARGEST, LARGEST), method="bounded")
    return float(found.x)


def margin_shift(noise: Noise, margins: Float, evidence: Float) -> Float:
    """What to add to margins [N] so that the log odds of a wrong label fall by `evidence` [N].

    `evidence` is 0 or NaN for a pair without an answer; p_wrong falls as the margin grows.
    """
    evidence = np.nan_to_num(evidence, nan=0.0)
    p = np.clip(noise.p_wrong(margins), LEAST, 1 - LEAST)
    goal = expit(logit(p) - evidence)
    low, high = np.full(len(margins), -FAR), np.full(len(margins), FAR)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = noise.p_wrong(margins + middle) > goal
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(evidence == 0, 0.0, (low + high) / 2)


def with_answers(
    margins: NDArray[np.float32],
    facts: PairFacts,
    selected: Mapping[str, tuple[Float, NDArray[np.bool_]]],
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, dict[str, float]]:
    """Margins [M, N] moved by judges, the shift [N] (None without any), and the judges' weights.

    `selected`: judge -> its log odds [N] and the pairs drawn at random [N].
    """
    if not selected:
        return margins, None, {}
    base = margins.mean(axis=0, dtype=np.float64)
    noise = fit_noise(base, facts)
    p_wrong = noise.p_wrong(base)
    weights = {name: judge_weight(p_wrong, *given) for name, given in selected.items()}
    evidence = np.zeros(len(base))
    for name, (log_odds, _) in selected.items():
        evidence += weights[name] * np.nan_to_num(log_odds, nan=0.0)
    shift = margin_shift(noise, base, evidence).astype(np.float32)
    return margins + shift, shift, weights
