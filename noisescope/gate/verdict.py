"""Combine the results of checks: the verdict, its exit code, and its JSON object.

A check on an estimated rate compares one end of a 90 % interval with its threshold: a one-sided
test at the 5 % level. By the lower bound a check fails only if the whole interval is above the
threshold; by the upper bound it passes only if the whole interval is below. In between, if the
data could not have shown an excess of `detect`, the check is inconclusive, with the number of pairs
that it needs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

Status = Literal["pass", "fail", "inconclusive", "skipped"]
ORDER: tuple[Status, ...] = ("fail", "inconclusive", "pass", "skipped")
#: Exit code of an inconclusive gate; 2 is for errors.
INCONCLUSIVE = 3
#: Level of every one-sided test: a 90 % interval leaves 5 % on each side.
CONFIDENCE = 0.95
#: A larger number of needed pairs is not reported.
MOST_PAIRS = 10**9


@final
@dataclass(frozen=True)
class Row:
    """A pair behind a failed check: its location, and (untrusted) text about it."""

    pair_id: str
    source: str
    row: int
    detail: str

    @property
    def place(self) -> str:
        """FILE:ROW as people read it, the first row 1; `row` counts from 0."""
        return f"{self.source}:{self.row + 1}"


@final
@dataclass(frozen=True)
class Result:
    """The result of one check.

    `low` and `high` are the 90 % interval of `measured`, None for exact counts; `bound` is what
    was compared with `threshold`: lower, upper or exact.
    """

    check: str
    status: Status
    message: str
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


def compare_threshold(
    found: Estimate, threshold: float, bound: str, detect: float
) -> tuple[Status, int | None]:
    """Test `value <= threshold`; return the status, and the pairs needed if inconclusive.

    lower: fail if low > threshold; else pass if high < threshold + detect.
    upper: pass if high <= threshold; else fail if low > threshold - detect.
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
    """Return the pairs at which an interval ~ 1 / sqrt(pairs) is above `above` or below `below`.

    None if no useful number of pairs suffices, or there are as many already: then something else
    than their number keeps the check from deciding.
    """
    factors = []
    if found.value > above:
        factors.append((found.value - found.low) / (found.value - above))
    if found.value < below:
        factors.append((found.high - found.value) / (below - found.value))
    factor = min(factors, default=math.inf)
    needed = found.pairs * factor * factor
    return math.ceil(needed) if found.pairs <= needed <= MOST_PAIRS else None


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
        """Return the results with this status."""
        return [result for result in self.results if result.status == status]

    @property
    def ordered(self) -> list[Result]:
        """The results as they are shown: failed ones first, skipped ones last."""
        return [result for status in ORDER for result in self.of(status)]

    @property
    def exit_code(self) -> int:
        """1 if any check failed, else by the policy if any is inconclusive, else 0."""
        if self.of("fail"):
            return 1
        if not self.of("inconclusive"):
            return 0
        return {"pass": 0, "fail": 1}.get(self.inconclusive, INCONCLUSIVE)

    @property
    def word(self) -> str:
        """passed, failed or inconclusive."""
        return {0: "passed", 1: "failed"}.get(self.exit_code, "inconclusive")

    @property
    def summary(self) -> str:
        """The verdict in one line."""
        parts = [f"{len(self.of('pass'))} passed"]
        for status, words in (
            ("fail", "failed"),
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
            "checks": [_checked(result) for result in self.results],
        }


def _checked(result: Result) -> dict[str, Any]:
    """Convert to JSON; the message has the key `said`."""
    return {{"message": "said"}.get(key, key): value for key, value in asdict(result).items()}


def plural(count: int, noun: str) -> str:
    """Format a count: `1 pair`, `2,000 pairs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
