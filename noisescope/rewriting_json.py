"""The JSON half of `rewriting`: lines, or an array of rows; tokens keep their bytes."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from json.scanner import make_scanner
from pathlib import Path
from typing import IO, Any, cast

from noisescope.datasets import readers
from noisescope.datasets.adapter import swapped
from noisescope.errors import DataError
from noisescope.rewriting_tables import CHUNK_ROWS, Change, Decoded, SwapTexts, text_table

BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_BLANK = " \t\r\n"
_SPACE = re.compile(f"[{_BLANK}]*")
_decode = json.JSONDecoder().raw_decode
_EMPTY = b"\xef\xbb\xbf \t\r\n"
_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
#: A key and its text in a line that is known to be sound and to hold texts alone.
_TEXT = re.compile(rb"[{,][ \t\r]*(%b)[ \t\r]*:[ \t\r]*(%b)" % (_STRING, _STRING), re.DOTALL)
#: Bytes of lines read at once.
_READ = 1 << 20
#: `raw_decode` without its frame: every line passes here. StopIteration where no value begins.
_scan = make_scanner(cast(Any, json.JSONDecoder()))


@contextmanager
def opened(path: Path, mode: str) -> Iterator[IO[bytes]]:
    """A file, through gzip where its name says so; no time stamp, for equal bytes each time."""
    if not path.name.lower().endswith(".gz"):
        with path.open(mode) as plain:
            yield plain
    else:
        with path.open(mode) as raw, gzip.GzipFile("", mode, 1, raw, mtime=0) as zipped:
            yield cast(IO[bytes], zipped)


def rewrite_lines(
    source: Path, target: Path, change: Change, swap_texts: SwapTexts | None = None
) -> None:
    """JSON lines: chunks of plain rows of texts by `swap_texts`, others by `change`."""
    with opened(source, "rb") as stream, opened(target, "wb") as out:
        number = 0
        for lines in _chunks(stream, source):
            count = len(lines)
            if swap_texts is None or not _swapped(lines, number, swap_texts):
                _changed(lines, number, change)
            out.writelines(lines)
            number += count


def _chunks(stream: IO[bytes], path: Path) -> Iterator[list[bytes]]:
    """Lines with their ends, CHUNK_ROWS at once. Raises DataError at one longer than MAX_ROW."""
    number, rest, waiting = 0, b"", list[bytes]()
    while read := stream.read(_READ):
        *lines, rest = (rest + read).split(b"\n")
        sizes = [*(len(line) + 1 for line in lines), len(rest)]
        if max(sizes) >= readers.MAX_ROW:
            at = number + len(waiting) + sizes.index(max(sizes)) + 1
            raise DataError(
                f"{path}: line {at:,} is longer than {readers.MAX_ROW >> 20} MiB",
                hint="Give each pair a line of its own; Parquet holds images better than JSON.",
            )
        waiting += [line + b"\n" for line in lines]
        while len(waiting) >= CHUNK_ROWS:
            yield waiting[:CHUNK_ROWS]
            waiting, number = waiting[CHUNK_ROWS:], number + CHUNK_ROWS
    if waiting or rest:
        yield [*waiting, rest] if rest else waiting


def _changed(lines: list[bytes], number: int, change: Change) -> None:
    """Change the lines, the first of which has this number, in place."""
    stated = [at for at, line in enumerate(lines) if line[:1] == b"{" or line.strip(_EMPTY)]
    rows = [(number + at, *_object(lines[at])) for at in stated]
    for index, new in change(rows).items():
        at, old = stated[index], rows[index][1] or {}
        lines[at] = b"" if new is None else _changed_line(lines[at], old, new)


def _swapped(lines: list[bytes], number: int, swap_texts: SwapTexts) -> bool:
    """Swap sides in lines of plain texts in place, unless they are anything else."""
    keys = (_object(lines[0])[0] or {}).items()
    if not keys or not all(type(value) is str for _, value in keys):
        return False
    table = text_table(lines, [name for name, _ in keys])
    chosen = None if table is None else swap_texts(table, number)
    if chosen is None:
        return False
    for at in chosen:
        lines[at] = swapped_line(lines[at])
    return True


def swapped_line(line: bytes) -> bytes:
    """The line of a sound object of texts with those of chosen and rejected in each other's place.

    `_recoded` would give the same bytes, after decoding them.
    """
    spans = {match[1]: match.span(2) for match in _TEXT.finditer(line)}
    if b'"chosen"' not in spans or b'"rejected"' not in spans:  # written with escapes
        old = _object(line)[0] or {}
        return _changed_line(line, old, swapped(old, ("chosen", "rejected")))
    (a, b), (c, d) = sorted((spans[b'"chosen"'], spans[b'"rejected"']))
    return b"".join((line[:a], line[c:d], line[b:c], line[a:b], line[d:]))


def _object(line: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        text = line.decode("utf-8")
        begin = 0 if text[:1] == "{" else _after_space(text, int(text.startswith(BOM)))
        value, end = _scan(text, begin)
        if end != len(text) and _after_space(text, end) != len(text):
            raise ValueError(f"Extra data: character {end}")
    except StopIteration:
        return None, "not valid JSON (Expecting value)"
    except (ValueError, RecursionError) as error:
        return None, f"not valid JSON ({error})"
    return (value, "") if isinstance(value, dict) else (None, "not a JSON object")


def _changed_line(line: bytes, old: Mapping[str, Any], new: Mapping[str, Any]) -> bytes:
    text = line.decode("utf-8")
    begin, end = text.index("{"), text.rindex("}") + 1
    return (text[:begin] + _recoded(text, begin, end, old, new) + text[end:]).encode()


def rewrite_json(
    source: Path, target: Path, change: Change, swap_texts: SwapTexts | None = None
) -> None:
    """A JSON array of rows, or an object that holds one; JSON lines under the same ending."""
    with opened(source, "rb") as stream:
        first = next((line for line in readers.bounded_lines(stream, source) if line.strip()), b"")
    if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") and _object(first)[0] is not None:
        rewrite_lines(source, target, change, swap_texts)
        return
    with opened(source, "rb") as stream:
        text = readers.bounded_read(stream, source).decode("utf-8")
    spans = list(_items(text, _array_start(text, source)))
    values = [_decode(text, begin)[0] for begin, _ in spans]
    rows: list[Decoded] = [
        (number, value, "") if isinstance(value, dict) else (number, None, "not a JSON object")
        for number, value in enumerate(values)
    ]
    with opened(target, "wb") as out:
        out.write(_spliced(text, spans, values, change(rows)).encode())


def _spliced(
    text: str,
    spans: Sequence[tuple[int, int]],
    values: Sequence[Any],
    changes: Mapping[int, Mapping[str, Any] | None],
) -> str:
    """`text` with the values at `spans` changed; one that goes takes the comma before it along."""
    if not spans:
        return text
    pieces, at, kept = [text[: spans[0][0]]], spans[0][0], False
    for index, (begin, end) in enumerate(spans):
        new = changes.get(index, values[index])
        if new is not None:
            pieces.append(text[at:begin] if kept else "")
            same = index not in changes
            pieces.append(
                text[begin:end] if same else _recoded(text, begin, end, values[index], new)
            )
            kept = True
        at = end
    return "".join([*pieces, text[at:]])


def _array_start(text: str, source: Path) -> int:
    """Where the one array of rows begins: at the top, or as the only array of an object."""
    begin = _after_space(text, 1 if text.startswith(BOM) else 0)
    if text[begin] == "{":
        arrays = [at for _, at, _ in _members(text, begin) if text[at] == "["]
        if len(arrays) == 1:
            return arrays[0]
    if text[begin] != "[":
        raise DataError(f"{source}: holds no single JSON array of rows")
    return begin


def _after_space(text: str, at: int) -> int:
    if at < len(text) and text[at] not in _BLANK:
        return at
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _members(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """(key, begin, end) of each value of the JSON object that begins at `at`."""
    at = _after_space(text, at + 1)
    while text[at] != "}":
        key, at = _decode(text, at)
        begin = at + 2 if text[at : at + 2] == ": " else _after_space(text, at) + 1
        begin = _after_space(text, begin)
        _, end = _decode(text, begin)
        yield key, begin, end
        at = _after_space(text, end)
        at = _after_space(text, at + 1) if text[at] == "," else at


def _items(text: str, at: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of each element of the JSON array that begins at `at`."""
    at = _after_space(text, at + 1)
    while text[at] != "]":
        _, end = _decode(text, at)
        yield at, end
        at = _after_space(text, end)
        at = _after_space(text, at + 1) if text[at] == "," else at


