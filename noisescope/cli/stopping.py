"""How a command stops when it is asked to: Ctrl-C and SIGTERM become one exception.

A second signal ends the process at once. Python drops an exception that happens to be raised
while an object is being destroyed, so whatever shows progress asks `check`, which raises again.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import final

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@final
class Stopped(BaseException):
    """A signal, `name`, asked the command to stop."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


_asked: list[str] = []


def listen() -> None:
    """From now on the two signals stop this process' command cleanly."""
    for number in SIGNALS:
        signal.signal(number, _stop)


def check() -> None:
    """Raise Stopped where a signal asked for it before."""
    if _asked:
        raise Stopped(_asked[0])


def _stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    _asked.append(signal.Signals(number).name)
    check()
