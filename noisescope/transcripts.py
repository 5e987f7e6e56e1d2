"""Ids of many plain transcripts at once: without decoding them, for whole columns of bytes.

    plain_ids(table)     # [n], None where a row has to be read by itself

A transcript is plain where its opening is what `rendered` writes of its turns: it begins with
"Human: ", and every turn begins and ends in a visible ASCII character, one space after its mark.
Then the bytes before the last mark are the prompt, and those after it the response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.hh_rlhf import ASIDE, LAST
from noisescope.pairs import encoded_content_id

if TYPE_CHECKING:
    import pyarrow as pa

Bool = NDArray[np.bool_]

#: Blank lines before each turn; the first ones are no part of the prompt.
_BEFORE = 2
_MARK = "\n\n(?:Human|Assistant):"
#: A turn that ends or begins in anything but a visible ASCII character, or is empty.
_ODD = f"[^!-~]{_MARK}|{_MARK}(?:[^ ]| [^!-~]|$)"


def plain_ids(table: pa.Table) -> list[str | None]:
    """Ids of the rows of two columns of texts, chosen and rejected; None for rows not plain."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chosen, rejected = _cut(table.column("chosen")), _cut(table.column("rejected"))
    if chosen is None or rejected is None:
        return [None] * len(table)
    (opening, said), (same, answered) = chosen, rejected
    one, other = pc.ascii_trim_whitespace(said), pc.ascii_trim_whitespace(answered)
    plain = _plain_openings(opening, same) & _plain_responses(one, other)
    plain &= ~(_holds_turn(said) | _holds_turn(answered))  # its blank lines are trimmed off
    texts = (side.cast(pa.binary()).to_pylist() for side in (opening, one, other))
    return [
        encoded_content_id(before[_BEFORE:], a, b) if fits else None
        for fits, before, a, b in zip(plain.tolist(), *texts, strict=True)
    ]


def _cut(column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array] | None:
    """(openings, responses) [n], cut at the last answer; None where some row has none."""
    import pyarrow.compute as pc

    cut = pc.split_pattern(column, LAST, max_splits=1, reverse=True).combine_chunks()
    if cut.null_count or not pc.all(pc.equal(pc.list_value_length(cut), 2)).as_py():
        return None
    return pc.list_element(cut, 0), pc.list_element(cut, 1)


def _plain_openings(opening: pa.Array, same: pa.Array) -> Bool:
    """Which openings are both sides' own and stand as `rendered` would write them, [n]."""
    import pyarrow.compute as pc

    begun = pc.and_(pc.equal(opening, same), pc.starts_with(opening, f"{ASIDE} "))
    odd = pc.match_substring_regex(opening, _ODD)
    return _bools(pc.and_not(begun, odd)) & _visible_ends(opening, _BEFORE)


def _plain_responses(one: pa.Array, other: pa.Array) -> Bool:
    """Which responses, already without ASCII blanks around, differ and end visibly, [n]."""
    import pyarrow.compute as pc

    return _bools(pc.not_equal(one, other)) & _visible_ends(one) & _visible_ends(other)


def _holds_turn(responses: pa.Array) -> Bool:
    """In which responses somebody speaks again, [n]."""
    import pyarrow.compute as pc

    return _bools(pc.match_substring(responses, ASIDE))


def _visible_ends(texts: pa.Array, begin: int = 0) -> Bool:
    """Which texts, from this byte on, begin and end in a visible ASCII character, [n]."""
    _, offsets, data = texts.buffers()
    if data is None or not data.size:
        return np.zeros(len(texts), bool)
    at = np.frombuffer(offsets, np.int32)[texts.offset :][: len(texts) + 1]
    content = np.frombuffer(data, np.uint8)
    visible = (content > ord(" ")) & (content < 0x7F)  # DEL
    first, last = at[:-1] + begin, at[1:] - 1
    found: Bool = visible[np.minimum(first, last)] & visible[last] & (first <= last)
    return found


def _bools(array: pa.Array) -> Bool:
    return np.asarray(array.to_numpy(zero_copy_only=False), bool)
