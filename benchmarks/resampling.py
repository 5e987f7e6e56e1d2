"""Intervals of ranking metrics by resampling pairs, to check closed forms and compare methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from noisescope.scoring.metrics import Bool, Float, Interval

#: Elements of one block of bootstrap weights: bounds memory at about 64 MB.
BLOCK = 1 << 23


def bootstrap(
    metric: Callable[[Float, Bool, Float], Any],
    score: Float,
    truth: Bool,
    *,
    draws: int = 1000,
    mass: float = 0.9,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `metric` over `draws` resamples of the pairs (Poisson bootstrap).

    `metric` takes score [N], truth [N] and weights [..., N]. The same seed gives the same interval.
    The estimate is the metric of the sample itself.
    """
    rng = np.random.default_rng(seed)
    count, block = len(score), max(1, BLOCK // max(len(score), 1))
    values = [
        metric(score, truth, rng.poisson(1.0, (min(block, draws - done), count)).astype(np.float64))
        for done in range(0, draws, block)
    ]
    low, high = np.nanquantile(np.concatenate(values), [(1 - mass) / 2, (1 + mass) / 2])
    estimate = float(metric(score, truth, np.ones(count)))
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate))
