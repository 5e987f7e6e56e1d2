"""One reviewer's way through a run's pairs: which one is next, and what was answered.

    session = open_session(run, reviewer="ann", purpose="estimate", count=100)
    session.answer(session.current().content_id, "first")     # on disk when this returns
    session.undo()

The order of a pair's sides is a hash of reviewer and content: blind to the label, the same after a
restart, and different for each reviewer, so that a habit of taking the first side cancels out.
"""

from __future__ import annotations

import getpass
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError, UsageError
from noisescope.pairs import digest, keys_of, uniform
from noisescope.scoring.review_estimate import stratum_of
from noisescope.scoring.reviews import (
    Population,
    cells_of,
    draw_sample,
    queue_of,
    read_judged,
    read_p_wrong,
    read_population,
    sample_of,
)
from noisescope.storage.reviews import (
    LONGEST_NAME,
    Answer,
    Choice,
    Draw,
    Journal,
    Log,
    new_id,
    read_reviews,
    side_key,
)
from noisescope.storage.run import Run

Float = NDArray[np.float64]

#: Salt of the order of sides.
_SIDES = 33


@final
class OutOfTurn(Exception):
    """An answer about a pair that is not the next one: another tab was quicker."""


@final
@dataclass(frozen=True)
class Task:
    """One pair to judge; `sides` are in the order shown, as `keys` are."""

    pair_id: str
    content_id: str
    prompt: str
    turns: tuple[Mapping[str, str], ...]
    sides: tuple[str, str]
    keys: tuple[str, str]
    p_wrong: float
    stratum: tuple[int, int] | None  # and how many pairs it has


@final
class Session:
    """A reviewer's tasks in order, with the answers given so far. Safe to use from threads."""

    def __init__(
        self, run: Run, reviewer: str, draw: Draw, tasks: Sequence[Task], log: Log, journal: Journal
    ) -> None:
        self.run, self.reviewer, self.draw, self.tasks = run, reviewer, draw, tuple(tasks)
        self._journal, self._lock = journal, RLock()
        asked = {task.content_id for task in tasks}
        mine = [answer for answer in log.answers if answer.reviewer == reviewer]
        self._answers = {one.content_id: one for one in mine if one.content_id in asked}

    @property
    def purpose(self) -> str:
        """estimate or fix."""
        return self.draw.purpose

    @property
    def done(self) -> int:
        """How many of the tasks are answered or skipped."""
        return len(self._answers)

    @property
    def can_undo(self) -> bool:
        """Whether there is an answer to take back."""
        return bool(self._answers)

    def expected_wrong(self) -> float:
        """How many labels of the pairs still to judge are wrong according to the audit."""
        return sum(t.p_wrong for t in self.tasks if t.content_id not in self._answers)

    def current(self) -> Task | None:
        """The next pair to judge, None when all are."""
        with self._lock:
            open_tasks = (task for task in self.tasks if task.content_id not in self._answers)
            return next(open_tasks, None)

    def answer(self, content_id: str, choice: Choice) -> None:
        """Record an answer about the current pair. Raises OutOfTurn for any other pair, RunError
        if it cannot be written.
        """
        with self._lock:
            task = self.current()
            if task is None or task.content_id != content_id:
                raise OutOfTurn
            answer = Answer(
                task.pair_id,
                task.content_id,
                self.reviewer,
                choice,
                task.keys,
                self.draw.id,
                *(task.stratum or (None, None)),
            )
            self._journal.append(answer.to_json())
            self._answers[content_id] = answer

    def undo(self) -> bool:
        """Take back the latest answer, also one of an earlier session; whether there was one."""
        with self._lock:
            if not self._answers:
                return False
            latest = next(reversed(self._answers.values()))  # in their order, whatever the clock
            self._journal.append({"kind": "undo", "answer": latest.id})
            del self._answers[latest.content_id]
            return True


