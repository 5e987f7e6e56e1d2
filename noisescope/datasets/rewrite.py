"""Copy a data file in its own format with some rows changed or dropped.

    rewrite(Path("train.jsonl.gz"), Path("copy/train.jsonl.gz"), change)

`change` gets a chunk of decoded rows and returns the new values of those that change, by index
in the chunk; None drops the row. One path a format, each in constant memory except a JSON array:

- JSON lines: untouched lines keep their bytes, changed ones are written by `json`;
- Parquet and Arrow: same schema, metadata, compression and row groups, by pyarrow;
- CSV: untouched records keep their bytes, changed ones are written by `csv`;
- JSON arrays: read and written again by the standard library, so spacing may change while every
  value stays.

`copy_metadata` completes the copy of a dataset that `datasets.save_to_disk` wrote.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from noisescope.datasets.columnar_files import decoded_rows, ipc_batches, ipc_reader, sound
from noisescope.datasets.readers import (
    BOM,
    arrays_in,
    bounded_lines,
    bounded_read,
    checked_object,
    damaged_gzip,
    decoded_object,
    delimiter_of,
    is_json_lines,
    opened,
    record_of,
    suffix,
)
from noisescope.errors import DataError
from noisescope.pairs import digest
from noisescope.storage.files import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

#: (row number, values or None if they cannot be decoded, why not).
Decoded = tuple[int, dict[str, Any] | None, str]
#: Index in a chunk of rows -> the row's new values, or None to drop it.
Changes = Mapping[int, Mapping[str, Any] | None]
Change = Callable[[Sequence[Decoded]], Changes]

#: Rows decoded at once.
CHUNK_ROWS = 2048
#: A Parquet row group above this size is read, and written, in several pieces.
GROUP_BYTES = 8 << 20


def rewrite(source: Path, target: Path, change: Change) -> None:
    """Copy `source` to `target` with `change` applied. Raises DataError for a damaged file."""
    try:
        WRITERS[suffix(source).removesuffix(".gz")](source, target, change)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged_gzip(source, error) from error


def _rewrite_lines(source: Path, target: Path, change: Change) -> None:
    """JSON lines; the row number is the line's, blank lines included."""
    with opened(source, "rb") as stream, opened(target, "wb") as out:
        lines = enumerate(bounded_lines(stream, source))
        while chunk := list(islice(lines, CHUNK_ROWS)):
            bodies = [
                (line.removeprefix(BOM) if number == 0 else line).strip() for number, line in chunk
            ]
            filled = [at for at, body in enumerate(bodies) if body]
            rows = [(chunk[at][0], *decoded_object(bodies[at])) for at in filled]
            fresh = [line for _, line in chunk]
            for index, new in change(rows).items():
                at = filled[index]
                body = b"" if new is None else _json_line(new, ascii=bodies[at].isascii())
                before, _, after = fresh[at].partition(bodies[at])
                fresh[at] = b"" if new is None else before + body + after
            out.writelines(fresh)


def _json_line(row: Mapping[str, Any], *, ascii: bool) -> bytes:
    """A row as one line of JSON, in ASCII if its source was or if it holds lone surrogates."""
    try:
        return json.dumps(row, ensure_ascii=ascii).encode()
    except UnicodeEncodeError:
        return json.dumps(row).encode()


def _rewrite_json(source: Path, target: Path, change: Change) -> None:
    """A JSON array of rows, or an object that holds one; JSON lines named .json."""
    if is_json_lines(source):
        _rewrite_lines(source, target, change)
        return
    with opened(source, "rb") as stream:
        content = bounded_read(stream, source)
    whole = json.loads(content.removeprefix(BOM).decode())
    arrays = arrays_in(whole if isinstance(whole, dict) else {"": whole})
    if len(arrays) != 1:
        raise DataError(
            f"{source}: holds no single JSON array of rows",
            hint="Write one JSON object a line, as .jsonl.",
        )
    rows = arrays[0]
    changes = change([(number, *checked_object(row)) for number, row in enumerate(rows)])
    rows[:] = [
        changes.get(number, row)
        for number, row in enumerate(rows)
        if changes.get(number, row) is not None
    ]
    text = json.dumps(whole, ensure_ascii=content.isascii(), indent=2)
    with opened(target, "wb") as out:
        out.write(text.encode("utf-8", "surrogatepass") + b"\n")


