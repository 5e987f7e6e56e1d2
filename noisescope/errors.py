"""Every error noisescope raises on purpose.

    NoisescopeError
    ├── UsageError      the command or its arguments are wrong
    ├── DataError       the dataset cannot be read, or has too few preferences
    ├── ModelError      the model cannot be loaded, or is refused
    ├── RunError        a run directory is unusable, busy, or belongs to another plan
    └── EvidenceError   the margins support no verdict (too few pairs, chance level)

A message states what happened and where; `hint` is what to do next, with the command. The command
line prints both and exits with 2; only `--debug` shows a traceback.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import final


class NoisescopeError(Exception):
    """Base of all deliberate errors: `message` (what, where) and `hint` (what to do next)."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


@final
class UsageError(NoisescopeError):
    """The command or its arguments are wrong."""


@final
class DataError(NoisescopeError):
    """The dataset cannot be read, or has too few preferences."""


@final
class ModelError(NoisescopeError):
    """The model cannot be loaded, or is refused for safety."""


@final
class RunError(NoisescopeError):
    """A run directory is unusable, busy, or belongs to another dataset or model."""


@final
class EvidenceError(NoisescopeError):
    """The margins support no verdict."""


def first_five(items: Sequence[str]) -> str:
    """Join the first five of `items`, and count the rest."""
    more = len(items) - 5
    return "; ".join(items[:5]) + (f"; and {more:,} more" if more > 0 else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def out_of_range(
    values: Mapping[str, float | None],
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> list[str]:
    """One message for each of `values` (by flag) that is not at least `low`, above `above` and
    below `below`. None is not set, NaN is outside every range."""
    if above > -math.inf:
        wanted = f"above {above:g} and finite"
    elif below < math.inf:
        wanted = f"a share in [{low:g}, {below:g})"
    else:
        wanted = f"at least {low:g}" if low else "0 or more"
    return [
        f"{flag} must be {wanted}, not {value:g}"
        for flag, value in values.items()
        if value is not None and not (low <= value < below and above < value)
    ]


def not_among(flag: str, value: str, choices: Iterable[str]) -> list[str]:
    """A message if `value` is none of `choices`."""
    known = list(choices)
    if value in known:
        return []
    close = get_close_matches(value, known, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return [f"{flag} must be one of {', '.join(known)}, not {value}{meant}"]


def share_hint(flag: str, text: str, most: float) -> str | None:
    """A hint if `text` is a percentage of what may be at most the share `most`."""
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        return None
    if not ("%" in text or number > 1) or not 0 <= number / 100 <= most:
        return None
    return f"Shares are parts of 1: {f'{flag} ' if flag else ''}{number / 100:g}"


def refuse(faults: Sequence[str], hint: str) -> None:
    """Raise one UsageError for all `faults`, if there are any."""
    if faults:
        raise UsageError("; ".join(faults), hint=hint)
