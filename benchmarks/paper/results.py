"""Collect right answers by cell, and compare cells with intervals.

    found = Outcomes(groups)                       # groups: prompt of each test pair
    found.add(0.2, "dpo", right)                   # [n], once for each seed
    found.resampled().contrast((0.0, "dpo"), (0.2, "dpo"))

Intervals are 90 %: seeds are resampled, and within each seed its prompts, alike for every cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisescope.report.style import Picture
from noisescope.scoring.metrics import Interval

Float = NDArray[np.float64]
Int = NDArray[np.int64]
#: (flip rate, method) of a cell.
Key = tuple[float, str]
DRAWS = 1000


@dataclass(frozen=True)
class Resampled:
    """Hold the accuracy of every cell, as measured and in each of `DRAWS` resamples."""

    keys: list[Key]
    point: Float  # [cells]
    draws: Float  # [DRAWS, cells]
    seconds: float = 0.0  # CPU seconds of audits and trainings

    def value(self, key: Key) -> Interval:
        """Return the accuracy of a cell."""
        at = self.keys.index(key)
        return _interval(self.point[at], self.draws[:, at])

    def contrast(self, better: Key, than: Key) -> Interval:
        """Return how much more accurate one cell is than another, paired."""
        one, two = self.keys.index(better), self.keys.index(than)
        return _interval(self.point[one] - self.point[two], self.draws[:, one] - self.draws[:, two])

    def row(self, method: str, rates: Sequence[float]) -> dict[str, Any]:
        """Return a line of a table: the accuracy of a method at each flip rate."""
        cells = {f"{rate:.0%}": self.value((rate, method)) for rate in rates}
        return {"method": method} | {name: shown(cell) for name, cell in cells.items()}


@dataclass
class Outcomes:
    """Collect right answers by cell, one array [n] a seed; `groups` [n] are resampled together."""

    groups: list[Int]
    cells: dict[Key, list[Float]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, rate: float, method: str, right: Float) -> None:
        """Add the answers of one seed."""
        self.cells.setdefault((rate, method), []).append(right)

    def resampled(self) -> Resampled:
        """Resample every cell. Raises IndexError if a cell is missing in some seed."""
        keys, random = list(self.cells), np.random.default_rng(0)
        seeds = len(self.groups)
        parts = [self._seed(keys, seed) for seed in range(seeds)]  # sums [cells, G], counts [G]
        point = np.mean([sums.sum(1) / counts.sum() for sums, counts in parts], axis=0)
        draws = np.empty((DRAWS, len(keys)))
        for draw in range(DRAWS):
            found = []
            for seed in random.integers(0, seeds, seeds):
                sums, counts = parts[seed]
                size = len(counts)
                times = random.multinomial(size, np.full(size, 1 / size))
                found.append(sums @ times / (counts @ times))
            draws[draw] = np.mean(found, axis=0)
        return Resampled(keys, point, draws, self.seconds)

    def _seed(self, keys: Sequence[Key], seed: int) -> tuple[Float, Float]:
        codes = np.unique(self.groups[seed], return_inverse=True)[1]
        sums = np.stack([np.bincount(codes, self.cells[key][seed]) for key in keys])
        return sums, np.bincount(codes).astype(np.float64)


def _interval(point: float, draws: Float) -> Interval:
    low, high = np.quantile(draws, [0.05, 0.95])
    return Interval(float(point), float(min(low, point)), float(max(high, point)))


def shown(interval: Interval, digits: int = 3) -> str:
    """Return an interval as 0.712 [0.690, 0.731]."""
    value, low, high = (
        f"{number:.{digits}f}" for number in (interval.estimate, interval.low, interval.high)
    )
    return f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Direction:
    """A question, the difference measured here, and the answer that its interval allows.

    `published`: what the paper reports for it, empty if the paper does not compare it.
    """

    question: str
    difference: Interval
    published: str = ""

    @property
    def answer(self) -> str:
        """Return yes or no if the 90 % interval excludes 0."""
        if self.difference.low > 0:
            return "yes"
        return "no, the reverse" if self.difference.high < 0 else "inconclusive"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        facts = {"question": self.question, "answer": self.answer, "published": self.published}
        return facts | self.difference.to_json()


@dataclass
class Result:
    """Results of a tiny run: tables by title, directions and pictures."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    directions: list[Direction] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    trained: float = 0.0  # CPU seconds of audits and trainings, cached ones included

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; pictures by name."""
        return {
            "tables": self.tables,
            "directions": [direction.to_json() for direction in self.directions],
            "pictures": [picture.name for picture in self.pictures],
            "cpu_seconds_of_trainings": self.trained,
        }