def open_session(
    run: Run, *, reviewer: str, purpose: str = "estimate", count: int = 100, seed: int | None = None
) -> Session:
    """The tasks of `reviewer`: the first `count` pairs of the run's sample, or the `count` most
    suspicious ones; those answered before stay answered.

    A first sample is drawn with `seed`, random by default. Raises UsageError for an impossible
    name or count, RunError if this reviewer is at work in another process.
    """
    check_name(reviewer)
    if count < 1:
        raise UsageError(f"--count {count}: at least 1")
    journal = Journal(run.directory, reviewer)
    population, log = read_population(run), read_reviews(run)
    p = read_p_wrong(run, population)
    strata: dict[int, tuple[int, int]] = {}
    if purpose == "estimate":
        draw = sample_of(log, population)
        if draw is None:
            judged = [one for one in read_judged(run, log, population) if sum(one.counts())]
            seed = secrets.randbits(32) if seed is None else seed
            draw = draw_sample(log, judged, population, p, count=count, seed=seed)
            journal.append(draw.to_json())
        places = queue_of(draw, population)[:count]
        number = stratum_of(cells_of(draw))
        sizes = np.bincount(number)
        strata = {int(at): (int(number[at]), int(sizes[number[at]])) for at in places}
    else:
        places = np.lexsort((population.keys, -np.nan_to_num(p)))[:count]
        draw = Draw("", "fix", population.digest)
    tasks = _tasks(run, places.tolist(), p, strata, population, reviewer)
    if purpose != "estimate":
        draw = _list(log, population, [task.pair_id for task in tasks])
        if draw.id not in log.draws:
            journal.append(draw.to_json())
    distinct = {task.content_id: task for task in reversed(tasks)}
    once = [task for task in tasks if distinct[task.content_id] is task]
    return Session(run, reviewer, draw, once, log, journal)


def user_name() -> str:
    """The user's name, as far as the system knows one."""
    try:
        name = getpass.getuser()
    except (KeyError, ImportError, OSError):
        name = "reviewer"
    return "".join(c for c in name if c.isprintable())[:LONGEST_NAME] or "reviewer"


def check_name(reviewer: str) -> None:
    """Raise UsageError unless `reviewer` is a printable name."""
    if not reviewer.strip() or len(reviewer) > LONGEST_NAME or not reviewer.isprintable():
        raise UsageError(
            f"--reviewer {reviewer[:40]!r}: a name of 1 to {LONGEST_NAME} printable characters",
            hint="Such as --reviewer ann.",
        )


def _list(log: Log, population: Population, pairs: Sequence[str]) -> Draw:
    """The list of exactly these pairs, as drawn before or new."""
    wanted = Draw(new_id(), "fix", population.digest, pairs=tuple(pairs))
    same = (
        draw
        for draw in log.draws.values()
        if (draw.purpose, draw.population, draw.pairs) == ("fix", wanted.population, wanted.pairs)
    )
    return next(same, wanted)


def _tasks(
    run: Run,
    places: Sequence[int],
    p: Float,
    strata: Mapping[int, tuple[int, int]],
    population: Population,
    reviewer: str,
) -> list[Task]:
    """The pairs at `places` with their texts, in that order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row_of = np.empty(len(population), np.int64)
    row_of[population.place] = np.arange(len(population))
    wanted = {int(row_of[place]): place for place in places}
    names = ["pair_id", "content_id", "prompt", "turns", "chosen", "rejected"]
    found: dict[int, Task] = {}
    start = 0
    try:
        with pq.ParquetFile(run.pairs_path, pre_buffer=False) as file:
            for batch in file.iter_batches(8192, columns=names):
                for row in [row for row in wanted if start <= row < start + batch.num_rows]:
                    pair = {name: batch.column(name)[row - start].as_py() for name in names}
                    place = wanted[row]
                    found[place] = _task(pair, float(p[place]), strata.get(place), reviewer)
                start += batch.num_rows
    except (pa.ArrowException, OSError, KeyError) as error:
        raise RunError(f"{run.pairs_path} cannot be read: {error}") from error
    return [found[place] for place in places]


def _task(
    pair: Mapping[str, Any], p_wrong: float, stratum: tuple[int, int] | None, reviewer: str
) -> Task:
    sides = pair["chosen"], pair["rejected"]
    coin = uniform(keys_of([digest("sides", reviewer, pair["content_id"])]), _SIDES)[0]
    ordered = tuple(sorted(sides, reverse=bool(coin < 0.5)))
    return Task(
        pair["pair_id"],
        pair["content_id"],
        pair["prompt"],
        tuple(pair["turns"] or ()),
        ordered,
        (side_key(ordered[0]), side_key(ordered[1])),
        p_wrong,
        stratum,
    )
