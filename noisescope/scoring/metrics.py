"""How well a score ranks mislabelled pairs: AUROC, average precision, precision at a count.

Scores [N] are higher = more suspicious, truth [N] is True for a mislabelled pair. Each metric takes
optional sample weights [..., N] and broadcasts over them. The last part needs no truth: the AUROC
to expect by the margins alone (docs/method.md 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri

from noisescope.errors import EvidenceError

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: Credible or confidence mass of every interval noisescope prints.
MASS = 0.90
#: Bins of a reliability curve.
BINS = 15


@final
@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 90 % interval."""

    estimate: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """JSON object {estimate, low, high}."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


def share(successes: float, trials: float, mass: float = MASS) -> Interval:
    """Binomial share with Wilson's score interval (Wilson 1927)."""
    if trials <= 0:
        raise EvidenceError("a share of nothing has no value")
    z = float(ndtri((1 + mass) / 2))
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2)
    return Interval(
        p, float(max(0.0, min(p, centre - half))), float(min(1.0, max(p, centre + half)))
    )


def held_out_accuracy(margins: Float) -> Interval:
    """Share of labels that agree with the sign of their held-out margin [N]; zero counts half."""
    judged = margins[np.isfinite(margins)]
    return share(float(((np.sign(judged) + 1) / 2).sum()), len(judged))


@final
@dataclass(frozen=True)
class Calibration:
    """Reliability curve in B non-empty bins, with its summary numbers.

    `predicted`, `observed` [B] are means, `count` [B]; `ece` = sum_b count_b / N
    |observed_b - predicted_b|; `brier` = mean squared error of p.
    """

    predicted: Float
    observed: Float
    count: Float
    ece: float
    brier: float


def calibration(p: Float, truth: Bool) -> Calibration:
    """How far probabilities p [N] are from the truth [N].

    Each of 15 bins has as nearly as possible N / 15 pairs, in the order of p.
    """
    if not len(p):
        raise EvidenceError("no probability to check")
    wrong = np.asarray(truth, dtype=np.float64)
    where = np.empty(len(p), dtype=np.int64)
    where[np.argsort(p, kind="stable")] = np.arange(len(p)) * BINS // len(p)
    size = np.bincount(where, minlength=BINS).astype(np.float64)
    full = size > 0
    predicted = np.bincount(where, p, BINS)[full] / size[full]
    observed = np.bincount(where, wrong, BINS)[full] / size[full]
    ece = float((size[full] * np.abs(observed - predicted)).sum() / len(p))
    brier = float(np.square(p - wrong).mean())
    return Calibration(predicted, observed, size[full], ece, brier)


def _tied(score: Float, truth: Bool, weights: Float | None) -> tuple[Float, Float]:
    """Weights [..., G] of mislabelled and of other pairs in groups of equal scores, ascending."""
    if np.isnan(score).any():
        raise EvidenceError(f"{int(np.isnan(score).sum()):,} of {len(score):,} scores are missing")
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(score[order]) > 0))
    weight = np.ones(len(score)) if weights is None else weights
    wrong = np.asarray(truth, dtype=bool)[order]
    ordered = weight[..., order]
    positive = np.add.reduceat(ordered * wrong, starts, axis=-1)
    return positive, np.add.reduceat(ordered * ~wrong, starts, axis=-1)


def auroc(score: Float, truth: Bool, weights: Float | None = None) -> Float:
    """P(a mislabelled pair scores above another) + P(tie) / 2; NaN where one kind is absent."""
    positive, negative = _tied(score, truth, weights)
    below = np.cumsum(negative, axis=-1) - negative
    wins = (positive * (below + negative / 2)).sum(axis=-1)
    total = positive.sum(axis=-1) * negative.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(wins / np.where(total > 0, total, np.nan))


def average_precision(score: Float, truth: Bool, weights: Float | None = None) -> Float:
    """sum_k (R_k - R_{k-1}) P_k over distinct thresholds; its base rate is the truth's mean."""
    positive, negative = (side[..., ::-1] for side in _tied(score, truth, weights))
    found = np.cumsum(positive, axis=-1)
    taken = found + np.cumsum(negative, axis=-1)
    precision = found / np.maximum(taken, np.finfo(np.float64).tiny)
    total = found[..., -1]
    return np.asarray(
        (positive * precision).sum(axis=-1) / np.where(total > 0, total, np.nan), dtype=np.float64
    )


def precision_at(score: Float, truth: Bool, share: float, weights: Float | None = None) -> Float:
    """Share of mislabelled among the top `share` of the pairs; a tie at the edge counts in part."""
    positive, negative = (side[..., ::-1] for side in _tied(score, truth, weights))
    group = positive + negative
    budget = share * group.sum(axis=-1, keepdims=True)
    before = np.cumsum(group, axis=-1) - group
    part = np.clip((budget - before) / np.maximum(group, np.finfo(np.float64).tiny), 0, 1)
    return np.asarray((positive * part).sum(axis=-1) / budget[..., 0], dtype=np.float64)


