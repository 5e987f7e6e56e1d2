"""How long work reports what it is doing: a reporter, its stages, and the seconds they took."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
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


@final
class Stopwatch:
    """Seconds spent in each named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, label: str, began: float) -> None:
        """Add the time since `began` (time.perf_counter) to `label`."""
        self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - began
