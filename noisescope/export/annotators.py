"""Act on annotators that stand out: list, drop or reverse all of their labels.

    for one in acted_on(scores, "drop"):
        one.name, one.why, one.action          # june, votes backwards, drop
    positions_of(scores, acted_on(scores, "drop"))

Who stands out is in the run's summary (scoring/standouts.py): careless (the whole 90 % interval of
their rate is above the crowd's) or contrarian (above 1/2: "votes backwards").
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import UsageError, first_five
from noisescope.scoring.run_scores import RunScores
from noisescope.scoring.standouts import BACKWARDS

Positions = NDArray[np.int64]

REVIEW, DROP, REVERSE = "review", "drop", "reverse"


@final
@dataclass(frozen=True)
class Acted:
    """One annotator who stands out: flip rate with its 90 % interval, why, and what is done."""

    name: str
    labels: int
    flip_rate: float
    low: float
    high: float
    why: str
    action: str

    def __str__(self) -> str:
        return f"{self.name} ({self.flip_rate:.0%} [{self.low:.0%}, {self.high:.0%}] wrong)"


def acted_on(scores: RunScores, mode: str) -> list[Acted]:
    """Every annotator that stands out, worst first; `reverse` keeps the careless as they are.

    Raises UsageError for another mode, if nobody stands out, and if `reverse` finds nobody who
    votes backwards.
    """
    if mode not in (REVIEW, DROP, REVERSE):
        raise UsageError(
            f"--annotators {mode}: one of {REVIEW}, {DROP}, {REVERSE}",
            hint=f"{REVIEW} changes nothing: it queues their pairs for people.",
        )
    found: dict[str, Any] = scores.summary.get("annotators") or {}
    run = shlex.quote(str(scores.run.directory))
    if found.get("kind") != "annotator":
        raise UsageError(
            f"{scores.run.directory}: no annotator stands out, so --annotators {mode} has nobody "
            "to act on",
            hint=f"noisescope export {run} --format clean acts on single labels.",
        )
    worst = [
        Acted(
            **{name: one[name] for name in ("name", "labels", "flip_rate", "low", "high")},
            why=one["label"],
            action="keep" if mode == REVERSE and one["label"] != BACKWARDS else mode,
        )
        for one in found["worst"]
    ]
    if all(one.action == "keep" for one in worst):
        names = first_five([str(one) for one in worst])
        raise UsageError(
            f"{names}: careless, but nobody votes backwards, so reversing would make most of "
            "these labels wrong",
            hint=f"noisescope export {run} --format clean --annotators {DROP}",
        )
    return worst


def positions_of(scores: RunScores, people: list[Acted]) -> Positions:
    """Positions of all pairs of these annotators, ascending."""
    names = {one.name for one in people}
    found = [
        at[[name in names for name in batch.column(1).cast("string").to_pylist()]]
        for batch, at in scores.pairs(["annotator"])
    ]
    return np.sort(np.concatenate([np.empty(0, np.int64), *found]))
