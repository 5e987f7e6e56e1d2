"""File formats: a path in, rows out, one at a time.

A row that cannot be decoded is yielded with `trouble` instead of values, so that it can be
counted; a file that cannot be read at all raises DataError. Everything streams except a JSON
array, which is held whole. Row numbers are 0-based; for JSON lines they count lines.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, AnyStr, cast, final

from noisescope.datasets.adapter import kind
from noisescope.datasets.columnar_files import BATCH_ROWS as BATCH_ROWS
from noisescope.datasets.columnar_files import Decoded, check_unique, read_arrow, read_parquet
from noisescope.errors import DataError

#: What to do about a source without rows.
NO_ROWS = "Give each pair a row: columns (or JSON keys) prompt, chosen, rejected."
TAB = "\t"
#: Bytes of one row's text, and of a JSON array held whole: more is a mistake or a gzip bomb.
MAX_ROW = 64 << 20
MAX_ARRAY = 2 << 30
_BOM = b"\xef\xbb\xbf"
_ENDINGS = "Use Parquet, JSON lines (also .gz), a JSON array, CSV, or a saved dataset directory."


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One source row: where it stands, and its values or the reason there are none."""

    source: str
    number: int
    values: dict[str, Any] | None
    trouble: str = ""
    folder: Path | None = None


def read_file(path: Path, source: str) -> Iterator[Row]:
    """Yield the rows of one data file. Raises DataError where it is no such file or damaged."""
    reader = READERS[suffix(path)]
    try:
        for number, values, trouble in reader(path):
            yield Row(source, number, values, trouble, path.parent)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged_gzip(path, error) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error})",
            hint="Check that it is there, whole, and that you may read it: ls -l",
        ) from error


def damaged_gzip(path: Path, error: Exception) -> DataError:
    """The error of a compressed file that is cut off or no gzip."""
    return DataError(
        f"{path}: damaged gzip file ({error})", hint="Fetch or compress the file again."
    )


def suffix(path: Path) -> str:
    """The ending that chooses a reader (`.jsonl.gz` for `a.b.jsonl.gz`), or an empty string."""
    name = path.name.lower()
    endings = [ending for ending in READERS if name.endswith(ending)]
    return max(endings, key=len, default="")


def check_suffix(path: Path) -> None:
    """Raise DataError unless some reader takes the file."""
    if not suffix(path):
        raise DataError(f"{path}: no reader for this kind of file", hint=_ENDINGS)


@contextmanager
def _binary(path: Path) -> Iterator[IO[bytes]]:
    """Open a text file or a gzip-compressed one for reading. Raises DataError for UTF-16."""
    zipped = path.name.lower().endswith(".gz")
    with path.open("rb") as raw:
        if raw.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{path}: UTF-16 text", hint="Save it as UTF-8.")
        raw.seek(0)
        if zipped:
            with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
                yield cast(IO[bytes], stream)
        else:
            yield raw


def _read_lines(path: Path) -> Iterator[Decoded]:
    with _binary(path) as stream:
        for number, line in enumerate(bounded_lines(stream, path)):
            content = line.removeprefix(_BOM).strip() if number == 0 else line.strip()
            if content:
                yield (number, *decoded_object(content))


def decoded_object(content: bytes) -> tuple[dict[str, Any] | None, str]:
    """Decode one JSON object: its values, or None and the reason."""
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        return None, "not valid UTF-8"
    except RecursionError:
        return None, "nested too deeply"
    except ValueError as error:
        return None, f"not valid JSON ({error})"
    return _checked(value)


def _checked(value: object) -> tuple[dict[str, Any] | None, str]:
    if isinstance(value, dict):
        return value, ""
    return None, f"{kind(value)}, expected a JSON object"


def _read_json(path: Path) -> Iterator[Decoded]:
    """A JSON array of objects, an object that holds one such array, or JSON lines."""
    if first_line_is_object(path):
        yield from _read_lines(path)
        return
    with _binary(path) as stream:
        content = bounded_read(stream, path).removeprefix(_BOM)
    if not content.strip():
        return
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: neither a JSON array nor JSON lines ({error})",
            hint="Write one JSON object a line and name the file .jsonl.",
        ) from error
    found = value.values() if isinstance(value, dict) else [value]
    arrays = [item for item in found if isinstance(item, list)]
    if len(arrays) != 1:
        raise DataError(f"{path}: holds no single JSON array of rows", hint=_ENDINGS)
    for number, item in enumerate(arrays[0]):
        yield (number, *_checked(item))


def first_line_is_object(path: Path) -> bool:
    """Whether the first line with content is a whole JSON object: JSON lines under .json."""
    with _binary(path) as stream:
        while line := stream.readline(MAX_ROW):
            content = line.removeprefix(_BOM).strip()
            if content:
                return content.startswith(b"{") and decoded_object(content)[0] is not None
    return False


def bounded_lines(stream: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    """Lines of `stream`. Raises DataError at one longer than MAX_ROW, before it is read whole."""
    number = 0
    while line := stream.readline(MAX_ROW):
        number += 1
        if len(line) == MAX_ROW:
            raise DataError(
                f"{path}: line {number:,} is longer than {MAX_ROW >> 20} MiB",
                hint="Give each pair a line of its own; Parquet holds images better than JSON.",
            )
        yield line


def bounded_read(stream: IO[bytes], path: Path) -> bytes:
    """All of `stream`. Raises DataError where that is more than MAX_ARRAY, decompressed."""
    content = stream.read(MAX_ARRAY + 1)
    if len(content) > MAX_ARRAY:
        raise DataError(
            f"{path}: a JSON array of more than {MAX_ARRAY >> 20:,} MiB",
            hint="Arrays are held in memory: write one JSON object a line, as .jsonl.",
        )
    return content


def _read_csv(path: Path) -> Iterator[Decoded]:
    """Comma- or tab-separated values with a header. Bytes outside UTF-8 spoil only their row."""
    csv.field_size_limit(MAX_ROW)
    tabs = path.name.lower().removesuffix(".gz").endswith(".tsv")
    with _binary(path) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(bounded_lines(text, path), delimiter="\t" if tabs else ",", strict=True)
        header = _header(path, reader)
        number = -1
        while header:
            number += 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, None, f"not valid CSV ({error})"
                continue
            if not fields:
                number -= 1
            elif len(fields) != len(header):
                yield number, None, f"{len(fields)} fields under {len(header)} columns"
            else:
                yield number, dict(zip(header, fields, strict=True)), ""


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(
            f"{path}: not valid CSV in its first line ({error})",
            hint='The first line names the columns; a field with " or a comma stands in quotes.',
        ) from error
    check_unique(path, header)
    other = next((mark for mark in ";|\t" if len(header) == 1 and mark in header[0]), None)
    if other:
        raise DataError(
            f"{path}: fields apart by {'tabs' if other == TAB else repr(other)}, expected commas",
            hint="Write it with commas, or with tabs and the ending .tsv.",
        )
    return header


#: File ending -> reader. The longest ending that fits is taken.
READERS: dict[str, Callable[[Path], Iterator[Decoded]]] = {
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".jsonl": _read_lines,
    ".jsonl.gz": _read_lines,
    ".ndjson": _read_lines,
    ".json": _read_json,
    ".json.gz": _read_json,
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".tsv": _read_csv,
    ".tsv.gz": _read_csv,
}