def signed_rank(margins: Float) -> float:
    """W = P(M_i + M_j > 0): Wilcoxon's signed-rank statistic / (n (n + 1) / 2), in [0, 1].

    The AUROC of -margin against uniform flips of these labels, were they all right. Zero
    margins count half.
    """
    from scipy.stats import rankdata  # most of a second to load

    m = np.asarray(margins, dtype=np.float64)
    m = m[np.isfinite(m)]
    if not len(m):
        raise EvidenceError("no held-out margin to rank")
    ranks = rankdata(np.abs(m))
    return float((ranks * (np.sign(m) + 1) / 2).sum() / (len(m) * (len(m) + 1) / 2))


def _corrected(w: float, flip_rate: float) -> float:
    if not 0 <= flip_rate < 0.5:
        raise EvidenceError(f"a flip rate must be in [0, 0.5), not {flip_rate:g}")
    return float(np.clip((w - flip_rate) / (1 - 2 * flip_rate), 0, 1))


def signed_rank_error(margins: Float) -> float:
    """Standard error of `signed_rank` over samples of pairs (Hoeffding's projection).

    W is a U-statistic of degree 2 with the kernel [M_i + M_j > 0], so its variance is about
    4 Var(h(M)) / n with h(m) = P(M + m > 0).
    """
    m = np.asarray(margins, dtype=np.float64)
    m = np.sort(m[np.isfinite(m)])
    if len(m) < 2:
        raise EvidenceError("fewer than two held-out margins have no standard error")
    below = (np.searchsorted(m, -m, "left") + np.searchsorted(m, -m, "right")) / 2
    return float(2 * (1 - below / len(m)).std(ddof=1) / np.sqrt(len(m)))


def signed_rank_influence(margins: Float) -> Float:
    """First-order influence 2 (P(M + m_i > 0) - W) of each finite margin on `signed_rank`."""
    m = np.asarray(margins, dtype=np.float64)
    ordered = np.sort(m)
    below = np.searchsorted(ordered, -m, "left") + np.searchsorted(ordered, -m, "right")
    wins = 1 - below / (2 * len(m))
    return np.asarray(2 * (wins - wins.mean()), dtype=np.float64)


def expected_auroc_interval(
    margins: Float, flip_rate: Interval, half_width: float | None = None
) -> Interval:
    """A = (W - e) / (1 - 2 e), the AUROC to expect of -margin, with its 90 % interval.

    W is `signed_rank` of noisy labels, of which a share e, the flip rate, is flipped. No truth is
    needed. The interval holds W's own error and that of the flip rate together.

    Each side is the root of the squared distances to A at that end of the flip rate's interval
    and to A at `half_width` of W, which is 1.64 standard errors over single pairs if None, and that
    of a share (`share`) if no pair differs: where the replicas agree with every label.
    (Errors of W and e are of opposite sign and cancel in part, so this is wide rather than
    narrow.)
    """
    ends = (flip_rate.estimate, flip_rate.low, flip_rate.high)
    w = signed_rank(margins)
    middle, *others = (_corrected(w, e) for e in ends)
    spread = half_width
    if spread is None:
        spread = float(ndtri((1 + MASS) / 2)) * signed_rank_error(margins)
    if not spread:
        edge = share(w * len(margins), len(margins))
        spread = max(edge.high - w, w - edge.low)
    spread /= 1 - 2 * flip_rate.estimate
    low = middle - np.hypot(middle - min(middle, *others), spread)
    high = middle + np.hypot(max(middle, *others) - middle, spread)
    return Interval(middle, max(0.0, float(low)), min(1.0, float(high)))


def bayes_auroc(gaps: Float) -> float:
    """AUROC* = E[sigma(max(R, R'))], R, R' independent draws of |gap| [N] in log odds.

    The best any detector of uniform flips can do if these are the true gaps; free of the rate.
    """
    size = np.sort(np.abs(gaps[np.isfinite(gaps)]))
    if not len(size):
        raise EvidenceError("no gap to compute a ceiling from")
    weight = (2 * np.arange(len(size)) + 1) / len(size) ** 2  # P(max is the i-th)
    return float((weight * expit(size)).sum())


def efficiency(measured: float, ceiling: float) -> float:
    """(AUROC - 1/2) / (AUROC* - 1/2); NaN where the ceiling is chance."""
    return (measured - 0.5) / (ceiling - 0.5) if ceiling > 0.5 else float("nan")
