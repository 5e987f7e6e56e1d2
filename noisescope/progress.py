"""How long work reports what it is doing: a reporter, its stages, and the seconds they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol, final


class Progress(Protocol):
    """A callback after each chunk: work done, all work, and a remark if something happened."""

    def __call__(self, done_work: float, total_work: float, note: str | None) -> None: ...


class Reporter(Protocol):
    """Where long work reports notes and progress; `cli.console` prints them."""

    def note(self, text: str) -> None: ...

    def stage(self, label: str) -> AbstractContextManager[Progress]: ...


@final
class Silent:
    """A reporter that discards everything."""

    def note(self, text: str) -> None:
        """Discard the note."""

    def stage(self, label: str) -> AbstractContextManager[Progress]:
        """Discard the progress of a stage."""
        return nullcontext(lambda done_work, total_work, note: None)


_report: ContextVar[Callable[[float], None] | None] = ContextVar("report", default=None)


@contextmanager
def inside(report: Callable[[float], None]) -> Iterator[None]:
    """Pass every `advance` in this block to `report`: a chunk shows progress before it ends."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def advance(share: float) -> None:
    """Report the share (0 to 1) of the present chunk that is done by now."""
    if report := _report.get():
        report(share)


@final
class Pace:
    """Time left of one stage, from its mean pace since the first result.

    A continued stage begins beyond zero, so what is done before the first call took no time.
    """

    def __init__(self) -> None:
        self.began = self.first = self.last = 0.0

    def left(self, done: float, total: float, now: float) -> float | None:
        """Seconds left when `done` of `total` is done at time `now`; None while unknown."""
        if done > 0 and (self.first == 0 or done < self.last):
            self.began, self.first = now, done
        self.last = done
        if not 0 < self.first < done < total:
            return None
        return (now - self.began) * (total - done) / (done - self.first)


def duration(seconds: float) -> str:
    """`0.4 s`, `35 s`, `4 min`, `2.5 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def counted(progress: Progress, steps: int) -> Callable[[str], None]:
    """A callback that counts its calls as progress of at most `steps`."""
    calls = 0

    def step(_what: str) -> None:
        nonlocal calls
        calls = min(calls + 1, steps)
        progress(calls, steps, None)

    return step


@final
class Stopwatch:
    """Seconds spent in each named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, label: str, began: float) -> None:
        """Add the time since `began` (time.perf_counter) to `label`."""
        self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - began
