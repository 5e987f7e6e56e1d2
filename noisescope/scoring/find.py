"""Predict how many wrong labels the most suspicious pairs contain, with a range.

    for found in expected_finds(noise, margins, check_counts(len(margins))):
        found.pairs, found.low, found.high        # check 400 pairs, find 217 to 369 wrong labels

The low end counts flips alone, at the low end of the flip rate's interval; the high end also
counts close calls (`p_mislabelled`), at the high end, each with the link that is likeliest there
(`FlipRate.at`). Annotators' own rates move with the rate, in log odds. Both ends then widen by the
sampling error of a count, sum_i p_i (1 - p_i) with the likelihood's overdispersion. One flip rate
for all pairs counts too unless another model beats it clearly; if "every label that the judge
disagrees with is wrong" fits as well, the high end counts all of those. Reviewers' judgements of a
random sample replace all this for counts that contain enough of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from noisescope.scoring.flip_rate import MASS, OVERDISPERSION
from noisescope.scoring.metrics import Interval
from noisescope.scoring.noise_models import DECISIVE, TOLERANCE, Noise

if TYPE_CHECKING:
    from noisescope.scoring.reviews import RunReviews

Float = NDArray[np.float64]

#: Largest number of pairs to check, as a share of the dataset and as a number.
LARGEST_SHARE, LARGEST = 0.2, 4000
#: Judged pairs among the most suspicious ones from which on reviews decide the range.
FEWEST_JUDGED = 20
_SMALLEST = 1e-9


@final
@dataclass(frozen=True)
class Find:
    """Among the `pairs` most suspicious pairs, `low` to `high` labels are wrong (90 %)."""

    pairs: int
    low: int
    high: int

    def to_json(self) -> dict[str, Any]:
        """JSON object of the summary."""
        return vars(self)


def check_counts(pairs: int) -> tuple[int, ...]:
    """Four numbers of pairs to check, each twice the one before, up to a fifth of the dataset.

    The largest is 1, 2, 4 or 8 times a power of ten: 100, 200, 400, 800 of 4,000 pairs.
    """
    most = max(min(LARGEST_SHARE * pairs, LARGEST), 8)
    power = 10 ** int(np.log10(most))
    largest = int(max(step for step in (1, 2, 4, 8) if step * power <= most) * power)
    halves = {largest // 2**k for k in range(4)}
    return tuple(sorted(count for count in halves if 0 < count <= pairs))


def expected_finds(
    noise: Noise, margins: Float, counts: Sequence[int], people: RunReviews | None = None
) -> tuple[Find, ...]:
    """Range of wrong labels among the most suspicious `counts` of pairs, margins [N].

    Pairs are ordered as in scores.parquet; a pair without a margin is never among them.
    """
    p_wrong = noise.p_wrong(margins)
    order = np.lexsort((margins, -p_wrong))[: max(counts, default=0)]
    order = order[np.isfinite(p_wrong[order])]
    ends = [_ends(low, high) for low, high in _readings(noise, margins[order], order)]
    disagree = np.cumsum(margins[order] < 0) if _may_be_right(noise) else np.zeros(len(order))
    finds = []
    for count in (count for count in counts if count <= len(order)):
        low = min(found[0][count - 1] for found in ends)
        high = max(disagree[count - 1], *(found[1][count - 1] for found in ends))
        reviewed = _reviewed(people, float(p_wrong[order[count - 1]]))
        if reviewed is not None:
            low, high = count * reviewed.low, count * reviewed.high
        finds.append(Find(count, max(0, int(np.floor(low))), min(count, int(np.ceil(high)))))
    return tuple(finds)


def _readings(
    noise: Noise, margins: Float, order: NDArray[np.int64]
) -> Iterator[tuple[Float, Float]]:
    """Lowest and highest P(wrong) [n] of the pairs at `order` under each model that fits."""
    single = noise.single
    chosen = next(model for model in noise.models if model.name == noise.chosen)
    rates = [(chosen.rate, noise.this[order], noise.other[order])]
    if chosen.gain <= DECISIVE:
        same = np.full(len(order), single.estimate)
        rates.append((Interval(single.estimate, single.low, single.high), same, same))
    for rate, this, other in rates:
        low, high = ([_moved(e, rate.estimate, end) for e in (this, other)] for end in
                     (rate.low, rate.high))  # fmt: skip
        flips = single.at(rate.low).flipped(margins, *low)
        close = single.at(rate.high).p_mislabelled(margins, *high)
        yield np.minimum(flips, close), np.maximum(flips, close)


def _may_be_right(noise: Noise) -> bool:
    """Whether the judge may be right about every pair: `disagreement` fits nearly best."""
    gains = {model.name: model.gain for model in noise.models}
    behind = max(gains.values()) - gains["disagreement"]
    return behind <= max(TOLERANCE * noise.single.pairs / 1000, DECISIVE)


def _moved(rates: Float, estimate: float, end: float) -> Float:
    """Rates [n] moved in log odds as the overall rate moves from `estimate` to `end`."""
    shift = logit(np.clip([end, estimate], _SMALLEST, 1 - _SMALLEST))
    return np.asarray(expit(logit(np.clip(rates, _SMALLEST, 1 - _SMALLEST)) + shift[0] - shift[1]))


def _ends(low: Float, high: Float) -> tuple[Float, Float]:
    """Low and high end [n] of the number of wrong labels among the first 1 .. n pairs."""
    z = float(ndtri((1 + MASS) / 2))
    spread = [z * np.sqrt(OVERDISPERSION * np.cumsum(p * (1 - p))) for p in (low, high)]
    return np.cumsum(low) - spread[0], np.cumsum(high) + spread[1]


def _reviewed(people: RunReviews | None, threshold: float) -> Interval | None:
    """The share of wrong labels that reviewers found at or above a p_wrong; None for too few."""
    found = None if people is None else people.precision(threshold)
    return None if found is None or found.judged < FEWEST_JUDGED else found.share
