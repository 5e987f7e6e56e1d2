"""Log-linear replicas on frozen features: a held-out margin per pair and replica, in seconds.

A head is DPO for the policy class pi(y|c) ~ exp(theta . phi(c, y)): its margin
beta * l = theta . (phi_chosen - phi_rejected) is antisymmetric in the sides. Groups of features
are scaled separately, theta_g ~ N(0, v_g). A response that recurs in several pairs also has a free
ability a ~ N(0, v_identity), margin += a_chosen - a_rejected ("pooling by identity"): legitimate
evidence about this dataset, and useless for another. Sources of the pairs that want other things
have heads of their own (`source_heads`). Nothing here knows text from images. Usage:

    fit = fit_heads({"middle": phi}, chosen, rejected, fold_key, HeadConfig(replicas=8))
    fit.margins  # [M, N], held out; positive agrees with the label
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit

from noisescope.errors import NoisescopeError
from noisescope.pairs import hashed
from noisescope.replicas.chance import FOLDS, sign_flip_test
from noisescope.replicas.cross_fit import Folds, assign
from noisescope.replicas.prior import (
    Candidate,
    Int,
    Problem,
    pose,
    unit_pair_scale,
    unit_scale,
)
from noisescope.replicas.solver import Float, solve
from noisescope.replicas.source_heads import BySource, eligible, search_heads
from noisescope.training.batch_order import bootstrap_weight

Progress = Callable[[str], None]
CELLS = 30_000_000  # pairs x problems solved together; bounds memory at about a gigabyte
SEARCH_SALT = 2  # folds use 0 and 1


@dataclass(frozen=True)
class HeadConfig:
    """How many heads, how they differ, and how long to search for the regularisation."""

    replicas: int = 8
    folds: int = 10
    seed: int = 0
    identity: bool = True  # a free ability per recurring response, beside the features
    bootstrap: float = 0.5  # standard deviation of the replicas' pair weights; 1 is Bayesian
    search_pairs: int = 20_000  # regularisation is searched on at most about this many pairs
    search_steps: int = 25  # gradient evaluations after the coarse levels
    test_chance: bool = False  # whether to run the sign-flip test (`chance`)

    def __post_init__(self) -> None:
        problems = [
            message
            for wrong, message in (
                (self.replicas < 1, f"replicas must be at least 1, got {self.replicas}"),
                (self.folds < 2, f"folds must be at least 2, got {self.folds}"),
                (not 0 <= self.bootstrap <= 1, f"bootstrap must be in 0..1, got {self.bootstrap}"),
            )
            if wrong
        ]
        if problems:
            raise NoisescopeError("; ".join(problems))


@dataclass(frozen=True)
class HeadFit:
    """Held-out margins of all replicas and how they came about."""

    margins: Float  # [M, N], each from a fit that did not see the pair (nor its fold_key)
    theta: Mapping[str, Float]  # group -> [M, D_g], fitted on all pairs, in the features' units
    variance: Mapping[str, float]  # group (and "identity") -> chosen prior variance of its margin
    candidates: Sequence[Candidate]  # the search, best first
    accuracy: NDArray[np.float64]  # [M], share of held-out margins above 0 (ties count half)
    log_likelihood: float  # of the replicas' mean margin, nats per pair; log .5 = -.693 is chance
    pooled: int  # responses with a free ability
    chance: float | None  # p value of "no better than a coin" (`chance.sign_flip_test`)
    by_source: BySource | None = None  # heads by source against one; None if alike

    def rewards(self, features: Mapping[str, Float]) -> Float:
        """theta . phi of new responses: group -> [R', D_g] in, [M, R'] out; no abilities.

        A new pair's margin is the difference of its sides' rewards; the level means nothing.
        """
        parts = [theta @ np.asarray(features[name]).T for name, theta in self.theta.items()]
        out: Float = np.sum(parts, axis=0, dtype=np.float32)
        return out


def fit_heads(
    features: Mapping[str, Float],
    chosen: Int,
    rejected: Int,
    fold_key: NDArray[np.uint64],
    config: HeadConfig,
    *,
    numbers: Mapping[str, Float] | None = None,
    held_out: NDArray[np.uint64] | None = None,
    sources: Int | None = None,
    start: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> HeadFit:
    """Fit M replicas with cross-fitting and return their held-out margins.

    `features`: group -> [R, D_g], one row per distinct (prompt, response); empty for the identity
    control. `chosen`, `rejected` [N]: rows of the sides. `fold_key` [N] uint64: content hash
    of the pair, symmetric in the sides; equal keys share their bootstrap weight. `numbers`:
    group -> [N, E_g] of the pairs, antisymmetric in the sides, 0 if unknown. `held_out`:
    keys that are held out whole, [N] of pairs or [N, 2] of their sides (see `cross_fit.assign`);
    `fold_key` if None. Abilities count only across these keys. Deterministic, independent of
    row order to float32 rounding; swapping the sides negates a pair's margins. `sources` [N]
    numbers where pairs are from (-1 if unknown): heads may differ between them. `start`: the
    `variance` of a fit to almost the same labels, where the search for it begins; it also decides
    about heads by source.
    Raises NoisescopeError on shapes, row numbers or values that cannot be fitted.
    """
    chosen, rejected = np.asarray(chosen, np.int64), np.asarray(rejected, np.int64)
    numbers = numbers or {}
    responses = checked(features, chosen, rejected, fold_key, numbers)
    scales = {name: unit_scale(x, chosen, rejected) for name, x in features.items()}
    rows = {name: np.asarray(x, np.float32) * scales[name] for name, x in features.items()}
    pairs = {name: np.asarray(x, np.float32) * unit_pair_scale(x) for name, x in numbers.items()}
    keys = fold_key if held_out is None else held_out
    recurring = np.zeros(responses, np.bool_)
    if config.identity and keys.ndim == 1:
        recurring = recurring_responses(chosen, rejected, keys, responses)
    if not rows and not pairs and not recurring.any():
        raise NoisescopeError("no features, and no response recurs: there is nothing to fit")
    sample = searched(fold_key, config)
    drawn = {name: x[sample] for name, x in pairs.items()}
    posed = pose(rows, chosen[sample], rejected[sample], recurring, drawn)
    folds = assign(keys[sample], seed=config.seed, replica=0, folds=config.folds)
    own = eligible(sources, keys) if rows or pairs else None
    found = search_heads(
        posed,
        folds,
        own and own.among(sample),
        keys[sample],
        steps=config.search_steps,
        start=start,
        progress=progress,
    )
    problem = pose(rows, chosen, rejected, recurring, pairs)
    if own and found.components:
        posed = found.components.added_to(posed, own.codes[sample])
        problem = found.components.added_to(problem, own.codes)
    chance = None
    if config.test_chance:
        groups = keys if keys.ndim == 1 else fold_key
        few = assign(keys[sample], seed=config.seed, replica=0, folds=FOLDS)
        chance = sign_flip_test(posed, groups[sample], few, seed=config.seed)
    variance = found.candidates[0].variance
    margins, theta = cross_fit(problem, variance, fold_key, keys, config, progress)
    return HeadFit(
        margins=margins,
        theta={name: theta[name] * scale for name, scale in scales.items()},
        variance=variance,
        candidates=found.candidates,
        accuracy=((margins > 0).mean(axis=1) + (margins >= 0).mean(axis=1)) / 2,
        log_likelihood=float(log_expit(margins.mean(axis=0, dtype=np.float64)).mean()),
        pooled=int(recurring.sum()),
        chance=chance,
        by_source=found.by_source,
    )


def cross_fit(
    problem: Problem,
    variance: Mapping[str, float],
    fold_key: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    config: HeadConfig,
    progress: Progress | None,
) -> tuple[Float, dict[str, Float]]:
    """Margins [M, N] held out by `keys` and theta_g = v_g Phi_g' slopes [M, D_g] of whole fits.

    Each replica is P + 1 problems: those of its folds, and one on all pairs.
    """
    design, pairs = problem.design(variance), np.arange(len(fold_key))
    margins, slopes = [], []
    waiting: list[tuple[Folds, Float]] = []
    for replica in range(config.replicas):
        folds = assign(keys, seed=config.seed, replica=replica, folds=config.folds)
        waiting.append((folds, replica_weights(fold_key, folds, replica, config)))
        size = waiting[0][1].size
        if (len(waiting) + 1) * size <= CELLS and replica + 1 < config.replicas:
            continue
        fit = solve(design, np.concatenate([weights for _, weights in waiting], axis=1))
        base = 0
        for one, weights in waiting:
            margins.append(fit.margins[pairs, base + one.own])
            base += weights.shape[1]
            slopes.append(fit.slopes[:, base - 1])
        waiting = []
        if progress:
            progress(f"replica {replica + 1} of {config.replicas}")
    whole = np.stack(slopes, axis=1)
    theta = {
        name: (np.float32(variance[name]) * problem.project(name, whole)).T
        for name in problem.groups
    }
    return np.stack(margins), theta


def replica_weights(
    fold_key: NDArray[np.uint64], folds: Folds, replica: int, config: HeadConfig
) -> Float:
    """Sample weights [N, P + 1] of one replica's problems; the last one has all pairs."""
    weight = bootstrap_weight(
        fold_key, seed=config.seed, replica=replica, strength=config.bootstrap
    )
    every = np.ones((len(weight), 1), np.float32)
    out: Float = weight[:, None] * np.concatenate([folds.train, every], axis=1)
    return out


