"""Write and read margins, the Parquet files between training replicas and scoring pairs.

    write_margins(run.margins_directory / "part-0.parquet", ids, margins, steps=[1], held_out=held)
    found = read_margins(run.directory)      # float32 [M, T, N], in the order of pairs.parquet

A margin is beta * l for the labelled direction: positive agrees with the label. DuckDB matches
rows to pairs and streams them, so reading needs 5 bytes a margin and a bounded buffer.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError, first_five, first_line
from noisescope.storage.files import write_atomic
from noisescope.storage.remote import Place, place_of
from noisescope.storage.sql import Spill, fresh, spill_failed

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


def schema() -> pa.Schema:
    """Columns of a margins part."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("pair_id", pa.string(), nullable=False),
            pa.field("replica", pa.int16(), nullable=False),
            pa.field("step", pa.int32(), nullable=False),
            pa.field("margin", pa.float32(), nullable=False),
            pa.field("held_out", pa.bool_(), nullable=False),
        ]
    )


def write_margins(
    path: Path,
    pair_ids: pa.Array | pa.ChunkedArray,
    margins: NDArray[np.float32],
    *,
    steps: Sequence[int],
    held_out: NDArray[np.bool_],
    first_replica: int = 0,
) -> None:
    """Write margins [M, T, N] of replicas `first_replica`.. to one part, one row group a replica.

    `steps` [T] are optimiser steps; `held_out` [M, N] is True if a replica did not train on the
    pair. Rows with a NaN margin (a pair the replica could not judge) are omitted.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = pair_ids.combine_chunks() if isinstance(pair_ids, pa.ChunkedArray) else pair_ids

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema(), compression="zstd") as writer:
            for replica, by_step in enumerate(margins):
                for step, values in zip(steps, by_step, strict=True):
                    judged = np.flatnonzero(np.isfinite(values))
                    columns = [
                        ids.take(pa.array(judged)),
                        pa.array(np.full(len(judged), first_replica + replica, np.int16)),
                        pa.array(np.full(len(judged), step, np.int32)),
                        pa.array(values[judged].astype(np.float32)),
                        pa.array(held_out[replica][judged]),
                    ]
                    writer.write_table(pa.Table.from_arrays(columns, schema=schema()))

    write_atomic(path, write)


#: Files (with a column of that name) beside a run's margins.
SHIFT, OUTSIDE = "shift", "outside"


def write_part(
    folder: Path, name: str, pair_ids: pa.ChunkedArray, part: NDArray[np.floating] | None
) -> None:
    """Write what one kind of outside evidence is worth for each pair [N], if there is any.

    SHIFT: the part of the mean margin that rests on answers to selected pairs. Pairs about which a
    judge is asked because their label looks wrong are no sample: their margins move, and those of
    pairs whose label looks right do not. So what is estimated from the margins of all pairs (noise,
    accuracy) is estimated from margin - shift. OUTSIDE: the log odds that the label is right by
    other judgements alone (`source_fits.outside_odds`).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if part is not None:
        whole = pa.table({"pair_id": pair_ids, name: pa.array(part, pa.float32())})
        path = folder / f"{name}.parquet"
        write_atomic(path, lambda path: pq.write_table(whole, path, compression="zstd"))


def _read_part(
    folder: Path | Place, name: str, pairs: Path | io.BytesIO
) -> NDArray[np.float32] | None:
    """A part of the margins of a run's pairs; None if there is none. Raises RunError."""
    import pyarrow.parquet as pq

    path = folder / f"{name}.parquet"
    if not path.is_file():
        return None
    found = pq.read_table(path if isinstance(path, Path) else io.BytesIO(path.read()))
    if found.column("pair_id") != pq.read_table(pairs, columns=["pair_id"]).column(0):
        raise RunError(
            f"{path} is of other pairs",
            hint="Remove it and run the command that made the run again.",
        )
    return np.asarray(found.column(name).to_numpy(), np.float32)


#: A directory or file here, or on object storage.
Where = TypeVar("Where", Path, Place)
#: Rows that DuckDB hands over at once.
ROWS = 1 << 20
#: Pairs scored at once: bounds the float64 temporaries.
BLOCK = 1 << 18
#: Unsorted: `row` is the position in the arrays.
_ROWS = """
SELECT coalesce(p.file_row_number, -1) AS row, replica, step, margin, held_out
FROM read_parquet($parts) AS m
LEFT JOIN (SELECT pair_id, file_row_number
           FROM read_parquet($pairs, file_row_number = true)) AS p USING (pair_id)
"""
_LAST_STEPS = "WHERE list_contains($last, replica::BIGINT * 4294967296 + step)"


