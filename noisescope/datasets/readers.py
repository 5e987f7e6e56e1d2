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
import shlex
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, AnyStr, cast, final

from noisescope.datasets.adapters.cells import kind
from noisescope.datasets.adapters.names import OWN_IDS
from noisescope.datasets.columnar_files import Decoded, check_unique, read_arrow, read_parquet
from noisescope.errors import DataError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

#: What to do about a source without rows.
NO_ROWS = "Give each pair a row: columns (or JSON keys) prompt, chosen, rejected."
#: Bytes of one row's text, and of a JSON array held whole: more is a mistake or a gzip bomb.
MAX_ROW = 64 << 20
MAX_ARRAY = 2 << 30
#: Byte order mark of UTF-8.
BOM = b"\xef\xbb\xbf"
#: Bytes looked at to recognise a file, and bytes outside UTF-8 that make it another encoding.
_HEAD, _FEWEST_ODD = 1 << 20, 3
#: Keys of pandas' JSON by orient="split": columns, index, data.
_SPLIT_KEYS = 3
_TABLES = "Give a Parquet, CSV or JSON-lines file."
_ENDINGS = "Use Parquet, JSON lines (also .gz), a JSON array, CSV, or a saved dataset directory."


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One source row: its place, and its values or the reason there are none."""

    source: str
    number: int
    values: dict[str, Any] | None
    trouble: str = ""
    folder: Path | None = None


def read_file(path: Path, source: str, columns: Collection[str] | None = None) -> Iterator[Row]:
    """Yield the rows of one data file; of a columnar one, only these columns.

    Raises DataError if it is something else or damaged.
    """
    ending = suffix(path)
    columnar = COLUMNAR.get(ending)
    try:
        check_content(path)
        found = columnar(path, columns) if columnar else READERS[ending](path)
        for number, values, trouble in found:
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


def check_content(path: Path) -> None:
    """Raise DataError, naming what it is, for a file that is not what its name promises."""
    with path.open("rb") as stream:
        start = stream.read(_HEAD)
    if start.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path}: a Git LFS pointer, not the data",
            hint=f"Fetch the data: git lfs pull --include {shlex.quote(path.name)}",
        )
    if start.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        raise DataError(
            f"{path}: a web page (HTML), not the data",
            hint="Download the file itself: on the Hub its address has /resolve/, not /blob/.",
        )
    if suffix(path) in COLUMNAR or path.name.lower().endswith(".gz"):
        return
    quoted = shlex.quote(str(path))
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(
            f"{path}: UTF-16 text", hint=f"Save it as UTF-8: iconv -f UTF-16 -t UTF-8 {quoted}"
        )
    if _is_windows_text(start):
        raise DataError(
            f"{path}: not UTF-8 text; it looks like Windows-1252 (Excel's CSV)",
            hint=f"Save it as UTF-8: iconv -f WINDOWS-1252 -t UTF-8 {quoted}",
        )


def _is_windows_text(start: bytes) -> bool:
    """Whether bytes are text in Windows-1252: quotes, dashes and accents outside UTF-8."""
    text = start.decode("utf-8", "surrogateescape")
    odd = [ord(mark) - 0xDC00 for mark in text[:-4] if "\udc80" <= mark <= "\udcff"]
    return (
        len(odd) >= _FEWEST_ODD
        and b"\0" not in start
        and not set(odd) & {0x81, 0x8D, 0x8F, 0x90, 0x9D}
        and not any(byte >= 0xFE for byte in odd)
    )


@contextmanager
def opened(path: Path, mode: str = "rb") -> Iterator[IO[bytes]]:
    """A file, through gzip if its name ends in .gz; no time stamp, for equal bytes each time."""
    with path.open(mode) as raw:
        if not path.name.lower().endswith(".gz"):
            yield cast(IO[bytes], raw)
            return
        with gzip.GzipFile("", mode, 1, raw, mtime=0) as zipped:
            yield cast(IO[bytes], zipped)


def _read_lines(path: Path) -> Iterator[Decoded]:
    with opened(path) as stream:
        for number, line in enumerate(bounded_lines(stream, path)):
            content = line.removeprefix(BOM).strip() if number == 0 else line.strip()
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
    return checked_object(value)


def checked_object(value: object) -> tuple[dict[str, Any] | None, str]:
    """A decoded JSON object: its values, or None and the reason."""
    if isinstance(value, dict):
        return value, ""
    return None, f"{kind(value)}, expected a JSON object"


def _read_json(path: Path) -> Iterator[Decoded]:
    """A JSON array of objects, an object that holds one, columns, or JSON lines."""
    if is_json_lines(path):
        yield from _read_lines(path)
        return
    with opened(path) as stream:
        content = bounded_read(stream, path).removeprefix(BOM)
    if not content.strip():
        return
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: neither a JSON array nor JSON lines ({error})",
            hint="Write one JSON object a line and name the file .jsonl.",
        ) from error
    rows = _by_columns(found) if isinstance(found, dict) else found
    if rows is None:
        arrays = arrays_in(found)
        rows = arrays[0] if len(arrays) == 1 else None
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds no single JSON array of rows", hint=_ENDINGS)
    for number, item in enumerate(rows):
        yield (number, *checked_object(item))


def arrays_in(found: dict[str, Any]) -> list[list[Any]]:
    """The arrays of a JSON object: one of them alone may hold the rows."""
    return [item for item in found.values() if isinstance(item, list)]


def _by_columns(found: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Rows of columns: {"prompt": {"0": ...}} or {"prompt": [...]}, as pandas writes them, or
    {"columns": [...], "data": [[...]]}; None for anything else."""
    names, data = found.get("columns"), found.get("data")
    if isinstance(names, list) and isinstance(data, list) and len(found) <= _SPLIT_KEYS:
        fit = all(isinstance(row, list) and len(row) == len(names) for row in data)
        return [dict(zip(map(str, names), row, strict=True)) for row in data] if fit else None
    cells = list(found.values())
    if len(cells) < 2:
        return None
    first = cells[0]
    if all(isinstance(cell, list) and len(cell) == len(first) for cell in cells):
        return [dict(zip(found, row, strict=True)) for row in zip(*cells, strict=True)]
    alike = all(isinstance(cell, dict) and cell.keys() == first.keys() for cell in cells)
    if alike and all(at.isdecimal() for at in first):
        return [{name: found[name][at] for name in found} for at in first]
    return None


