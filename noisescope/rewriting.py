"""Copy a data file row by row, changing some rows and no other byte.

    rewrite(Path("train.jsonl.gz"), Path("copy/train.jsonl.gz"), change)

`change` gets a chunk of decoded rows and returns the new values of those that change, by index;
None takes the row away.
Rows left alone keep their bytes; a changed row reuses its own tokens wherever values only
trade places, so that undoing a change restores the row exactly, spacing and escapes included.
Everything streams in constant memory except a JSON array, which is held whole.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from json.scanner import make_scanner
from pathlib import Path
from typing import IO, Any, cast, final

from noisescope.datasets.readers import MAX_ROW, bounded_lines, bounded_read, suffix
from noisescope.errors import DataError
from noisescope.rewriting_tables import (
    CHUNK_ROWS,
    Change,
    ChangeTable,
    Decoded,
    rewrite_arrow,
    rewrite_parquet,
)

_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_BLANK = " \t\r\n"
_SPACE = re.compile(f"[{_BLANK}]*")
_decode = json.JSONDecoder().raw_decode
_EMPTY = b"\xef\xbb\xbf \t\r\n"
#: `raw_decode` without its frame: every line passes here. StopIteration where no value begins.
_scan = make_scanner(cast(Any, json.JSONDecoder()))


def rewrite(
    source: Path, target: Path, change: Change, change_table: ChangeTable = lambda *_: None
) -> None:
    """Copy `source` to `target` with `change` applied. Raises DataError for a damaged file."""
    writers: dict[str, Callable[[Path, Path, Change], None]] = {
        ".parquet": partial(rewrite_parquet, change_table=change_table),
        ".arrow": partial(rewrite_arrow, change_table=change_table),
        ".jsonl": _lines,
        ".ndjson": _lines,
        ".json": _json,
        ".csv": _csv,
        ".tsv": _csv,
    }
    writers[suffix(source).removesuffix(".gz")](source, target, change)


@contextmanager
def _open(path: Path, mode: str) -> Iterator[IO[bytes]]:
    """A file, through gzip where its name says so; no time stamp, for equal bytes each time."""
    if not path.name.lower().endswith(".gz"):
        with path.open(mode) as plain:
            yield plain
    else:
        with path.open(mode) as raw, gzip.GzipFile("", mode, 1, raw, mtime=0) as zipped:
            yield cast(IO[bytes], zipped)


def _lines(source: Path, target: Path, change: Change) -> None:
    with _open(source, "rb") as stream, _open(target, "wb") as out:
        number = 0
        rest = bounded_lines(stream, source)
        while lines := list(islice(rest, CHUNK_ROWS)):
            stated = [at for at, line in enumerate(lines) if line[:1] == b"{" or line.strip(_EMPTY)]
            rows = [(number + at, *_object(lines[at])) for at in stated]
            number += len(lines)
            for index, new in change(rows).items():
                at, old = stated[index], rows[index][1] or {}
                lines[at] = b"" if new is None else _changed_line(lines[at], old, new)
            out.writelines(lines)


def _object(line: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        text = line.decode("utf-8")
        begin = 0 if text[:1] == "{" else _after_space(text, int(text.startswith(_BOM)))
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


def _json(source: Path, target: Path, change: Change) -> None:
    """A JSON array of rows, or an object that holds one; JSON lines under the same ending."""
    with _open(source, "rb") as stream:
        first = next((line for line in bounded_lines(stream, source) if line.strip()), b"")
    if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") and _object(first)[0] is not None:
        _lines(source, target, change)
        return
    with _open(source, "rb") as stream:
        text = bounded_read(stream, source).decode("utf-8")
    spans = list(_items(text, _array_start(text, source)))
    values = [_decode(text, begin)[0] for begin, _ in spans]
    rows: list[Decoded] = [
        (number, value, "") if isinstance(value, dict) else (number, None, "not a JSON object")
        for number, value in enumerate(values)
    ]
    with _open(target, "wb") as out:
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
    begin = _after_space(text, 1 if text.startswith(_BOM) else 0)
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
    origins = _origins(before, values)
    pieces, at = [], begin
    for key in sorted(origins, key=lambda key: spans[key]):
        start, stop = spans[key]
        origin = origins[key]
        if origin is None:
            piece = _recoded(text, start, stop, before[key], values[key])
        else:
            piece = text[slice(*spans[origin])]
        pieces += [text[at:start], piece]
        at = stop
    return "".join([*pieces, text[at:end]])


def _origins(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> dict[Any, Any]:
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


@final
class _Tap:
    """Lines of a stream, remembering those that a reader took for its latest record."""

    def __init__(self, stream: Iterator[str]) -> None:
        self.stream = stream
        self.taken: list[str] = []

    def __iter__(self) -> _Tap:
        return self

    def __next__(self) -> str:
        line = next(self.stream)
        self.taken.append(line)
        return line

    def record(self) -> str:
        taken, self.taken = "".join(self.taken), []
        return taken


def _csv(source: Path, target: Path, change: Change) -> None:
    csv.field_size_limit(MAX_ROW)
    delimiter = "\t" if source.name.lower().removesuffix(".gz").endswith(".tsv") else ","
    with _open(source, "rb") as stream, _open(target, "wb") as out:
        text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
        tap = _Tap(bounded_lines(text, source))
        reader = csv.reader(tap, delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        if header:
            header[0] = header[0].removeprefix(_BOM).strip('"')
        out.write(tap.record().encode("utf-8", "surrogateescape"))
        records = _records(reader, tap, header)
        number = 0
        while chunk := list(islice(records, CHUNK_ROWS)):
            stated = [at for at, (_, values, trouble) in enumerate(chunk) if values or trouble]
            rows = [(number + i, *chunk[at][1:]) for i, at in enumerate(stated)]
            number += len(rows)
            raws = [raw for raw, _, _ in chunk]
            for index, new in change(rows).items():
                at = stated[index]
                old = chunk[at][1] or {}
                raws[at] = "" if new is None else _changed_record(raws[at], old, new, delimiter)
            out.writelines(raw.encode("utf-8", "surrogateescape") for raw in raws)


def _records(
    reader: Iterator[list[str]], tap: _Tap, header: list[str]
) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    """(raw text, values or None, trouble) of each record; a blank line has neither."""
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            if rest := tap.record():
                yield rest, None, ""
            return
        except csv.Error as error:
            yield tap.record(), None, f"not valid CSV ({error})"
            continue
        raw = tap.record()
        if not fields:
            yield raw, None, ""
        elif len(fields) != len(header):
            yield raw, None, f"{len(fields)} fields under {len(header)} columns"
        else:
            yield raw, dict(zip(header, fields, strict=True)), ""


def _changed_record(
    raw: str, old: Mapping[str, str], new: Mapping[str, Any], delimiter: str
) -> str:
    field = re.compile(rf'"(?:[^"]|"")*"|[^{re.escape(delimiter)}\r\n]*')
    spans, at = {}, 0
    for name in old:
        match = field.match(raw, at)
        assert match is not None  # the pattern matches nothing, too
        spans[name] = match.span()
        at = match.end() + 1
    pieces, at = [], 0
    for name, origin in sorted(_origins(old, new).items(), key=lambda item: spans[item[0]]):
        begin, end = spans[name]
        piece = raw[slice(*spans[origin])] if origin is not None else _quoted(str(new[name]))
        pieces += [raw[at:begin], piece]
        at = end
    return "".join([*pieces, raw[at:]])


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'