@final
@dataclass(frozen=True)
class RunMargins:
    """A run's margins in the order of pairs.parquet; `steps` [T] ascending.

    `margins` [M, T, N] float32 (NaN where a replica has none), `held_out` [M, N] at each
    replica's last step. Read with `last`, T = 1: each replica's own last step. `shift` and
    `outside` [N] are of outside evidence (see `write_part`), None without it.
    """

    replicas: list[int]
    steps: list[int]
    margins: NDArray[np.float32]
    held_out: NDArray[np.bool_]
    shift: NDArray[np.float32] | None = None
    outside: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return int(self.held_out.shape[1])

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.bool_]]]:
        """(pairs, last margins [M, n], which of them count [M, n]) of each block of pairs."""
        in_sample = self.in_sample
        for start in range(0, len(self), BLOCK):
            block = slice(start, min(start + BLOCK, len(self)))
            values = self.margins[:, -1, block]
            counted = np.isfinite(values) if in_sample else self.held_out[:, block]
            yield block, values.astype(np.float64), counted

    @property
    def in_sample(self) -> bool:
        """Whether no margin is held out: external adapters that may have trained on the pairs."""
        return not self.held_out.any()

    @property
    def counted(self) -> NDArray[np.bool_]:
        """The margins [M, N] that scores use: the held-out ones, or all if there are none."""
        return np.isfinite(self.margins[:, -1]) if self.in_sample else self.held_out


def read_margins(
    directory: Path | str,
    *,
    last: bool = True,
    folder: str = "margins",
    spill: Spill | None = None,
    scratch: Path | None = None,
) -> RunMargins:
    """Read the margins of the run in `directory`: each replica's last step, or every step.

    A URL such as s3://bucket/runs/hh-rlhf-1a2b3c4d is read through fsspec, without checking
    checksums. `folder` "averages" holds the margins of averaged copies. With a directory `scratch`
    the arrays are memory-mapped files in it, so a run may be larger than memory. Raises RunError if
    files are missing or damaged, margins belong to unknown pairs or occur twice, some pair has no
    margin (with the count and the first five), or the disk of `scratch` is full.
    """
    if isinstance(directory, str):
        return _read(place_of(directory), last, folder, spill or Spill(), scratch)
    return _read(directory, last, folder, spill or Spill(), scratch)


def _read(place: Where, last: bool, folder: str, spill: Spill, scratch: Path | None) -> RunMargins:
    """`read_margins` of a local run or one on object storage."""
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts: list[Where]
    pairs: Where
    parts, pairs = _required_parts(place, folder)
    paths: list[Where] = [pairs]
    paths += parts
    try:
        source = pairs if isinstance(pairs, Path) else io.BytesIO(pairs.read())
        count = pq.read_metadata(source).num_rows
        with connect(spill.memory, scratch) as connection:
            if isinstance(place, Place):
                connection.register_filesystem(place.system)
            names = [str(part) for part in parts]
            last_steps, steps = _axes(connection, names)
            shape = len(last_steps), 1 if last else len(steps), count
            found = RunMargins(
                list(last_steps),
                [max(steps)] if last else steps,
                _filled(shape, np.float32, np.nan, scratch and scratch / f"{folder}.values"),
                _filled(shape[::2], np.bool_, False, scratch and scratch / f"{folder}.held"),
            )
            _fill(connection, names, str(pairs), last_steps, steps, found)
        if folder == "margins":
            shift, outside = (_read_part(place / folder, n, source) for n in (SHIFT, OUTSIDE))
            found = replace(found, shift=shift, outside=outside)
        _require_all(found, source)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise failure(error, place, scratch, paths) from error
    return found


def _required_parts(directory: Where, folder: str) -> tuple[list[Where], Where]:
    """A run's files of margins, and its pairs. Raises RunError if there are none."""
    inner = directory / folder
    parts: list[Where] = []
    if isinstance(inner, Path):
        parts = sorted(inner.glob("part-*.parquet"))
    else:
        parts = [path for path in inner.files() if fnmatch(path.name, "part-*.parquet")]
    pairs = directory / "pairs.parquet"
    if not parts or not pairs.is_file():
        what = f"{folder}/part-*.parquet" if pairs.is_file() else "pairs.parquet"
        raise RunError(
            f"{directory} has no {what}", hint="Make the margins first: noisescope score DATASET"
        )
    return parts, pairs


def failure(
    error: Exception, directory: Where, scratch: Path | None, paths: Sequence[Where]
) -> RunError:
    """The error of a run that cannot be read: memory, the disk of `scratch`, or a damaged file."""
    import duckdb

    reason = first_line(error)
    if isinstance(error, duckdb.OutOfMemoryException):
        return RunError(f"not enough memory for the scores: {reason}", hint="Raise --memory.")
    full = "No space left" in reason or (isinstance(error, OSError) and error.errno is not None)
    if scratch is not None and full:
        return spill_failed(scratch.parent, reason)
    return RunError(
        f"{directory}: {_culprit(paths)} cannot be read: {error}",
        hint="Remove the damaged file and run the command that made the run again.",
    )