def recurring_responses(
    chosen: Int, rejected: Int, fold_key: NDArray[np.uint64], responses: int
) -> NDArray[np.bool_]:
    """Which responses [R] stand in pairs of two fold keys or more, so can inform a held-out one."""
    ends = np.concatenate([chosen, rejected])
    keys = np.concatenate([fold_key, fold_key])
    order = np.lexsort((keys, ends))
    ends, keys = ends[order], keys[order]
    first = np.ones(len(ends), np.bool_)
    first[1:] = (ends[1:] != ends[:-1]) | (keys[1:] != keys[:-1])
    return np.bincount(ends[first], minlength=responses) > 1


def searched(fold_key: NDArray[np.uint64], config: HeadConfig) -> NDArray[np.bool_]:
    """The pairs [N] that the regularisation search looks at: a random subset by hash."""
    share = min(1.0, config.search_pairs / len(fold_key))
    ranks = hashed(fold_key, config.seed, SEARCH_SALT) >> np.uint64(11)
    return ranks.astype(np.float64) * 2.0**-53 < share


def checked(
    features: Mapping[str, Float],
    chosen: Int,
    rejected: Int,
    fold_key: NDArray[np.uint64],
    numbers: Mapping[str, Float],
) -> int:
    """R, after collecting everything that cannot be fitted."""
    problems = []
    if not len(chosen) == len(rejected) == len(fold_key) or not len(chosen):
        problems.append(
            f"chosen, rejected and fold_key must have one length above 0, got "
            f"{len(chosen)}, {len(rejected)}, {len(fold_key)}"
        )
    top = int(max(chosen.max(initial=-1), rejected.max(initial=-1))) + 1
    if min(chosen.min(initial=0), rejected.min(initial=0)) < 0:
        problems.append("chosen and rejected must be row numbers, got negative ones")
    sizes = {name: len(x) for name, x in features.items()}
    if len(set(sizes.values())) > 1 or any(size < top for size in sizes.values()):
        problems.append(f"every group needs one row per response ({top} named), got {sizes}")
    lengths = {name: x.shape for name, x in numbers.items() if len(x) != len(chosen) or x.ndim != 2}
    if lengths:
        problems.append(f"numbers of pairs need {len(chosen)} rows, got {lengths}")
    if both := set(features) & set(numbers):
        problems.append(f"groups of responses and of pairs share a name: {', '.join(both)}")
    bad = [name for name, x in {**features, **numbers}.items() if not np.isfinite(x).all()]
    if bad:
        problems.append(f"features are not finite in: {', '.join(bad)}")
    if problems:
        raise NoisescopeError("; ".join(problems))
    return max([top, *sizes.values()])