def _rewrite_csv(source: Path, target: Path, change: Change) -> None:
    """CSV or TSV with a header. Raises DataError for a record that cannot be written again."""
    delimiter = delimiter_of(source)
    with opened(source, "rb") as stream, opened(target, "wb") as out:
        text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
        copy = io.TextIOWrapper(
            out, "utf-8", errors="surrogateescape", newline="", write_through=True
        )
        lines: list[str] = []  # as read since the last record
        reader = csv.reader(_kept(text, source, lines), delimiter=delimiter, strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            copy.write(_taken(lines))
            numbered = enumerate((record, _taken(lines)) for record in reader if record)
            while chunk := list(islice(numbered, CHUNK_ROWS)):
                rows = [(number, *record_of(names, record)) for number, (record, _) in chunk]
                changes = change(rows)
                for index, (_, (_, raw)) in enumerate(chunk):
                    new = changes.get(index, {})
                    if new:
                        end = raw[len(raw.rstrip("\r\n")) :]
                        writer = csv.writer(copy, delimiter=delimiter, lineterminator=end)
                        writer.writerow([new[name] for name in names])
                    elif new is not None:
                        copy.write(raw)
            copy.write(_taken(lines))
        except csv.Error as error:
            raise DataError(
                f"{source}: line {reader.line_num:,} is not valid CSV ({error})",
                hint="Correct or remove that line, then run the same command again.",
            ) from error
        copy.detach()


def _kept(text: IO[str], source: Path, lines: list[str]) -> Iterator[str]:
    """Lines for a CSV reader, each kept in `lines` as it is; a byte order mark is not passed on."""
    for number, line in enumerate(bounded_lines(text, source)):
        lines.append(line)
        yield line if number else line.removeprefix("\ufeff")


def _taken(lines: list[str]) -> str:
    """The kept lines, which are then forgotten."""
    raw = "".join(lines)
    lines.clear()
    return raw


def _rewrite_parquet(source: Path, target: Path, change: Change) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source, pre_buffer=False) as file:
            meta = file.metadata
            codecs: dict[str, str] = {}
            if meta.num_row_groups:
                first = meta.row_group(0)
                columns = [first.column(index) for index in range(first.num_columns)]
                codecs = {
                    column.path_in_schema: column.compression.replace("UNCOMPRESSED", "NONE")
                    for column in columns
                }
            with pq.ParquetWriter(target, file.schema_arrow, compression=codecs or "snappy") as out:
                number = 0
                for table in _groups(file):
                    fresh = _changed(table, number, change)
                    out.write_table(fresh, row_group_size=len(table) or 1)
                    number += len(table)
                    pa.default_memory_pool().release_unused()
    except pa.ArrowException as error:
        raise DataError(f"{source}: not a readable Parquet file ({error})") from error


