"""Datasets that are in memory already: pandas, polars, Arrow, `datasets`.

    dataset = load_table(frame, name="my-pairs")

A frame is read as the same rows in a Parquet file would be: the same formats, the same pair ids.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from noisescope.datasets.loading import read_source
from noisescope.datasets.readers import BATCH_ROWS, Row
from noisescope.datasets.sources import Source
from noisescope.errors import DataError, UsageError
from noisescope.pairs import PreferenceDataset

if TYPE_CHECKING:
    import pyarrow as pa


@runtime_checkable
class ArrowStream(Protocol):
    """Any table that speaks Arrow's PyCapsule interface: polars, pandas, pyarrow, DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


def load_table(
    frame: object, *, name: str = "pairs", format: str | None = None, limit: int | None = None
) -> PreferenceDataset:
    """Read a table in memory, one preference (or one ranked group) a row.

    `name` is what the run is called after. Raises UsageError for what is no table, DataError where
    no format fits or fewer than ten pairs are usable.
    """
    table = as_table(frame)
    said = f"{name} (a table in memory)"
    source = Source(name, said, said, lambda: _rows(table, name))
    return read_source(source, format=format, limit=limit)


def as_table(frame: object) -> pa.Table:
    """`frame` as an Arrow table, an index of pandas left out. Raises UsageError for no table."""
    import pyarrow as pa

    pandas, datasets = sys.modules.get("pandas"), sys.modules.get("datasets")
    try:
        if pandas and isinstance(frame, pandas.DataFrame):
            return pa.Table.from_pandas(frame, preserve_index=False)
        if datasets and isinstance(frame, datasets.Dataset):
            return frame.with_format("arrow")[:]
        if isinstance(frame, ArrowStream):
            return pa.table(frame)
    except (pa.ArrowException, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the {type(frame).__name__} does not turn into an Arrow table: {reason}",
            hint="Give each column values of one type.",
        ) from error
    hint = "Give a path, a name, or a table of pandas, polars, Arrow or datasets."
    if datasets and isinstance(frame, datasets.DatasetDict):
        hint = f"Choose a split, such as dataset[{next(iter(frame), 'train')!r}]."
    raise UsageError(f"a {type(frame).__name__} is no dataset", hint=hint)


def _rows(table: pa.Table, name: str) -> Iterator[Row]:
    """Every row of the table; a value that Python cannot hold spoils only its row."""
    for number in range(0, table.num_rows, BATCH_ROWS):
        for index, (values, trouble) in enumerate(_decoded(table.slice(number, BATCH_ROWS))):
            yield Row(name, number + index, values, trouble)


def _decoded(part: pa.Table) -> list[tuple[dict[str, Any] | None, str]]:
    try:
        return [(values, "") for values in part.to_pylist()]
    except (ValueError, OverflowError) as error:
        if part.num_rows == 1:
            return [(None, str(error).splitlines()[0])]
    return [_decoded(part.slice(index, 1))[0] for index in range(part.num_rows)]
