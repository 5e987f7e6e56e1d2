"""Follow wrong labels over runs: deliveries of a week each, or one dataset as it changes.

    found = history([week1, week2, week3])
    found.trend, found.sentence

The trend is the slope b of rate_t = a + b t + e_t over the runs' flip rates (weighted least
squares, t = 0, 1, 2...), weights and interval from the runs' own 90 % intervals, wider where the
rates scatter more than these allow. A step at the end is no trend: the last run is also compared
with the mean of those before it. Runs whose audit
is too weak to act on are listed, and no part of it. Deliveries share no pairs, so their errors are
independent; runs of one growing dataset share most, which makes the interval too wide. To decide
whether a delivery is worse than the one before, `gate --baseline` compares them pair by pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import UsageError
from noisescope.scoring.metrics import Interval
from noisescope.scoring.scores import require_scores
from noisescope.storage.run import Run, finished_runs

Float = NDArray[np.float64]

#: Half of a 90 % interval in standard errors.
Z = 1.6448536269514722
#: Smallest standard error of a rate.
LEAST = 1e-4


@final
@dataclass(frozen=True)
class Point:
    """One run: `wrong` is the range of wrong labels, `flip_rate` what the trend is made of."""

    run: str
    dataset: str
    finished: str
    pairs: int
    wrong: Interval
    flip_rate: Interval
    trust: str
    acts: bool

    def to_json(self) -> dict[str, Any]:
        """JSON object of `diff --json`."""
        return {**vars(self), "wrong": self.wrong.to_json(), "flip_rate": self.flip_rate.to_json()}


@final
@dataclass(frozen=True)
class History:
    """Runs in order, the slope of their flip rates per run (None: fewer than two count).

    `start` is the fitted rate of the first run, `last` the difference of the last run's rate from
    the mean of those before it (None: fewer than three count, or the last does not).
    """

    points: tuple[Point, ...]
    trend: Interval | None
    start: float | None
    last: Interval | None
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The trend in words."""
        if self.trend is None:
            return "No trend: it takes two audits by one judge that are strong enough to act on."
        span = f"{_points(self.trend)} a run"
        text = f"No trend: {span} fit. To see smaller changes: noisescope gate --baseline RUN."
        if self.trend.low > 0:
            text = f"The flip rate rises: {span}."
        elif self.trend.high < 0:
            text = f"The flip rate falls: {span}."
        if self.last is not None and self.last.low * self.last.high > 0:
            text += f" The last run differs from those before it by {_points(self.last)}."
        return text

    def to_json(self) -> dict[str, Any]:
        """The stable JSON object of `diff --json` with more than two runs."""
        return {
            "runs": [point.to_json() for point in self.points],
            "trend": self.trend and self.trend.to_json(),
            "last": self.last and self.last.to_json(),
            "sentence": self.sentence,
            "notes": list(self.notes),
        }


def history(runs: Sequence[Run]) -> History:
    """The runs in the order given, and their trend. Raises RunError for an unfinished run,
    UsageError if a run is repeated: its labels would count twice.
    """
    places = [run.directory.resolve() for run in runs]
    repeated = next((place for place in places if places.count(place) > 1), None)
    if repeated is not None:
        raise UsageError(
            f"{repeated.name} is named twice: a history counts each run once",
            hint="Name different runs, oldest first.",
        )
    points = tuple(map(_point, runs))
    judges = {run.manifest().get("model_fingerprint") for run in runs}
    settings = [run.manifest().get("evidence") for run in runs]
    notes = []
    if len(judges) > 1:
        notes.append("the runs were judged by different models: rates change with the model")
    if any(one != settings[0] for one in settings):
        notes.append("the runs gathered evidence with different settings")
    weak = [point.dataset for point in points if not point.acts]
    if weak:
        notes.append(f"too weak to count in the trend: {', '.join(weak)}")
    slope, start = (None, None) if len(judges) > 1 else trend(points)
    last = None if len(judges) > 1 else last_step(points)
    return History(points, slope, start, last, tuple(notes))


def _point(run: Run) -> Point:
    require_scores(run)
    manifest = run.manifest()
    summary = manifest["summary"]
    trust = summary.get("trust") or {"word": "unknown (an older version)", "acts": False}
    return Point(
        str(run.directory),
        str(manifest["dataset"]),
        str(manifest.get("finished", "")),
        int(summary["pairs"]),
        _interval(summary["mislabelled_share"]),
        _interval(summary["flip_rate"]),
        str(trust["word"]),
        bool(trust["acts"]),
    )


def _interval(found: dict[str, Any]) -> Interval:
    return Interval(*(float(found[name]) for name in ("estimate", "low", "high")))


def trend(points: Sequence[Point]) -> tuple[Interval | None, float | None]:
    """Slope of the flip rate per run and the rate at the first, of the points that act."""
    at = np.flatnonzero([point.acts for point in points])
    if len(at) < 2:
        return None, None
    y, errors = _rates(points)
    weights = errors**-2.0
    middle = np.average(at, weights=weights)
    t = at - middle
    information = float((weights * t**2).sum())
    slope, level = float((weights * t * y).sum()) / information, np.average(y, weights=weights)
    misfit = float((weights * (y - level - slope * t) ** 2).sum()) / max(len(at) - 2, 1)
    half = Z * information**-0.5 * max(misfit, 1.0) ** 0.5
    return Interval(slope, slope - half, slope + half), float(level - slope * middle)


def last_step(points: Sequence[Point]) -> Interval | None:
    """The last rate less the weighted mean of all before it; None for fewer than three that act."""
    y, errors = _rates(points)
    if len(y) < 3 or not points[-1].acts:
        return None
    weights = errors[:-1] ** -2.0
    step = float(y[-1] - np.average(y[:-1], weights=weights))
    half = Z * float(np.sqrt(errors[-1] ** 2 + 1 / weights.sum()))
    return Interval(step, step - half, step + half)


def _rates(points: Sequence[Point]) -> tuple[Float, Float]:
    """Flip rates and their standard errors [n] of the points that act."""
    rates = [point.flip_rate for point in points if point.acts]
    errors = [max((rate.high - rate.low) / 2 / Z, LEAST) for rate in rates]
    return np.array([rate.estimate for rate in rates]), np.array(errors)


def _points(change: Interval) -> str:
    return f"{100 * change.low:+.1f} to {100 * change.high:+.1f} points"


def earlier_runs(run: Run) -> list[Run]:
    """Runs beside `run` of earlier states of its dataset, by the same judge and settings.

    Of several runs of one state the latest counts; they are in the order in which they finished.
    """
    mine = run.manifest()
    same = ("dataset", "model_fingerprint", "evidence")
    states: dict[Any, Run] = {}
    for other in finished_runs(run.directory.resolve().parent):
        manifest = other.manifest()
        if other.directory.resolve() == run.directory.resolve():
            break
        if all(manifest.get(name) == mine.get(name) for name in same):
            states.pop(manifest.get("dataset_fingerprint"), None)
            states[manifest.get("dataset_fingerprint")] = other
    states.pop(mine.get("dataset_fingerprint"), None)
    return list(states.values())
