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
from typing import IO, TYPE_CHECKING, Any, AnyStr, cast, final

from noisescope.datasets.adapter import kind
from noisescope.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows decoded at once from columnar files: small, for rows may hold images.
BATCH_ROWS = 256
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


#: What a reader yields: (row number, values or None, trouble).
Decoded = tuple[int, dict[str, Any] | None, str]


def read_file(path: Path, source: str) -> Iterator[Row]:
    """Yield the rows of one data file. Raises DataError where it is no such file or damaged."""
    reader = READERS[suffix(path)]
    try:
        for number, values, trouble in reader(path):
            yield Row(source, number, values, trouble, path.parent)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: damaged gzip file ({error})", hint="Fetch or compress the file again."
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error})",
            hint="Check that it is there, whole, and that you may read it: ls -l",
        ) from error


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
                yield (number, *_object(content))


def _object(content: bytes) -> tuple[dict[str, Any] | None, str]:
    """Decode one JSON object, or say why not."""
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
    if _first_line_is_object(path):
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


def _first_line_is_object(path: Path) -> bool:
    with _binary(path) as stream:
        while line := stream.readline(MAX_ROW):
            content = line.removeprefix(_BOM).strip()
            if content:
                return content.startswith(b"{") and _object(content)[0] is not None
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
    _check_unique(path, header)
    other = next((mark for mark in ";|\t" if len(header) == 1 and mark in header[0]), None)
    if other:
        raise DataError(
            f"{path}: fields apart by {'tabs' if other == TAB else repr(other)}, expected commas",
            hint="Write it with commas, or with tabs and the ending .tsv.",
        )
    return header


def _check_unique(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}: column names stand twice: {', '.join(twice)}", hint="Rename or drop one."
        )


def _read_parquet(path: Path) -> Iterator[Decoded]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_unique(path, file.schema_arrow.names)
            yield from _batches(file.iter_batches(batch_size=BATCH_ROWS))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, "Parquet", error) from error


def _read_arrow(path: Path) -> Iterator[Decoded]:
    """An Arrow IPC stream (what `save_to_disk` writes) or file."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped:
            magic = mapped.read(6)
            mapped.seek(0)
            opened = pa.ipc.open_file if magic == b"ARROW1" else pa.ipc.open_stream
            with opened(mapped) as reader:
                _check_unique(path, reader.schema.names)
                yield from _batches(_ipc_batches(reader))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, "Arrow", error) from error


def _damaged(path: Path, form: str, error: Exception) -> Exception:
    """The error of a columnar file that does not open, with what it is instead where that shows."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    with path.open("rb") as stream:
        start = stream.read(64)
    hint = "It may be cut short: fetch it again. Text belongs in a .jsonl, .json or .csv file."
    if start.startswith(b"version https://git-lfs"):
        hint = "It is a Git LFS pointer, not the data: git lfs pull"
    return DataError(f"{path}: not a readable {form} file ({_line(error)})", hint=hint)


def _ipc_batches(reader: Any) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    if isinstance(reader, pa.RecordBatchFileReader):
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        yield from reader


def _batches(batches: Iterator[pa.RecordBatch]) -> Iterator[Decoded]:
    """Rows of record batches; a value that Python cannot hold spoils only its row."""
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            for values, trouble in _part(part):
                yield number, values, trouble
                number += 1


def _part(part: pa.RecordBatch) -> list[tuple[dict[str, Any] | None, str]]:
    try:
        return [(row, "") for row in part.to_pylist()]
    except (ValueError, OverflowError) as error:
        if part.num_rows == 1:
            reason = "not valid UTF-8" if isinstance(error, UnicodeError) else _line(error)
            return [(None, reason)]
    return [_part(part.slice(index, 1))[0] for index in range(part.num_rows)]


def _line(error: Exception) -> str:
    """The first line of an error of another library."""
    return (str(error).splitlines() or [type(error).__name__])[0]


#: File ending -> reader. The longest ending that fits is taken.
READERS: dict[str, Callable[[Path], Iterator[Decoded]]] = {
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
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
