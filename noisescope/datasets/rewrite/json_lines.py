"""JSON lines rewritten, a block of them at a time; rows left alone are never taken apart.

    rewrite_lines(Path("train.jsonl"), Path("copy/train.jsonl"), change, swap_texts)

A block whose rows are objects of texts and nothing else is read by Arrow, and the rows that
`swap_texts` chooses are cut at their keys; any other block is decoded row by row for `change`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets import readers
from noisescope.datasets.adapter import swapped
from noisescope.datasets.rewrite.tables import Change, SwapTexts
from noisescope.datasets.rewrite.tokens import changed_line, object_of, opened
from noisescope.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

#: Bytes read at once: a block is what of them are whole lines.
BLOCK = 2 << 20
_NEWLINE, _BRACE = ord("\n"), ord("{")
_EMPTY = b"\xef\xbb\xbf \t\r\n"
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
#: A key and its text in a line that is known to be sound and to hold texts alone.
_TEXT = re.compile(rb"[{,][ \t\r]*(%b)[ \t\r]*:[ \t\r]*(%b)" % (_STRING, _STRING), re.DOTALL)
_SIDES = (b'"chosen"', b'"rejected"')
T = TypeVar("T")


@final
class Lines:
    """Bytes of whole lines: line i is content[bounds[i]:bounds[i + 1]], its end included."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        ends = np.flatnonzero(np.frombuffer(content, np.uint8) == _NEWLINE) + 1
        tail = [] if content.endswith(b"\n") else [len(content)]
        self.bounds: NDArray[np.int64] = np.concatenate([[0], ends, tail]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, at: int) -> bytes:
        return self.content[self.bounds[at] : self.bounds[at + 1]]

    def replaced(self, lines: dict[int, bytes]) -> bytes:
        """The content with some lines, by ascending index, replaced by others."""
        whole, pieces, at = memoryview(self.content), list[bytes | memoryview](), 0
        for index, line in lines.items():
            pieces += [whole[at : self.bounds[index]], line]
            at = self.bounds[index + 1]
        return b"".join([*pieces, whole[at:]])


def rewrite_lines(
    source: Path, target: Path, change: Change, swap_texts: SwapTexts | None = None
) -> None:
    """JSON lines: blocks of plain rows of texts by `swap_texts`, others by `change`."""
    number = 0
    with opened(source, "rb") as stream, opened(target, "wb") as out:
        read = ((lines, swap_texts and _plain(lines)) for lines in _blocks(stream, source))
        for lines, plain in _ahead(read):
            chosen = swap_texts(plain.table, number) if swap_texts and plain else None
            if plain is None or chosen is None:
                out.write(_changed(lines, number, change))
            else:
                out.write(lines.replaced({at: plain.swapped(lines[at]) for at in chosen}))
            number += len(lines)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _blocks(stream: IO[bytes], path: Path) -> Iterator[Lines]:
    """Whole lines, about BLOCK bytes at once. Raises DataError at one longer than MAX_ROW."""
    number, rest = 0, b""
    while read := stream.read(BLOCK):
        cut = read.rfind(b"\n") + 1
        if cut:
            lines = Lines(rest + read[:cut])
            _check(int(np.diff(lines.bounds).argmax()), lines, number, path)
            yield lines
            number, rest = number + len(lines), read[cut:]
        else:
            rest += read
        if len(rest) >= readers.MAX_ROW:
            _check(0, Lines(rest), number, path)
    if rest:
        yield Lines(rest)


def _check(longest: int, lines: Lines, number: int, path: Path) -> None:
    if lines.bounds[longest + 1] - lines.bounds[longest] >= readers.MAX_ROW:
        raise DataError(
            f"{path}: line {number + longest + 1:,} is longer than {readers.MAX_ROW >> 20} MiB",
            hint="Give each pair a line of its own; Parquet holds images better than JSON.",
        )


