"""Parquet and Arrow files: a path in, rows out, a few hundred at a time.

Called by `readers.read_file`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.datasets.adapters.cells import Undecoded
from noisescope.errors import DataError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows decoded at once: small, for rows may hold images.
BATCH_ROWS = 256

#: What a reader yields: (row number, values or None, trouble).
Decoded = tuple[int, dict[str, Any] | None, str]


def check_unique(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}: repeated column names: {', '.join(twice)}", hint="Rename or drop one."
        )


def read_parquet(path: Path, columns: Collection[str] | None = None) -> Iterator[Decoded]:
    """Rows of a Parquet file, only of these columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            check_unique(path, file.schema_arrow.names)
            names = [name for name in file.schema_arrow.names if columns is None or name in columns]
            yield from numbered_rows(file.iter_batches(batch_size=BATCH_ROWS, columns=names))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _damaged(path, "Parquet", error) from error


def read_arrow(path: Path, columns: Collection[str] | None = None) -> Iterator[Decoded]:
    """Rows of an Arrow IPC stream (what `save_to_disk` writes) or file."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped, ipc_reader(mapped) as reader:
            check_unique(path, reader.schema.names)
            names = [name for name in reader.schema.names if columns is None or name in columns]
            yield from numbered_rows(batch.select(names) for batch in ipc_batches(reader))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _damaged(path, "Arrow", error) from error


def _damaged(path: Path, form: str, error: Exception) -> Exception:
    """The error of a columnar file that does not open."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return DataError(
        f"{path}: not a readable {form} file ({first_line(error)})",
        hint="It may be cut short: fetch it again. Text belongs in a .jsonl, .json or .csv file.",
    )


def ipc_reader(mapped: pa.MemoryMappedFile) -> Any:
    """Open an Arrow IPC file or stream."""
    import pyarrow as pa

    whole = mapped.read(6) == b"ARROW1"
    mapped.seek(0)
    return pa.ipc.open_file(mapped) if whole else pa.ipc.open_stream(mapped)


def ipc_batches(reader: Any) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of an Arrow IPC file or stream."""
    import pyarrow as pa

    if isinstance(reader, pa.RecordBatchFileReader):
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        yield from reader


def numbered_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Decoded]:
    """Yield the rows of record batches; a value that Python cannot hold spoils only its row."""
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            for values, trouble in decoded_rows(part):
                yield number, values, trouble
                number += 1


def decoded_rows(part: pa.RecordBatch) -> list[tuple[dict[str, Any], str]]:
    """Values of a few rows; a cell that Python cannot hold is Undecoded, and spoils only a row
    that needs it. Everything is validated first: Arrow trusts offsets, and reads wherever damaged
    ones lead."""
    import pyarrow as pa

    try:
        part.validate(full=True)
        return [(row, "") for row in part.to_pylist()]
    except (ValueError, OverflowError, LookupError, pa.ArrowException):
        columns = [_cells(column) for column in part.columns]
    names = part.schema.names
    return [(dict(zip(names, row, strict=True)), "") for row in zip(*columns, strict=True)]


def _cells(column: pa.Array) -> list[Any]:
    import pyarrow as pa

    try:
        column.validate(full=True)
        return list(column.to_pylist())
    except (ValueError, OverflowError, LookupError, pa.ArrowException) as error:
        if len(column) <= 1:
            message = first_line(error)
            return [Undecoded("not valid UTF-8" if "utf" in message.lower() else message)]
    half = len(column) // 2
    return _cells(column.slice(0, half)) + _cells(column.slice(half))


def sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch`. Raises ArrowInvalid for bad offsets; text of any bytes may pass."""
    import pyarrow as pa

    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "utf" not in str(error).lower():
                raise
    return batch
