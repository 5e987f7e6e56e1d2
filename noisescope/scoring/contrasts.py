"""Compare two cross-fits of the same labels: whole groups held out, and responses pooled.

With single pairs held out and a free ability per response, a replica sees the other labels of the
same responses. If those labels are independent votes, that is evidence. If they derive from one
score a response, an error of that score is in all of them, and the replica confirms it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.scoring.clusters import share_interval
from noisescope.scoring.flip_rate import FlipRate, fit_flip_rate
from noisescope.scoring.metrics import Interval
from noisescope.scoring.pair_facts import PairFacts
from noisescope.scoring.triads import Triads

Float = NDArray[np.float64]

HELD_OUT, POOLED = "held out", "pooled"


@final
@dataclass(frozen=True)
class Contrast:
    """What one cross-fit measures: `name` is `HELD_OUT` or `POOLED`."""

    name: str
    accuracy: Interval
    flip_rate: Interval

    def to_json(self) -> dict[str, Any]:
        """JSON object of the manifest and the summary."""
        return {
            "name": self.name,
            "accuracy": self.accuracy.to_json(),
            "flip_rate": self.flip_rate.to_json(),
        }

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Contrast:
        """The contrast of a JSON object. Raises KeyError."""
        return cls(
            content["name"], Interval(**content["accuracy"]), Interval(**content["flip_rate"])
        )


def agreement(margins: Float) -> Float:
    """1 where a label agrees with its margin [N], 0 where not, 1/2 for a margin of 0."""
    return np.asarray((np.sign(margins) + 1) / 2, dtype=np.float64)


def measure(name: str, margins: Float, facts: PairFacts) -> Contrast:
    """Accuracy with its cluster interval, and the flip rate, of mean held-out margins [N]."""
    rate = fit_flip_rate(margins, facts.weights)
    return Contrast(
        name,
        share_interval(agreement(margins), facts.groupings),
        Interval(rate.estimate, rate.low, rate.high),
    )


def differ(one: Contrast, two: Contrast) -> bool:
    """Whether accuracies or flip rates differ by more than their intervals."""
    pairs = ((one.accuracy, two.accuracy), (one.flip_rate, two.flip_rate))
    return any(a.high < b.low or b.high < a.low for a, b in pairs)


def widened(rate: FlipRate, other: Contrast) -> FlipRate:
    """The flip rate with an interval that also covers what a differing fit measures."""
    low = min(rate.low, other.flip_rate.low)
    return replace(rate, low=low, high=max(rate.high, other.flip_rate.high, 1 - other.accuracy.low))


def explain(held_out: Contrast, pooled: Contrast, triads: Triads | None) -> str:
    """What it means that the two fits differ, both numbers, and what cyclic triads decide."""
    text = (
        "Labels of pairs that share a response agree with each other more than the content "
        f"explains. Whole groups held out: accuracy {_percent(held_out.accuracy)}, flip rate "
        f"{_percent(held_out.flip_rate)}. Pairs held out one by one, responses pooled: accuracy "
        f"{_percent(pooled.accuracy)}, flip rate {_percent(pooled.flip_rate)}. Either the labels "
        "are independent votes, and pooling finds more errors; or they derive from one score a "
        "response, and no pooling can see that score's errors."
    )
    verdict = "unknown" if triads is None else triads.verdict(held_out.flip_rate.estimate)
    if triads is None or not triads.count:
        return text
    found = (
        f" Of {triads.count:,} triads of responses {triads.share.estimate:.1%} are cyclic "
        "(independent votes make some cyclic, one score a response makes none)"
    )
    endings = {
        "votes": ": these look like independent votes, and --pool ranks them better.",
        "scores": ": these labels look derived from scores. Do not pool.",
        "unknown": ": that does not decide it.",
    }
    return text + found + endings[verdict]


def _percent(interval: Interval) -> str:
    return f"{interval.estimate:.1%} ({interval.low:.1%} to {interval.high:.1%})"