def _culprit(paths: Sequence[Where]) -> str:
    """The name of the first of `paths` here that does not decode, or a description of all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        if not isinstance(path, Path):
            continue
        try:
            with pq.ParquetFile(path) as file:
                for _ in file.iter_batches():
                    pass
        except (pa.ArrowException, OSError):
            return path.name
    return f"{paths[0].name} or its margins"


def connect(memory: str = Spill.memory, folder: Path | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that spills beyond `memory`: below `folder`, else to the system's
    temporary directory."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET memory_limit = '{memory}'")
    connection.execute("SET temp_directory = $spill", {"spill": fresh(folder)})
    connection.execute("SET preserve_insertion_order = false")
    connection.execute("SET enable_progress_bar = false")  # it would be drawn on stdout
    return connection


def _axes(
    connection: duckdb.DuckDBPyConnection, parts: Sequence[str]
) -> tuple[dict[int, int], list[int]]:
    """Last step of each replica, and all steps ascending."""
    rows = connection.execute(
        "SELECT DISTINCT replica, step FROM read_parquet(?) ORDER BY replica, step", [list(parts)]
    ).fetchall()
    return dict(rows), sorted({step for _, step in rows})


def _filled(
    shape: tuple[int, ...], kind: type[Any], value: object, path: Path | None
) -> NDArray[Any]:
    """An array of `value`, in memory or mapped from a new file at `path`.

    The file is written in full: a mapped hole on a full disk would end the process.
    """
    if path is None:
        return np.full(shape, value, kind)
    size = math.prod(shape)
    with path.open("wb") as file:
        for start in range(0, size, ROWS):
            np.full(min(ROWS, size - start), value, kind).tofile(file)
    if not size:
        return np.empty(shape, kind)
    return np.asarray(np.memmap(path, kind, "r+", shape=shape))


def _fill(
    connection: duckdb.DuckDBPyConnection,
    parts: Sequence[str],
    pairs: str,
    last_steps: dict[int, int],
    steps: list[int],
    found: RunMargins,
) -> None:
    """Stream the rows of `parts` into `found`. Raises RunError for unknown or repeated rows."""
    replicas, final_step = np.array(list(last_steps)), np.array(list(last_steps.values()))
    some = found.margins.shape[1] < len(steps)
    values: dict[str, Any] = {"parts": list(parts), "pairs": pairs}
    if some:
        values["last"] = [(replica << 32) + step for replica, step in last_steps.items()]
    kept = unknown = 0
    for batch in connection.sql(
        _ROWS + (_LAST_STEPS if some else ""), params=values
    ).to_arrow_reader(ROWS):
        columns = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
        known = columns[0] >= 0
        unknown += int((~known).sum())
        row, replica, step, margin, held = (column[known] for column in columns)
        m = np.searchsorted(replicas, replica)
        t = np.zeros_like(m) if some else np.searchsorted(steps, step)
        found.margins[m, t, row] = margin
        kept += len(row)
        is_last = step == final_step[m]
        found.held_out[m[is_last], row[is_last]] = held[is_last]
    if unknown:
        raise RunError(
            f"{unknown:,} margins are of pairs that pairs.parquet does not contain",
            hint="The directory mixes two runs: score the dataset into a new one.",
        )
    finite = sum(int(np.isfinite(by_replica).sum()) for by_replica in found.margins)
    if kept != finite:
        raise RunError(
            f"{kept - finite:,} margins come twice or are not finite numbers",
            hint="Two shards may have been given the same index: remove the margins and score "
            "again.",
        )


def _require_all(found: RunMargins, pairs: Path | io.BytesIO) -> None:
    """Raise RunError naming the pairs without any margin, or without a held-out one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lost: dict[str, list[NDArray[np.int64]]] = {"margin": [], "held-out margin": []}
    for block, values, counted in found.blocks():
        finite = np.isfinite(values)
        for what, some in zip(lost, (finite, finite & counted), strict=True):
            lost[what].append(np.flatnonzero(~some.any(axis=0)) + block.start)
    for what, blocks in lost.items():
        rows = np.concatenate(blocks) if blocks else np.empty(0, np.int64)
        if not len(rows):
            continue
        ids = pq.read_table(pairs, columns=["pair_id"]).column(0)
        first = [str(name) for name in ids.take(pa.array(rows[:6])).to_pylist()]
        raise RunError(
            f"{len(rows):,} of {len(found):,} pairs have no {what}: "
            f"{first_five([*first, *[''] * (len(rows) - len(first))])}",
            hint="Run the command that made the run again: it fills what is missing.",
        )
