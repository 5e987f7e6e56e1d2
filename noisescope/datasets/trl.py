"""TRL's preference shapes: standard or conversational, explicit or implicit prompt.

    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    {"prompt": [{"role": ..., "content": ...}], "chosen": [...], "rejected": [...]}
    the same without "prompt": the two sides then begin with it

Message lists that repeat the prompt's turns are understood; `tools` and
`chat_template_kwargs` are tolerated.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

from noisescope.datasets.adapter import (
    RawRow,
    RowFault,
    has,
    stated,
    swapped,
    text,
    texts,
    unexpected,
)
from noisescope.datasets.conversations import messages, rendered, split
from noisescope.datasets.hh_rlhf import is_transcript
from noisescope.pairs import Message, Modality, Pair

SIDES = ("chosen", "rejected")
#: Columns that mean the sides are not text alone, or that the rows are our own format.
_IMAGES = ("image", "images")
_OURS = ("annotator", "pair_id", "label")


@final
@dataclass(frozen=True)
class TRL:
    """All of TRL's text preference shapes, told apart row by row."""

    name: str = "trl"
    modality: Modality = "text"
    columns: tuple[str, ...] = SIDES
    optional: tuple[str, ...] = ("prompt", "annotator", "pair_id", "tools", "chat_template_kwargs")

    def matches(self, columns: Collection[str], rows: Sequence[RawRow]) -> bool:
        if not has(columns, SIDES) or any(name in columns for name in _IMAGES):
            return False
        sides = [row.get(column) for row in rows for column in SIDES]
        if any(isinstance(side, list) for side in sides):
            return True
        if "prompt" in columns:
            plain = any(isinstance(side, str) for side in sides)
            return plain and not any(name in columns for name in _OURS)
        return any(isinstance(side, str) for side in sides) and not any(map(is_transcript, sides))

    def parse(self, row: RawRow) -> list[Pair]:
        structured = any(isinstance(row.get(side), (list, tuple)) for side in SIDES)
        return [conversational(row) if structured else _standard(row)]

    def flip(self, row: RawRow) -> dict[str, Any]:
        return swapped(row, SIDES)


def conversational(row: RawRow) -> Pair:
    """The pair of a row whose sides are message lists. Raises RowFault."""
    if any(row.get(side) is None for side in SIDES):
        raise unexpected(row, "a list of messages", *SIDES)
    chosen, rejected = (messages(row, side) for side in SIDES)
    prompt = row.get("prompt")
    turns: tuple[Message, ...] = ()
    if isinstance(prompt, str):
        turns = (Message("user", prompt),)
    elif prompt is not None:
        turns = messages(row, "prompt")
    if turns and not (_begins(chosen, turns) and _begins(rejected, turns)):
        repeats = any(turn.role != "assistant" for side in (chosen, rejected) for turn in side[:1])
        if not (repeats and isinstance(prompt, str)):
            chosen, rejected = turns + chosen, turns + rejected
    common, one, other = split(chosen, rejected)
    if not common:
        raise RowFault("unreadable", "no prompt before the response")
    return stated(row, rendered(common), one, other, common)


def _begins(side: Sequence[Message], turns: Sequence[Message]) -> bool:
    return tuple(side[: len(turns)]) == tuple(turns)


def _standard(row: RawRow) -> Pair:
    chosen, rejected = texts(row, *SIDES)
    if "prompt" not in row:
        prompt, chosen, rejected = _implicit(chosen, rejected)
        return stated(row, prompt, chosen, rejected)
    prompt = row["prompt"]
    if isinstance(prompt, list):
        turns = messages(row, "prompt")
        return stated(row, rendered(turns), chosen, rejected, turns)
    return stated(row, text(row, "prompt"), chosen, rejected)


def _implicit(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split off the common words; each side keeps at least one."""
    sides = [re.findall(r"\s*\S+", side.rstrip()) for side in (chosen, rejected)]
    limit = min(map(len, sides)) - 1
    common = 0
    while common < limit and sides[0][common] == sides[1][common]:
        common += 1
    length = sum(map(len, sides[0][:common]))
    return chosen[:length], chosen[length:].strip(), rejected[length:].strip()