def _groups(file: Any) -> Iterator[pa.Table]:
    import pyarrow as pa

    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        size, rows = group.total_byte_size, group.num_rows
        if size <= GROUP_BYTES:
            yield file.read_row_group(index, use_threads=False)
            continue
        piece = max(1, rows * GROUP_BYTES // size)
        for batch in file.iter_batches(piece, row_groups=[index], use_threads=False):
            yield pa.Table.from_batches([batch])


def _rewrite_arrow(source: Path, target: Path, change: Change) -> None:
    """An Arrow IPC stream (`save_to_disk`) or file: same schema, metadata and batches."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(source)) as mapped:
            reader = ipc_reader(mapped)
            whole = isinstance(reader, pa.RecordBatchFileReader)
            new = pa.ipc.new_file if whole else pa.ipc.new_stream
            with new(str(target), reader.schema) as out:
                number = 0
                for batch in ipc_batches(reader):
                    table = _changed(pa.Table.from_batches([sound(batch)]), number, change)
                    out.write_table(table.combine_chunks())
                    number += batch.num_rows
    except pa.ArrowException as error:
        raise DataError(f"{source}: not a readable Arrow file ({error})") from error


def _changed(table: pa.Table, number: int, change: Change) -> pa.Table:
    """`table`, whose first row has this number, with changed values and without dropped rows."""
    import numpy as np
    import pyarrow as pa

    fresh: dict[str, dict[int, Any]] = {}
    kept = np.ones(table.num_rows, bool)
    for start in range(0, table.num_rows, CHUNK_ROWS):
        decoded = decoded_rows(table.slice(start, CHUNK_ROWS))
        rows = [(number + start + i, *row) for i, row in enumerate(decoded)]
        for index, new in change(rows).items():
            old = rows[index][1] or {}
            kept[start + index] = new is not None
            for name, value in (new or {}).items():
                if value is not old[name]:
                    fresh.setdefault(name, {})[start + index] = value
    for name, values in fresh.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), _patched(table.column(at), values))
    return table if kept.all() else table.filter(pa.array(kept))


def _patched(column: pa.ChunkedArray, values: Mapping[int, Any]) -> pa.ChunkedArray:
    """`column` with the values at these positions replaced.

    Raises DataError for a value that the column's type cannot hold.
    """
    import numpy as np
    import pyarrow as pa

    try:
        if pa.types.is_integer(column.type):  # Arrow would truncate
            for value in values.values():
                if isinstance(value, float) and not value.is_integer():
                    raise ValueError(f"{value:g} does not fit into a column of {column.type}")
        added = pa.array(list(values.values()), column.type)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(
            f"a row cannot be flipped, as its sides' columns differ in type: {error}",
            hint="Give both columns one type; or export with --drop-above or --format trl.",
        ) from error
    take = np.arange(len(column))
    take[list(values)] = len(column) + np.arange(len(added))
    joined = pa.concat_arrays([*column.chunks, added])
    return pa.chunked_array([joined.take(pa.array(take))], column.type)


def copy_metadata(
    files: Sequence[Path],
    root: Path,
    out: Path,
    change: tuple[str, str],
    *,
    drop: Collection[str] = (),
) -> None:
    """Copy the metadata of a saved dataset to `out`, without the keys `drop` of its info.

    `change` (what was done, and how) becomes part of the fingerprint: `datasets` caches by it,
    and would confuse the copy with its source.
    """
    splits: list[str] = []
    for folder in sorted({file.parent for file in files}):
        if not (folder / "state.json").is_file():
            continue
        inside = folder.relative_to(root) if folder.is_relative_to(root) else Path()
        state = json.loads((folder / "state.json").read_text("utf-8"))
        kind, detail = change
        state["_fingerprint"] = digest(kind, str(state.get("_fingerprint")), detail)[:16]
        write_atomic(out / inside / "state.json", json.dumps(state, indent=2) + "\n")
        if (folder / "dataset_info.json").is_file():
            info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
            info = {key: value for key, value in info.items() if key not in drop}
            write_atomic(out / inside / "dataset_info.json", json.dumps(info, indent=2) + "\n")
        splits += [folder.name] if inside != Path() else []
    if splits:
        write_atomic(out / "dataset_dict.json", json.dumps({"splits": splits}) + "\n")


#: File ending, without .gz -> its copier.
WRITERS: dict[str, Callable[[Path, Path, Change], None]] = {
    ".parquet": _rewrite_parquet,
    ".arrow": _rewrite_arrow,
    ".jsonl": _rewrite_lines,
    ".ndjson": _rewrite_lines,
    ".json": _rewrite_json,
    ".csv": _rewrite_csv,
    ".tsv": _rewrite_csv,
}