def _recoded(text: str, begin: int, end: int, old: Any, new: Any) -> str:
    """JSON of `new` made from the tokens of text[begin:end], which is JSON of `old`."""
    if isinstance(old, dict) and isinstance(new, Mapping) and old.keys() == new.keys():
        spans: dict[Any, tuple[int, int]] = {key: (a, b) for key, a, b in _members(text, begin)}
        values: Mapping[Any, Any] = new
        before: Mapping[Any, Any] = old
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        spans = dict(enumerate(_items(text, begin)))
        values, before = dict(enumerate(new)), dict(enumerate(old))
    else:
        return json.dumps(new, ensure_ascii=text.isascii())
    taken = origins(before, values)
    pieces, at = [], begin
    for key in sorted(taken, key=lambda key: spans[key]):
        start, stop = spans[key]
        origin = taken[key]
        if origin is None:
            piece = _recoded(text, start, stop, before[key], values[key])
        else:
            piece = text[slice(*spans[origin])]
        pieces += [text[at:start], piece]
        at = stop
    return "".join([*pieces, text[at:end]])


def origins(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> dict[Any, Any]:
    """For each key whose value changed: the changed key it now takes its value from, or None."""
    changed = [key for key in old if not _same(old[key], new[key])]
    free = list(changed)
    origins: dict[Any, Any] = {}
    for key in changed:
        origin = next((other for other in free if _same(old[other], new[key])), None)
        if origin is not None:
            free.remove(origin)
        origins[key] = origin
    return origins


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))
