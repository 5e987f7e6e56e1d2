"""Datasets that are in memory already: pandas, polars, Arrow, `datasets`, a list of dicts.

    dataset = load_table(frame, name="my-pairs")

A frame is read as the same rows in a Parquet file would be: the same formats, the same pair ids.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from noisescope.datasets.columnar_files import numbered_rows
from noisescope.datasets.load import read_source
from noisescope.datasets.readers import Row
from noisescope.datasets.sources import Source
from noisescope.errors import DataError, UsageError, first_line
from noisescope.pairs import PreferenceDataset

if TYPE_CHECKING:
    import pyarrow as pa


#: What the full name of a table in memory ends in.
IN_MEMORY = " (a table in memory)"


@runtime_checkable
class ArrowStream(Protocol):
    """Any table that speaks Arrow's PyCapsule interface: polars, pandas, pyarrow, DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


def load_table(
    frame: object,
    *,
    name: str = "pairs",
    format: str | None = None,
    columns: Mapping[str, str] | str | None = None,
    pairs: str | None = None,
    limit: int | None = None,
) -> PreferenceDataset:
    """Read a table in memory, one preference (or one ranked group) a row.

    `name` is what the run is called after. Raises UsageError for what is no table, DataError if
    no format fits or fewer than ten pairs are usable.
    """
    table = as_table(frame)
    full = f"{name}{IN_MEMORY}"
    source = Source(name, full, full, lambda columns=None: _rows(table, name, columns))
    return read_source(source, format=format, columns=columns, pairs=pairs, limit=limit)


def as_table(frame: object) -> pa.Table:
    """`frame` as an Arrow table, without an index of pandas. Raises UsageError for no table."""
    import pyarrow as pa

    pandas, datasets = sys.modules.get("pandas"), sys.modules.get("datasets")
    try:
        if pandas and isinstance(frame, pandas.DataFrame):
            return pa.Table.from_pandas(frame, preserve_index=False)
        if datasets and isinstance(frame, datasets.Dataset):
            return frame.with_format("arrow")[:]
        if isinstance(frame, ArrowStream):
            return pa.table(frame)
        if isinstance(frame, list) and all(isinstance(row, dict) for row in frame):
            return pa.Table.from_pylist(frame, pa.schema(_columns(frame)))
    except (pa.ArrowException, TypeError) as error:
        reason = first_line(error)
        raise DataError(
            f"the {type(frame).__name__} does not turn into an Arrow table: {reason}",
            hint="Give each column values of one type.",
        ) from error
    hint = "Give a path, a name, a table of pandas, polars, Arrow or datasets, or a list of dicts."
    if datasets and isinstance(frame, datasets.DatasetDict):
        hint = f"Choose a split, such as dataset[{next(iter(frame), 'train')!r}]."
    raise UsageError(f"a {type(frame).__name__} is no dataset", hint=hint)


def _columns(rows: list[dict[str, Any]]) -> list[tuple[str, pa.DataType]]:
    """Name and type of every key of any row: `from_pylist` alone takes those of the first."""
    import pyarrow as pa

    names = list(dict.fromkeys(str(key) for row in rows for key in row))
    return [(name, pa.array([row.get(name) for row in rows]).type) for name in names]


def _rows(table: pa.Table, name: str, columns: Collection[str] | None) -> Iterator[Row]:
    """Every row of the table, only of these columns."""
    if columns is not None:
        table = table.select([column for column in table.column_names if column in columns])
    for number, values, trouble in numbered_rows(table.to_batches()):
        yield Row(name, number, values, trouble)
