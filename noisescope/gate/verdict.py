"""Results of checks, together: the verdict and its exit code, and the JSON object of both.

A check on an estimated rate compares one end of a 90 % interval with its threshold: a one-sided
test at the 5 % level. With the lower bound a breach must be shown (innocent until proven), with
the upper one its absence. Where neither is shown, and the evidence could not have shown an excess
of `detect`, the check is inconclusive and says how many pairs it would take.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

Status = Literal["pass", "fail", "inconclusive", "skipped"]
#: Level of every one-sided test: a 90 % interval leaves 5 % on each side.
CONFIDENCE = 0.95
#: More pairs than this is no useful answer.
MOST_PAIRS = 10**9


@final
@dataclass(frozen=True)
class Row:
    """A pair behind a breach: where it stands, and dataset text about it (untrusted)."""

    pair_id: str
    source: str
    row: int
    detail: str


@final
@dataclass(frozen=True)
class Result:
    """What one check found.

    `low` and `high` are the 90 % interval of `measured`, None for what is counted exactly;
    `bound` is what was compared with `threshold`: lower, upper or exact.
    """

    check: str
    status: Status
    said: str
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    bound: str = "exact"
    pairs_needed: int | None = None
    rows: tuple[Row, ...] = ()


@final
@dataclass(frozen=True)
class Estimate:
    """A measured value with its 90 % interval, from `pairs` pairs; larger is worse."""

    value: float
    low: float
    high: float
    pairs: int


def judge(
    found: Estimate, threshold: float, bound: str, detect: float
) -> tuple[Status, int | None]:
    """Status of `value <= threshold`, and the pairs needed where it is inconclusive.

    lower: fail where low > threshold; pass where also high < threshold + detect.
    upper: pass where high <= threshold; fail where also low > threshold - detect.
    """
    if found.low > threshold:
        return "fail", None
    if found.high <= threshold:
        return "pass", None
    if bound == "lower":
        if found.high < threshold + detect:
            return "pass", None
        return "inconclusive", pairs_to_clear(found, threshold, threshold + detect)
    if found.low > threshold - detect:
        return "fail", None
    return "inconclusive", pairs_to_clear(found, threshold - detect, threshold)


def pairs_to_clear(found: Estimate, above: float, below: float) -> int | None:
    """Pairs at which an interval that shrinks with 1 / sqrt(pairs) is above or below these marks.

    None where no useful number of pairs would do.
    """
    factors = []
    if found.value > above:
        factors.append((found.value - found.low) / (found.value - above))
    if found.value < below:
        factors.append((found.high - found.value) / (below - found.value))
    factor = min(factors, default=math.inf)
    needed = found.pairs * factor * factor
    return math.ceil(needed) if needed <= MOST_PAIRS else None


@final
@dataclass(frozen=True)
class Verdict:
    """All results of one gate."""

    run: str
    dataset: str
    resolved: str
    pairs: int
    inconclusive: str
    results: tuple[Result, ...]
    baseline: str | None = None

    def of(self, status: Status) -> list[Result]:
        """Results with this status."""
        return [result for result in self.results if result.status == status]

    @property
    def exit_code(self) -> int:
        """1 where any check is breached, else what `inconclusive` makes of too little evidence."""
        if self.of("fail"):
            return 1
        if not self.of("inconclusive"):
            return 0
        return {"pass": 0, "fail": 1}.get(self.inconclusive, 2)

    @property
    def word(self) -> str:
        """passed, failed or inconclusive."""
        return {0: "passed", 1: "failed"}.get(self.exit_code, "inconclusive")

    @property
    def said(self) -> str:
        """The verdict in one line."""
        parts = [f"{len(self.of('pass'))} passed"]
        for status, words in (
            ("fail", "breached"),
            ("inconclusive", "inconclusive"),
            ("skipped", "skipped"),
        ):
            count = len([result for result in self.results if result.status == status])
            parts += [f"{count} {words}"] * (count > 0)
        return f"gate {self.word}: {', '.join(parts)} (exit {self.exit_code})"

    def to_json(self) -> dict[str, Any]:
        """The stable JSON object of `gate --json`."""
        return {
            "verdict": self.word,
            "exit_code": self.exit_code,
            "run": self.run,
            "dataset": self.dataset,
            "resolved": self.resolved,
            "baseline": self.baseline,
            "pairs": self.pairs,
            "confidence": CONFIDENCE,
            "checks": [asdict(result) for result in self.results],
        }


def plural(count: int, noun: str) -> str:
    """`1 pair`, `2,000 pairs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