def is_json_lines(path: Path) -> bool:
    """Whether a .json file holds one object a line. One object alone is lines only if it is a row:
    it holds neither an array of objects nor columns."""
    with opened(path) as stream:
        lines = (line for line in bounded_lines(stream, path) if line.strip())
        first = next(lines, b"").removeprefix(BOM).strip()
        found = decoded_object(first)[0] if first.startswith(b"{") else None
        if found is None:
            return False
        if next(lines, None) is not None:
            return True
    arrays = arrays_in(found)
    held = len(arrays) == 1 and any(isinstance(item, dict) for item in arrays[0])
    return not (held and len(arrays[0]) > 1) and _by_columns(found) is None


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
    """All of `stream`. Raises DataError if that is more than MAX_ARRAY, decompressed."""
    content = stream.read(MAX_ARRAY + 1)
    if len(content) > MAX_ARRAY:
        raise DataError(
            f"{path}: a JSON array of more than {MAX_ARRAY >> 20:,} MiB",
            hint="Arrays are held in memory: write one JSON object a line, as .jsonl.",
        )
    return content


def _read_csv(path: Path) -> Iterator[Decoded]:
    """Rows of CSV with a header: commas, tabs or semicolons. Bytes outside UTF-8 spoil one row."""
    csv.field_size_limit(MAX_ROW)
    with opened(path) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(bounded_lines(text, path), delimiter=delimiter_of(path), strict=True)
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
            else:
                yield (number, *record_of(header, fields))


def delimiter_of(path: Path) -> str:
    """What separates the fields of a CSV or TSV file.

    Semicolons, which Excel writes where a comma is the decimal mark, if the first line has two or
    more and no comma: with commas the file would have one column.
    """
    if path.name.lower().removesuffix(".gz").endswith(".tsv"):
        return "\t"
    with opened(path) as stream:
        first = next(bounded_lines(stream, path), b"")
    return ";" if first.count(b";") > 1 and b"," not in first else ","


def record_of(header: list[str], fields: list[str]) -> tuple[dict[str, Any] | None, str]:
    """Values of a CSV record by column, or None and the reason."""
    if len(fields) != len(header):
        return None, f"{len(fields)} fields under {len(header)} columns"
    return dict(zip(header, fields, strict=True)), ""


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(
            f"{path}: not valid CSV in its first line ({error})",
            hint='The first line names the columns; a field with " or a comma needs quotes.',
        ) from error
    check_unique(path, header)
    other = next((mark for mark in ";|\t" if len(header) == 1 and mark in header[0]), None)
    if other:
        named = "tabs" if other == "\t" else repr(other)
        raise DataError(
            f"{path}: fields separated by {named}, not commas",
            hint='Write it with commas: python -c "import csv, sys; csv.writer(sys.stdout)'
            f'.writerows(csv.reader(sys.stdin, delimiter={other!r}))" < {shlex.quote(str(path))} '
            "> commas.csv",
        )
    return header


def read_table(path: Path) -> pa.Table:
    """Read a small Parquet, CSV or JSON-lines file whole; ids are text. Raises DataError."""
    import pyarrow as pa

    name = path.name.lower()
    if not path.exists():
        raise DataError(f"{path} does not exist", hint=_TABLES)
    if path.is_dir() or not path.stat().st_size:
        trouble = "a directory" if path.is_dir() else "empty"
        raise DataError(f"{path} is {trouble}", hint=_TABLES)
    try:
        if name.endswith((".csv", ".csv.gz")):
            from pyarrow import csv as arrow_csv

            ids = dict.fromkeys(("pair_id", *OWN_IDS), pa.string())  # 007 is no number
            text_ids = arrow_csv.ConvertOptions(column_types=ids)
            return arrow_csv.read_csv(path, convert_options=text_ids)
        if name.endswith((".jsonl", ".jsonl.gz", ".ndjson", ".json")):
            from pyarrow import json as arrow_json

            return arrow_json.read_json(path)
        import pyarrow.parquet as pq

        return pq.read_table(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read: {first_line(error)}",
            hint=_TABLES,
        ) from error


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

#: Readers of columnar files, which decode only the columns that are needed.
COLUMNAR = {".parquet": read_parquet, ".arrow": read_arrow}
