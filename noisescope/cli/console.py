"""What every command shares: consoles, progress bars, and text that is safe to print.

Dataset text is untrusted: control characters (escape sequences among them) are replaced before
they reach a terminal, and rich never interprets markup inside it. rich is imported when the
first line is printed: most of the time of `--help` would be spent on it.
"""

from __future__ import annotations

import json
import signal
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from types import FrameType
from typing import TYPE_CHECKING, Any, final

from noisescope.progress import Pace
from noisescope.progress import duration as duration
from noisescope.storage.printable import one_line, printable
from noisescope.storage.redact import masked

if TYPE_CHECKING:
    from rich.console import Console

    from noisescope.progress import Progress

#: Keys of JSON objects whose values are commands.
COMMANDS = ("next", "command")
#: Seconds before the first line on the time left in a log, and between further ones.
FIRST, BETWEEN = 3, 10
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@final
class Stopped(BaseException):
    """Raised when a signal (`name`) interrupts the command."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


_received: list[str] = []


def listen() -> None:
    """Stop the command cleanly on SIGINT or SIGTERM from now on."""
    for number in SIGNALS:
        signal.signal(number, _stop)


def check() -> None:
    """Raise Stopped if a signal was received."""
    if _received:
        raise Stopped(_received[0])


def interrupted() -> bool:
    """Whether a signal was received."""
    return bool(_received)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    _received.append(signal.Signals(number).name)
    check()


@final
class Stream:
    """One of the process' two streams, as a rich console that is made when first needed."""

    def __init__(self, *, stderr: bool) -> None:
        self.stderr = stderr

    @cached_property
    def console(self) -> Console:
        """The console; nothing printed is highlighted by rich's own guess."""
        from rich.console import Console

        return Console(stderr=self.stderr, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `rich.console.Console.print` does."""
        self.console.print(*objects, **options)


#: Results; stays clean for pipes.
OUT = Stream(stderr=False)
#: Progress and chatter.
ERR = Stream(stderr=True)


def short(text: str, width: int) -> str:
    """Cut `text` to one printable line of at most `width` characters."""
    line = one_line(text)
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def print_lines(**lines: str) -> None:
    """Results in lines that are not wrapped, so that they can be copied: `next  noisescope ...`."""
    from rich.text import Text

    width = max(map(len, lines)) + 2
    for label, value in lines.items():
        line = Text(f"{label:{width}}", style="bold") + Text(printable(masked(value)))
        OUT.print(line, soft_wrap=True)


def print_note(text: str) -> None:
    """One line of chatter on stderr."""
    from rich.text import Text

    ERR.print(Text(masked(text)), soft_wrap=True)


def print_error(message: str, hint: str | None) -> None:
    """An error on stderr: what happened, then what to type next."""
    from rich.text import Text

    ERR.print(Text("error: ", style="bold red") + Text(safe_block(masked(message))), soft_wrap=True)
    if hint:
        ERR.print(Text(safe_block(masked(hint))), soft_wrap=True)


def safe_block(text: str) -> str:
    """Make `text` printable line by line."""
    return "\n".join(printable(line) for line in text.splitlines())


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout; NaN and infinities become null, secrets in commands stars."""
    safe = {
        key: masked(text) if key in COMMANDS and isinstance(text, str) else text
        for key, text in value.items()
    }
    print(json_text(finite(safe)))


def json_text(value: Any) -> str:
    """JSON that a terminal shows as it is: control and format characters are written \\uXXXX."""
    text = json.dumps(value, default=str, ensure_ascii=False, allow_nan=False)
    for character in set(text):
        if unicodedata.category(character) in ("Cc", "Cf", "Cs"):
            text = text.replace(character, json.dumps(character)[1:-1])
    return text


def finite(value: Any) -> Any:
    """`value` with every non-finite float replaced by None, recursively."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return None
    return value


@final
class Terminal:
    """Shows an audit's stages on stderr: a bar with ETA on a terminal, sparse lines elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def note(self, text: str) -> None:
        """One line of chatter."""
        if not self.quiet:
            print_note(printable(text))

    @contextmanager
    def stage(self, label: str) -> Iterator[Progress]:
        """A callback (done, total, note) that draws one bar labelled `label`."""
        if self.quiet:
            yield lambda done_work, total_work, note: check()
        elif ERR.console.is_terminal:
            with _bar(label) as advance:
                yield advance
        else:
            yield self._lines(label)

    def _lines(self, label: str) -> Progress:
        """Progress for logs: the time left after FIRST seconds, then every BETWEEN."""
        last, between, pace = time.monotonic(), FIRST, Pace()

        def advance(done_work: float, total_work: float, note: str | None) -> None:
            nonlocal last, between
            check()
            now = time.monotonic()
            if note:
                self.note(note)
            left = pace.left(done_work, total_work, now)
            if now - last >= between and left is not None:
                last, between = now, BETWEEN
                self.note(f"{label}: {done_work / total_work:.0%}, about {duration(left)} left")

        return advance


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    """A bar with the time left; without a number of steps, one that only moves."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[share]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    pace = Pace()
    with Progress(*columns, console=ERR.console, transient=True) as progress:
        task = progress.add_task(label, total=None, share="", left="")

        def advance(done_work: float, total_work: float, note: str | None) -> None:
            check()
            left = pace.left(done_work, total_work, time.monotonic())
            progress.update(
                task,
                completed=done_work,
                total=total_work,
                share=f"{done_work / total_work:.0%}" if total_work else "",
                left="" if left is None else f"about {duration(left)} left",
            )
            if note:
                progress.console.print(Text(printable(note)))

        yield advance