def _changed(lines: Lines, number: int, change: Change) -> bytes:
    """The lines, the first of which has this number, decoded and changed."""
    texts = [(at, lines[at]) for at in range(len(lines))]
    stated = [(at, line) for at, line in texts if line[:1] == b"{" or line.strip(_EMPTY)]
    rows = [(number + at, *object_of(line)) for at, line in stated]
    fresh = {}
    for index, new in sorted(change(rows).items()):
        at, line = stated[index]
        old = rows[index][1] or {}
        fresh[at] = b"" if new is None else changed_line(line, old, new)
    return lines.replaced(fresh)


@final
class _Plain:
    """Lines that are objects of texts alone, as a table [n], and how to swap sides in one."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.swapped = partial(swapped_line, marks=marks_of(table.schema.names))


def _plain(lines: Lines) -> _Plain | None:
    """These lines, unless some are anything else; names are those of the first."""
    first = (object_of(lines[0])[0] or {}).items()
    if not first or not all(type(value) is str for _, value in first):
        return None
    table = text_table(lines, [name for name, _ in first])
    return None if table is None else _Plain(table)


def text_table(lines: Lines, names: Sequence[str]) -> pa.Table | None:
    """JSON lines as a table [n] of text columns; None unless each is one object of these texts.

    Where this reads a line, Python's decoder reads the same texts; what it refuses, Python may
    still read (lone surrogates, repeated keys).
    """
    import pyarrow as pa
    import pyarrow.json as pj

    starts = np.frombuffer(lines.content, np.uint8)[lines.bounds[:-1]]
    if not (starts == _BRACE).all():
        return None  # each line begins an object, so n objects are one a line
    schema = pa.schema([(name, pa.string()) for name in names])
    options = pj.ParseOptions(schema, unexpected_field_behavior="error")
    whole = pj.ReadOptions(use_threads=False, block_size=len(lines.content))
    try:
        table = pj.read_json(pa.BufferReader(lines.content), whole, options)
        table.validate(full=True)  # UTF-8 is not looked at before
    except pa.ArrowException:
        return None
    return table if len(table) == len(lines) else None


def swapped_line(line: bytes, marks: Sequence[tuple[bytes, bool]] = ()) -> bytes:
    """The line of a sound object of texts with those of chosen and rejected in each other's place.

    `marks` tell what its keys are likely to look like. `recoded` would give the same bytes,
    after decoding them.
    """
    cuts = _cut(line, marks)
    if len(cuts) != 2 * len(_SIDES):
        found = {match[1]: match.span(2) for match in _TEXT.finditer(line)}
        if not all(side in found for side in _SIDES):  # written with escapes
            old = object_of(line)[0] or {}
            return changed_line(line, old, swapped(old, ("chosen", "rejected")))
        cuts = sorted(at for side in _SIDES for at in found[side])
    a, b, c, d = cuts
    return b"".join((line[:a], line[c:d], line[b:c], line[a:b], line[d:]))


def marks_of(names: Sequence[str]) -> list[tuple[bytes, bool]]:
    """What stands before each text of a line as `json.dumps` writes it, and whether it is a side.

    That is `{"a": "`, then `", "b": "` and so on; none for names that need care.
    """
    if not all(name.isascii() and name.isidentifier() for name in names):
        return []
    keys = [b'"%b"' % name.encode() for name in names]
    marks = [b'%b%b: "' % (b'", ' if at else b"{", key) for at, key in enumerate(keys)]
    return list(zip(marks, (key in _SIDES for key in keys), strict=True))


def _cut(line: bytes, marks: Sequence[tuple[bytes, bool]]) -> list[int]:
    """Where the sides' texts begin and end, by finding the keys; fewer bounds if one is not found.

    `", "NAME": "` stands in no text of a sound line: its second quote follows a space and not a
    backslash, so it ends or begins a text or a key, and only a key goes on so. With all keys
    found, each text reaches to the next key, and the last one to the last quote.
    """
    at, bounds, open_side = 0, list[int](), False
    for mark, side in marks:
        found = line.find(mark, at)
        if found < 0 or (not at and found):
            return []
        if open_side:
            bounds.append(found)
        at, open_side = found + len(mark), side
        if side:
            bounds.append(at)
    return [*bounds, line.rfind(b'"')] if open_side else bounds
