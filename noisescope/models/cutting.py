"""Cut a prompt that is too long: inside its oldest turns, never its beginning or its system turn.

What stays, in this order of importance: bos, tools and system turn; the end of the conversation,
with the marks between its turns; as much of the older turns as there is room for. Whole exchanges
go first, so that the turn after the system turn has the role it had before.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from noisescope.pairs import Message

#: Roles of the turns that are kept whole where they leave room for the rest.
KEPT = ("tools", "system", "developer")


def kept_tokens(
    tokenizer: Any, text: str, ids: list[int], turns: Sequence[Message], room: int
) -> list[int]:
    """At most `room` of the tokens `ids` of a prompt's `text`; `turns` are those it renders."""
    excess = len(ids) - room
    spans = _token_spans(tokenizer, text, ids, turns)
    removed: set[int] = set()
    for start, end in _oldest_first(turns, spans, excess):
        removed.update(range(start, min(end, start + excess - len(removed))))
        if len(removed) >= excess:
            break
    if len(removed) == excess:
        return [token for place, token in enumerate(ids) if place not in removed]
    head = min(_head(turns, spans), room // 2)  # the marks alone, or the system turn, are too long
    return ids[:head] + ids[len(ids) - (room - head) :]


def _oldest_first(
    turns: Sequence[Message], spans: Sequence[tuple[int, int] | None], excess: int
) -> list[tuple[int, int]]:
    """Ranges of tokens to remove, in this order: whole exchanges, then the text of what is left."""
    known = [
        (turn.role, span)
        for turn, span in zip(turns, spans, strict=True)
        if span is not None and turn.role not in KEPT
    ]
    if not known:
        return []
    first_role, (start, _) = known[0]
    gone = 0
    for index, (role, (begin, _)) in enumerate(known):
        if role == first_role and begin - start <= excess:
            gone = index
    whole = [(start, known[gone][1][0])] if gone else []
    return whole + [span for _, span in known[gone:]]


def _head(turns: Sequence[Message], spans: Sequence[tuple[int, int] | None]) -> int:
    """Where the first turn that may be cut begins."""
    for turn, span in zip(turns, spans, strict=True):
        if span is not None and turn.role not in KEPT:
            return span[0]
    return 0


def _token_spans(
    tokenizer: Any, text: str, ids: list[int], turns: Sequence[Message]
) -> list[tuple[int, int] | None]:
    """The tokens [start, end) wholly inside the text of each turn; None where it is not found."""
    if not turns or not tokenizer.is_fast:
        return [None] * len(turns)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if found["input_ids"] != ids:
        return [None] * len(turns)
    starts, ends = zip(*found["offset_mapping"], strict=True)
    spans: list[tuple[int, int] | None] = []
    limit = len(text)
    for turn in reversed(turns):  # from the end: a template's own words come first
        content = turn.content.strip()
        at = text.rfind(content, 0, limit) if content else -1
        if at < 0:
            spans.append(None)
            continue
        limit = at
        spans.append((bisect_left(starts, at), bisect_right(ends, at + len(content))))
    return spans[::-1]
