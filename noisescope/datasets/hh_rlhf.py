"""HH-RLHF (`Anthropic/hh-rlhf`): `chosen` and `rejected` are whole transcripts.

"\\n\\nHuman: ...\\n\\nAssistant: ...\\n\\nHuman: ...\\n\\nAssistant: <the response>"
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

from noisescope.datasets.adapter import RawRow, RowFault, has, shortened, stated, swapped, texts
from noisescope.datasets.conversations import rendered, split
from noisescope.pairs import Message, Modality, Pair

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
LAST, ASIDE = "\n\nAssistant:", "\n\nHuman:"
_ROLES = {"Human": "user", "Assistant": "assistant"}


@final
@dataclass(frozen=True)
class HHRLHF:
    """Two transcripts that share their prompt; an `annotator` column is used where present."""

    name: str = "hh_rlhf"
    modality: Modality = "text"
    columns: tuple[str, ...] = ("chosen", "rejected")
    optional: tuple[str, ...] = ("annotator", "pair_id")

    def matches(self, columns: Collection[str], rows: Sequence[RawRow]) -> bool:
        if not has(columns, self.columns) or "prompt" in columns:
            return False
        return any(is_transcript(row.get(column)) for row in rows for column in self.columns)

    def parse(self, row: RawRow) -> list[Pair]:
        turns, chosen, rejected = split_transcripts(*texts(row, "chosen", "rejected"))
        if not any(turn.role == "user" for turn in turns):
            raise RowFault("unreadable", "no Human turn before the response")
        return [stated(row, rendered(turns), chosen, rejected, turns)]

    def flip(self, row: RawRow) -> dict[str, Any]:
        return swapped(row, ("chosen", "rejected"))


def split_transcripts(chosen: str, rejected: str) -> tuple[tuple[Message, ...], str, str]:
    """Return (prompt turns, chosen response, rejected response). Raises RowFault.

    Nearly all transcripts differ in their last turn alone: those are cut there, which is what
    `split` would do with the parsed turns, at half the cost.
    """
    opening, mark, response = chosen.rpartition(LAST)
    other_opening, _, other = rejected.rpartition(LAST)
    if mark and opening == other_opening and not (ASIDE in response or ASIDE in other):
        return tuple(turns_of(opening, "chosen")), response.strip(), other.strip()
    return split(turns_of(chosen, "chosen"), turns_of(rejected, "rejected"))


def is_transcript(side: object) -> bool:
    """Whether a side reads as two or more spoken turns."""
    return isinstance(side, str) and len(_SPEAKER.split(side, maxsplit=2)) > 3


def turns_of(transcript: str, column: str) -> list[Message]:
    """Turns of a transcript. Raises RowFault where it does not open with a speaker."""
    opening, *pieces = _SPEAKER.split(transcript)
    if opening.strip() or not pieces:
        raise RowFault("unreadable", f"{column} is no transcript: {shortened(transcript)!r}")
    return [
        Message(_ROLES[speaker], content.strip())
        for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]
