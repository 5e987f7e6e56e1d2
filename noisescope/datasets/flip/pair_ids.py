"""What source rows state, in chunks: their pairs, or, where that is enough, only their ids.

    parsed, at = parse_chunk(rows, adapter, untouched)
    QUICK_IDS["hh_rlhf"]({"chosen": "...", "rejected": "..."})    # id, or None: parse the row

Building a pair with its turns costs several times what its id does, and a uniform flip is a
function of the id alone. A quick id is the one that the parsed pair would have; a row of any
other shape than the plain one is left to the adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.flip.plan import Parsed
from noisescope.datasets.hh_rlhf import ASIDE, LAST
from noisescope.datasets.rewrite.tables import CHUNK_ROWS
from noisescope.pairs import Pair, content_id, encoded_content_id

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.datasets import Adapter, Row, Source

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


#: The id of the one pair that a row states; None where the adapter has to read it.
QuickId = Callable[[Mapping[str, Any]], str | None]


def survey(source: Source, adapter: Adapter) -> Iterator[Parsed]:
    """All pairs of a source, in chunks, with the rows that state them."""
    rows = source.rows()
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield parse_chunk(chunk, adapter, Counter())[0]


def parse_chunk(
    chunk: Sequence[Row], adapter: Adapter, untouched: Counter[str]
) -> tuple[Parsed, list[int]]:
    """The chunk's pairs, as `load` reads them (images by content key), and for each the index of
    its row in the chunk; faults are counted."""
    from noisescope.datasets import read_pairs

    pairs: list[Pair] = []
    at: list[int] = []
    for index, row in enumerate(chunk):
        for outcome in read_pairs((row,), adapter):
            if isinstance(outcome, Pair):
                pairs.append(outcome)
                at.append(index)
            else:
                untouched[outcome.reason] += 1
    ids = [pair.pair_id or pair.content_id for pair in pairs]
    return Parsed(pairs, ids, [chunk[index].values or {} for index in at]), at


def plain_id(row: Mapping[str, Any]) -> str | None:
    """Id of a row of prompt, chosen and rejected texts without a label column."""
    prompt, chosen, rejected = row.get("prompt"), row.get("chosen"), row.get("rejected")
    if not (type(prompt) is type(chosen) is type(rejected) is str) or "label" in row:
        return None
    return _id(row, prompt, chosen, rejected)


def transcript_id(row: Mapping[str, Any]) -> str | None:
    """Id of a row of two transcripts that differ in their last turn alone."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not (type(chosen) is type(rejected) is str):
        return None
    opening, mark, response = chosen.rpartition(LAST)
    other_opening, _, other = rejected.rpartition(LAST)
    if not mark or opening != other_opening or ASIDE in response or ASIDE in other:
        return None
    prompt = _rendered(opening)
    return None if prompt is None else _id(row, prompt, response.strip(), other.strip())


def _rendered(opening: str) -> str | None:
    """The turns of an opening as `rendered` would write them; None where it has no Human turn."""
    parts = opening.split(ASIDE)
    before = parts[0]
    if len(parts) == 1 or not (before.isspace() or not before or before.startswith(LAST)):
        return None
    spoken = []
    for part in parts:
        first, *answers = part.split(LAST)
        spoken.append("Human: " + first.strip())
        for answer in answers:
            spoken.append("Assistant: " + answer.strip())
    return "\n\n".join(spoken[1:])


def _id(row: Mapping[str, Any], prompt: str, chosen: str, rejected: str) -> str | None:
    given, annotator = row.get("pair_id"), row.get("annotator")
    if not (given is None or type(given) is str) or not (
        annotator is None or type(annotator) is str
    ):
        return None
    one, other = chosen.strip(), rejected.strip()
    if not one or not other or one == other:
        return None
    if not (prompt.isascii() and chosen.isascii() and rejected.isascii()):
        try:
            f"{prompt}{chosen}{rejected}".encode()
        except UnicodeEncodeError:
            return None
    if given or annotator:
        if not f"{given}{annotator}".isascii():
            return None
        given = given and given.strip()
    return given or content_id(prompt, chosen, rejected)


#: Columns that may say which pair a row states, and by whom.
_TOLD = ("prompt", "chosen", "rejected", "pair_id", "annotator", "label")

#: How to tell a row's id at once, by the adapter's name.
QUICK_IDS: dict[str, QuickId] = {
    "columnar": plain_id,
    "trl": plain_id,
    "hh_rlhf": transcript_id,
}


def table_ids(table: pa.Table, adapter: Adapter) -> list[str] | None:
    """Ids of a slice whose rows each state one pair in text columns; None where any differs."""
    import pyarrow as pa

    quick = QUICK_IDS.get(adapter.name)
    names = [name for name in _TOLD if name in table.schema.names]
    columns = table.select(names)
    if quick is None or any(kind != pa.string() for kind in columns.schema.types):
        return None
    if adapter.name != "hh_rlhf" and _is_plain(columns):
        return list(map(encoded_content_id, *_encoded(columns)))
    plain = adapter.name == "hh_rlhf" and sorted(names) == ["chosen", "rejected"]
    told: list[str | None] = plain_ids(columns) if plain else [None] * len(table)
    odd = [at for at, name in enumerate(told) if name is None]
    for at, row in zip(odd, columns.take(odd).to_pylist() if odd else [], strict=True):
        told[at] = quick(row)
    ids = [name for name in told if name is not None]
    return ids if len(ids) == len(told) else None


def _encoded(table: pa.Table) -> Iterator[list[bytes]]:
    """UTF-8 of prompt, chosen and rejected, [3][n]."""
    import pyarrow as pa

    told = ("prompt", "chosen", "rejected")
    return (table.column(name).cast(pa.binary()).to_pylist() for name in told)


def _is_plain(table: pa.Table) -> bool:
    """Whether these are prompt, chosen and rejected alone, filled, with different sides."""
    import pyarrow.compute as pc

    if sorted(table.schema.names) != ["chosen", "prompt", "rejected"]:
        return False
    if any(column.null_count for column in table.columns):
        return False
    one, other = (pc.utf8_trim_whitespace(table.column(side)) for side in ("chosen", "rejected"))
    empty = pc.or_(pc.equal(one, ""), pc.equal(other, ""))
    return not pc.any(pc.or_(empty, pc.equal(one, other))).as_py()
