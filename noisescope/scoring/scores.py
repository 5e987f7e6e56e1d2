"""scores.parquet: its columns, and how rows come into rank order without being held.

    write_scores(run.scores_path, ids, blocks, rank, connection)

Blocks of pairs go through DuckDB's sort, which spills, and leave as row groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError, first_line
from noisescope.scoring.margins import BLOCK
from noisescope.storage.files import write_atomic

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from noisescope.storage.run import Run

Float = NDArray[np.float64]

#: Columns of scores.parquet after pair_id, in order; all float64. `rank` and `issue` follow.
COLUMNS = (
    "confidence",
    "stability",
    "u",
    "u_released",
    "margin",
    "p_wrong",
    "p_wrong_audit",
    "p_prior",
    "p_flip",
    "p_mislabelled",
    "contested",
    "W",
    "gamma",
)

#: A label is suspicious from this p_wrong on, and undecided from this `contested` on, which is
#: where p is between 0.4 and 0.6: 2 min(p, 1 - p) >= 0.8.
SUSPICIOUS, CONTESTED = 0.5, 0.8


def schema() -> pa.Schema:
    """Columns of scores.parquet."""
    import pyarrow as pa

    numbers = [pa.field(name, pa.float64()) for name in COLUMNS]
    return pa.schema(
        [
            pa.field("pair_id", pa.string(), nullable=False),
            *numbers,
            pa.field("rank", pa.int64(), nullable=False),
            pa.field("issue", pa.string()),
        ]
    )


def issues(columns: Mapping[str, Float]) -> pa.Array:
    """What is noted of each label [n]: "not judged", "suspicious", "undecided", or null."""
    import pyarrow as pa

    found = {
        "not judged": np.isnan(columns["p_wrong"]),
        "suspicious": columns["p_wrong"] >= SUSPICIOUS,
        "undecided": columns["contested"] >= CONTESTED,
    }
    names = np.select(list(found.values()), list(found), default="")
    return pa.array(names, pa.string(), mask=names == "")


def require_scores(run: Run) -> None:
    """Raise RunError if a run has no scores, or scores without today's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    hint = "Make the scores again, which takes seconds: repeat the run's noisescope score command."
    if not run.scores_path.is_file():
        raise RunError(f"{run.directory} has no scores", hint=hint)
    try:
        names = pq.read_schema(run.scores_path).names
    except (OSError, pa.ArrowException) as error:
        message = f"{run.scores_path} cannot be read: {first_line(error)}"
        raise RunError(message, hint=hint) from error
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise RunError(
            f"{run.scores_path} was written by an older version: no {', '.join(missing)}",
            hint=hint,
        )


def ranks(p_wrong: Float, margins: Float) -> NDArray[np.int64]:
    """Rank of each pair [N], 1 = the highest p_wrong; ties by the lowest margin, then by order."""
    rank = np.empty(len(margins), np.int64)
    rank[np.lexsort((margins, -p_wrong))] = np.arange(1, len(margins) + 1)
    return rank


def write_scores(
    path: Path,
    pairs: Path,
    blocks: Iterable[tuple[slice, Mapping[str, Float]]],
    rank: NDArray[np.int64],
    connection: duckdb.DuckDBPyConnection,
) -> None:
    """Write the scores of the pairs in `pairs`, given in blocks in their order, by `rank` [N].

    A row group holds BLOCK rows; undefined numbers are null.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    unsorted = pa.RecordBatchReader.from_batches(schema(), _unsorted(pairs, blocks, rank))
    names = ", ".join(f'"{name}"' for name in schema().names)

    def write(temporary: Path) -> None:
        connection.register("unsorted", unsorted)
        ordered = connection.sql(f"SELECT {names} FROM unsorted ORDER BY rank")
        with pq.ParquetWriter(
            temporary, schema(), compression="zstd", use_dictionary=False
        ) as writer:
            for table in in_blocks(ordered.to_arrow_reader(BLOCK)):
                writer.write_table(_with_nulls(table))

    write_atomic(path, write)


def _unsorted(
    pairs: Path, blocks: Iterable[tuple[slice, Mapping[str, Float]]], rank: NDArray[np.int64]
) -> Iterator[pa.RecordBatch]:
    """Batches of `schema()` in the order of pairs.parquet; undefined numbers are NaN."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(pairs, pre_buffer=False) as file:
        named = in_blocks(file.iter_batches(BLOCK, columns=["pair_id"], use_threads=False))
        for ids, (block, columns) in zip(named, blocks, strict=True):
            names = ids.column(0).combine_chunks()
            arrays = [names, *(pa.array(columns[name]) for name in COLUMNS), pa.array(rank[block])]
            yield pa.RecordBatch.from_arrays([*arrays, issues(columns)], schema=schema())


def in_blocks(batches: Iterable[pa.RecordBatch], size: int = BLOCK) -> Iterator[pa.Table]:
    """The rows of `batches` in tables of `size` rows; the last one has what is left."""
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        while sum(len(part) for part in waiting) >= size:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, size)
            waiting = table.slice(size).to_batches()
    if any(len(part) for part in waiting):
        yield pa.Table.from_batches(waiting)


def _with_nulls(table: pa.Table) -> pa.Table:
    """`table` with null for NaN, in `schema()`'s types."""
    import pyarrow as pa

    # whole arrays: pages end where chunks do, and the file's bytes are to depend on nothing else
    names, rank, issue = (
        table.column(name).combine_chunks() for name in ("pair_id", "rank", "issue")
    )
    numbers = [pa.array(table.column(name).to_numpy(), from_pandas=True) for name in COLUMNS]
    return pa.Table.from_arrays([names, *numbers, rank, issue], schema=schema())
