"""Numbers with their uncertainty: shares with intervals, and how honest probabilities are.

Usage: `share(1540, 2000)` gives an Interval; `calibration(p, truth)` the reliability curve with
its ECE and Brier score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

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


def share(successes: float, trials: int, mass: float = MASS) -> Interval:
    """Binomial share with Wilson's score interval (Wilson 1927)."""
    if trials < 1:
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


def at_chance(accuracy: Interval) -> bool:
    """Whether the replicas do no better than a coin: one half is in (or above) the interval."""
    return accuracy.low <= 0.5


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


def calibration(
    p: Float, truth: Bool, *, bins: Literal["mass", "width"] = "mass", count: int = BINS
) -> Calibration:
    """How far probabilities p [N] are from the truth [N].

    `bins`: "mass" (the default, and what noisescope reports as ECE) puts as nearly as possible
    N / 15 pairs in each bin in the order of p; "width" cuts [0, 1] into 15 equal intervals.
    """
    if not len(p):
        raise EvidenceError("no probability to check")
    wrong = np.asarray(truth, dtype=np.float64)
    if bins == "mass":
        order = np.argsort(p, kind="stable")
        where = np.empty(len(p), dtype=np.int64)
        where[order] = np.arange(len(p)) * count // len(p)
    else:
        where = np.minimum((p * count).astype(np.int64), count - 1)
    size = np.bincount(where, minlength=count).astype(np.float64)
    full = size > 0
    predicted = np.bincount(where, p, count)[full] / size[full]
    observed = np.bincount(where, wrong, count)[full] / size[full]
    ece = float((size[full] * np.abs(observed - predicted)).sum() / len(p))
    brier = float(np.square(p - wrong).mean())
    return Calibration(predicted, observed, size[full], ece, brier)
