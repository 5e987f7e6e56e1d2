"""A run's margins in the order of its pairs, a block at a time: for runs larger than memory.

    with Spill().folder(run.directory) as folder:
        margins = spool(run.directory, "margins", folder, Spill())
        for pairs, values, counted in margins.blocks(): ...

DuckDB matches margins to pairs and sorts them, on disk where they exceed its memory; the blocks
then stand in one file of 5 bytes a margin, to be read as often as it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError
from noisescope.scoring.margins import (
    BLOCK,
    axes,
    connect,
    missing_margins,
    repeated_margins,
    required_parts,
    strange_margins,
    unreadable,
)
from noisescope.storage.sql import Spill, spill_failed

if TYPE_CHECKING:
    import duckdb

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: Margins that DuckDB hands over at once.
ROWS = 1 << 18
_SORTED = """
SELECT coalesce(p.file_row_number, -1) AS row, replica, margin, held_out
FROM read_parquet($parts) AS m
LEFT JOIN (SELECT pair_id, file_row_number
           FROM read_parquet($pairs, file_row_number = true)) AS p USING (pair_id)
"""
_LAST = "WHERE list_contains($last, replica::BIGINT * 4294967296 + step) "
_NAMES = """
SELECT pair_id FROM read_parquet($pairs, file_row_number = true)
WHERE list_contains($rows, file_row_number) ORDER BY file_row_number
"""


@final
@dataclass(frozen=True)
class Spool:
    """Margins [M, N] at each replica's last step, in a file of blocks."""

    path: Path
    pairs: int
    replicas: list[int]
    in_sample: bool

    def __len__(self) -> int:
        return self.pairs

    def blocks(self) -> Iterator[tuple[slice, Float, Bool]]:
        """(pairs, margins [M, n], which of them verdicts rest on [M, n]) of each block."""
        with self.path.open("rb") as file:
            for start in range(0, self.pairs, BLOCK):
                shape = len(self.replicas), min(BLOCK, self.pairs - start)
                count = shape[0] * shape[1]
                values = np.fromfile(file, np.float32, count).reshape(shape)
                held = np.fromfile(file, np.bool_, count).reshape(shape)
                counted = np.isfinite(values) if self.in_sample else held
                yield slice(start, start + shape[1]), values.astype(np.float64), counted


def spool(directory: Path, folder: str, scratch: Path, spill: Spill) -> Spool:
    """The margins in `folder` ("margins" or "averages") of a run, below `scratch`.

    Raises RunError as `read_margins` does, and where the spill directory is full.
    """
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts, pairs = required_parts(directory, folder)
    path = scratch / f"{folder}.blocks"
    try:
        count = pq.read_metadata(pairs).num_rows
        with connect(spill.memory, scratch) as connection:
            last, steps, in_sample = axes(connection, parts)
            rows = _sorted_rows(connection, parts, pairs, last if len(steps) > 1 else None)
            found = Spool(path, count, list(last), in_sample)
            lost = _write(found, rows)
            if lost.count:
                names = connection.execute(_NAMES, {"pairs": str(pairs), "rows": lost.first})
                first = [name for (name,) in names.fetchall()]
                raise missing_margins(lost.what, lost.count, count, first)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise failure(error, directory, scratch, [pairs, *parts]) from error
    return found


def failure(error: Exception, directory: Path, scratch: Path, paths: list[Path]) -> RunError:
    """What went wrong, in a user's words: memory, the spill directory's disk, or a damaged file."""
    import duckdb

    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, duckdb.OutOfMemoryException):
        return RunError(f"too little memory for the verdicts: {said}", hint="Raise --memory.")
    if "No space left" in said or (isinstance(error, OSError) and error.errno is not None):
        return spill_failed(scratch.parent, said)
    return unreadable(directory, paths, error)


def _sorted_rows(
    connection: duckdb.DuckDBPyConnection,
    parts: list[Path],
    pairs: Path,
    last: dict[int, int] | None,
) -> Iterator[tuple[NDArray[Any], ...]]:
    """Arrays (row, replica, margin, held_out) by ascending row, -1 where the pair is unknown.

    `last`: the step of each replica to keep; None keeps all.
    """
    sql = _SORTED
    asked: dict[str, Any] = {"parts": [str(part) for part in parts], "pairs": str(pairs)}
    if last is not None:
        sql += _LAST
        asked |= {"last": [(replica << 32) + step for replica, step in last.items()]}
    reader = connection.sql(sql + "ORDER BY row", params=asked).to_arrow_reader(ROWS)
    for batch in reader:
        yield tuple(column.to_numpy(zero_copy_only=False) for column in batch.columns)


@dataclass
class _Lost:
    """Pairs without a margin, or without one to rest on: how many, and the rows of the first."""

    what: str
    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, rows: NDArray[np.int64], start: int) -> None:
        self.count += len(rows)
        self.first += (rows[: 6 - len(self.first)] + start).tolist()


def _write(spool: Spool, rows: Iterator[tuple[NDArray[Any], ...]]) -> _Lost:
    """Write the blocks; the pairs that lack margins. Raises RunError for strange or repeated."""
    bare, unheld = _Lost("margin"), _Lost("held-out margin")
    kept = finite = strange = 0
    with spool.path.open("wb") as file:
        for start, values, held, counts in _filled(rows, spool):
            judged = np.isfinite(values)
            finite += int(judged.sum())
            kept, strange = counts
            counted = judged if spool.in_sample else judged & held
            bare.add(np.flatnonzero(~judged.any(axis=0)), start)
            unheld.add(np.flatnonzero(~counted.any(axis=0)), start)
            file.write(values.tobytes())
            file.write(held.tobytes())
    if strange:
        raise strange_margins(strange)
    if kept != finite:
        raise repeated_margins(kept - finite)
    return bare if bare.count else unheld


def _filled(
    rows: Iterator[tuple[NDArray[Any], ...]], spool: Spool
) -> Iterator[tuple[int, NDArray[np.float32], Bool, tuple[int, int]]]:
    """(first row, margins [M, n], held_out [M, n], (margins, strange ones) so far) by block."""
    replicas, count = np.array(spool.replicas), len(spool)
    kept = strange = start = 0

    def empty() -> tuple[NDArray[np.float32], Bool]:
        shape = len(replicas), max(0, min(BLOCK, count - start))
        return np.full(shape, np.nan, np.float32), np.zeros(shape, bool)

    values, held = empty()
    for row, replica, margin, mark in rows:
        unknown = int(np.searchsorted(row, 0))
        strange += unknown
        kept += len(row) - unknown
        at = unknown
        while at < len(row):
            end = int(np.searchsorted(row, start + BLOCK))
            here = slice(at, end)
            m = np.searchsorted(replicas, replica[here])
            values[m, row[here] - start] = margin[here]
            held[m, row[here] - start] = mark[here]
            at = end
            if end < len(row):
                yield start, values, held, (kept, strange)
                start += BLOCK
                values, held = empty()
    while start < count:
        yield start, values, held, (kept, strange)
        start += BLOCK
        values, held = empty()
