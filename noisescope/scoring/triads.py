"""Count cyclic triads: are labels independent votes, or one score a response?

Three responses that are compared pairwise form a triad; it is cyclic if A beats B, B beats C and
C beats A (Kendall, Babington Smith 1940). Labels derived from one score a response are never
cyclic. Independent errors with rate p make a share p (1 - p) of triads with a true order cyclic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from noisescope.scoring.metrics import Interval, share

Int = NDArray[np.int64]

#: Fewer triads than this decide nothing.
FEWEST_TRIADS = 50


@final
@dataclass(frozen=True)
class Triads:
    """How many triads there are, and how many of them are cyclic."""

    count: int
    cyclic: int

    @property
    def share(self) -> Interval:
        """Share of cyclic triads with its 90 % interval."""
        return share(self.cyclic, self.count)

    def verdict(self, flip_rate: float) -> str:
        """ "votes", "scores" or "unknown", given the flip rate of a fit that pools nothing.

        "votes": cyclic triads are at least as frequent as independent errors at that rate would
        make them, within the interval (honest disagreement makes more); "scores": they are rarer
        than a tenth of that.
        """
        expected = flip_rate * (1 - flip_rate)
        if self.count < FEWEST_TRIADS or expected * self.count < 3:
            return "unknown"
        if self.share.high < expected / 10:
            return "scores"
        return "votes" if self.share.high >= expected else "unknown"


def count_triads(chosen: Int, rejected: Int) -> Triads:
    """Triads of the comparison graph; chosen, rejected [N] are response numbers.

    Repeated comparisons count by their majority, and not at all where they are even.
    """
    size = int(max(chosen.max(initial=0), rejected.max(initial=0))) + 1
    ones = np.ones(len(chosen), np.int64)
    wins = csr_array((ones, (chosen, rejected)), shape=(size, size))
    lead = (wins - wins.T).tocsr()
    beats = csr_array((lead > 0).astype(np.int64))
    met = (beats + beats.T).tocsr()
    triads = int((met @ met).multiply(met).sum()) // 6
    return Triads(triads, int((beats @ beats).multiply(beats.T).sum()) // 3)
