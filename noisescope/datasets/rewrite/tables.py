"""The columnar half of `rewriting`: Parquet and Arrow files, a slice of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.datasets.columnar_files import sound
from noisescope.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

#: (row number, values or None where they cannot be decoded, why not).
Decoded = tuple[int, dict[str, Any] | None, str]
#: What becomes of a chunk: index in the chunk -> the row's new values, or None where it goes.
Change = Callable[[Sequence[Decoded]], Mapping[int, Mapping[str, Any] | None]]

#: The same for a whole slice of a columnar file at once: (slice, number of its first row) -> the
#: new slice, or None where it has to go row by row.
ChangeTable = Callable[["pa.Table", int], "pa.Table | None"]

#: The same for plain rows of texts: (their columns, number of the first) -> the indices of those
#: whose chosen and rejected texts change places, or None where they have to go row by row.
SwapTexts = Callable[["pa.Table", int], "Sequence[int] | None"]

CHUNK_ROWS = 2048
#: Rows of a columnar file offered to `ChangeTable` at once.
SLICE_ROWS = 1 << 13
#: A Parquet row group above this size is read, and written, in several pieces.
GROUP_BYTES = 8 << 20


def rewrite_parquet(source: Path, target: Path, change: Change, change_table: ChangeTable) -> None:
    """Same schema, metadata, compression and row groups (those above GROUP_BYTES in pieces)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source, pre_buffer=False) as file:
            meta = file.metadata
            codecs: dict[str, str] = {}
            if meta.num_row_groups:
                first = meta.row_group(0)
                columns = [first.column(index) for index in range(first.num_columns)]
                codecs = {column.path_in_schema: column.compression for column in columns}
            with pq.ParquetWriter(target, file.schema_arrow, compression=codecs or "snappy") as out:
                number = 0
                for table in _groups(file):
                    out.write_table(
                        _changed(table, number, change, change_table),
                        row_group_size=len(table) or 1,
                    )
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


def rewrite_arrow(source: Path, target: Path, change: Change, change_table: ChangeTable) -> None:
    """An Arrow IPC stream (`save_to_disk`) or file: same schema, metadata and batches."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(source)) as mapped:
            whole = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            opened = pa.ipc.open_file(mapped) if whole else pa.ipc.open_stream(mapped)
            new = pa.ipc.new_file if whole else pa.ipc.new_stream
            batches = (
                (opened.get_batch(index) for index in range(opened.num_record_batches))
                if whole
                else opened
            )
            with new(str(target), opened.schema) as out:
                number = 0
                for batch in batches:
                    table = _changed(
                        pa.Table.from_batches([sound(batch)]), number, change, change_table
                    )
                    out.write_table(table.combine_chunks())
                    number += batch.num_rows
    except pa.ArrowException as error:
        raise DataError(f"{source}: not a readable Arrow file ({error})") from error


def _changed(table: pa.Table, number: int, change: Change, change_table: ChangeTable) -> pa.Table:
    """`table`, whose first row has this number, with the changed values in their columns."""
    import pyarrow as pa

    parts = []
    for start in range(0, table.num_rows, SLICE_ROWS):
        part = table.slice(start, SLICE_ROWS)
        fresh = change_table(part, number + start)
        parts.append(_row_by_row(part, number + start, change) if fresh is None else fresh)
    return pa.concat_tables(parts) if parts else table


def _row_by_row(table: pa.Table, number: int, change: Change) -> pa.Table:
    fresh: dict[str, dict[int, Any]] = {}
    gone: list[int] = []
    for start in range(0, table.num_rows, CHUNK_ROWS):
        part = table.slice(start, CHUNK_ROWS)
        rows = [(number + start + i, *row) for i, row in enumerate(_decoded(part))]
        for index, new in change(rows).items():
            old = rows[index][1] or {}
            if new is None:
                gone.append(start + index)
                continue
            for name, value in new.items():
                if value is not old[name]:
                    fresh.setdefault(name, {})[start + index] = value
    for name, values in fresh.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), _patched(table.column(at), values))
    return without(table, gone) if gone else table


def without(table: pa.Table, gone: Sequence[int]) -> pa.Table:
    """`table` less the rows at these positions."""
    import numpy as np
    import pyarrow as pa

    kept = np.ones(table.num_rows, bool)
    kept[list(gone)] = False
    return table.filter(pa.array(kept))


def _decoded(table: pa.Table) -> list[tuple[dict[str, Any] | None, str]]:
    """Rows of a table; a value that Python cannot hold spoils only its row."""
    try:
        return [(row, "") for row in table.to_pylist()]
    except (ValueError, OverflowError) as error:
        if table.num_rows == 1:
            return [(None, str(error))]
    return [row for index in range(table.num_rows) for row in _decoded(table.slice(index, 1))]


def _patched(column: pa.ChunkedArray, values: Mapping[int, Any]) -> pa.ChunkedArray:
    """`column` with the values at these positions replaced."""
    import numpy as np
    import pyarrow as pa

    added = pa.array(list(values.values()), column.type)
    take = np.arange(len(column))
    take[list(values)] = len(column) + np.arange(len(added))
    joined = pa.concat_arrays([*column.chunks, added])
    return pa.chunked_array([joined.take(pa.array(take))], column.type)
