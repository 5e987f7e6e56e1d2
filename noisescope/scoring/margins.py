"""Read a run's margins back from Parquet as arrays: the only door of the verdict half.

DuckDB matches margins to pairs and streams rows; arrays are float32 [M, T, N] in the pairs' own
order, so memory is 4 M T N bytes and a bounded buffer. Usage: `read_margins(directory)`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError, first_five
from noisescope.storage.files import write_atomic
from noisescope.storage.remote import Place, place_of
from noisescope.storage.sql import fresh

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from numpy.typing import NDArray


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

    `steps` [T] are optimiser steps; `held_out` [M, N] says whether a replica never trained on
    the pair. Rows with a NaN margin (a pair the replica could not judge) are left out.
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


#: A directory or file here, or on object storage.
Where = TypeVar("Where", Path, Place)
#: DuckDB's own working memory; it spills to disk beyond it.
MEMORY_LIMIT = "1GB"
ROWS = 1 << 20
#: Pairs judged at once: bounds the float64 temporaries.
BLOCK = 1 << 18


@final
@dataclass(frozen=True)
class RunMargins:
    """A run's evidence: `pair_ids` [N] in the order of pairs.parquet, `steps` [T] ascending.

    `margins` [M, T, N] float32 (NaN where a replica has none), `held_out` [M, N] at each
    replica's last step. With `last` only, T = 1 and each replica stands at its own last step.
    """

    pair_ids: pa.ChunkedArray
    replicas: list[int]
    steps: list[int]
    margins: NDArray[np.float32]
    held_out: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.pair_ids)

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.bool_]]]:
        """(pairs, last margins [M, n], which of them count [M, n]) of each block of pairs."""
        for start in range(0, len(self), BLOCK):
            block = slice(start, start + BLOCK)
            yield block, self.margins[:, -1, block].astype(np.float64), self.counted[:, block]

    @property
    def in_sample(self) -> bool:
        """Whether no margin at all is held out: adapters from elsewhere that may have trained."""
        return not self.held_out.any()

    @property
    def counted(self) -> NDArray[np.bool_]:
        """The margins [M, N] verdicts rest on: held-out ones, or all where there is none."""
        return np.isfinite(self.margins[:, -1]) if self.in_sample else self.held_out


def read_margins(
    directory: Path | str, *, last: bool = True, folder: str = "margins"
) -> RunMargins:
    """Margins of the run in `directory`, at each replica's last step or (`last=False`) at all.

    A URL such as s3://bucket/runs/hh-rlhf-1a2b3c4d is read through fsspec, part by part, without
    a look at checksums. `folder` "averages" holds those of averaged copies. Raises RunError where
    files are missing, margins name unknown pairs or come twice, or some pair has no margin (count
    and first five).
    """
    if isinstance(directory, str):
        return _read(place_of(directory), last, folder)
    return _read(directory, last, folder)


def _read(place: Where, last: bool, folder: str) -> RunMargins:
    """`read_margins` here, or from object storage."""
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts: list[Where]
    pairs: Where
    parts, pairs = required_parts(place, folder)
    try:
        source = pairs if isinstance(pairs, Path) else io.BytesIO(pairs.read())
        ids = pq.read_table(source, columns=["pair_id"]).column(0)
        with connect() as connection:
            if isinstance(place, Place):
                connection.register_filesystem(place.system)
            last_steps, steps, _ = axes(connection, parts)
            names = [str(part) for part in parts]
            wanted = None if last else steps
            found = _fill(connection, names, str(pairs), len(ids), last_steps, wanted)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        parts.append(pairs)
        raise unreadable(place, parts, error) from error
    result = RunMargins(ids, list(last_steps), [max(steps)] if last else steps, *found)
    _require_all(ids, result)
    return result


def required_parts(directory: Where, folder: str) -> tuple[list[Where], Where]:
    """A run's files of margins, and its pairs. Raises RunError where there are none."""
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
            f"{directory} has no {what}", hint="Make the evidence first: noisescope score DATASET"
        )
    return parts, pairs


def unreadable(directory: Where, paths: Sequence[Where], error: Exception) -> RunError:
    """The error of a run one of whose files is damaged, by its name."""
    return RunError(
        f"{directory}: {_culprit(paths)} cannot be read: {error}",
        hint="Remove the damaged file and type the command that made the run again.",
    )


def _culprit(paths: Sequence[Where]) -> str:
    """The first of `paths` here that does not decode, or all of them in words."""
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


def connect(memory: str = MEMORY_LIMIT, folder: Path | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that spills beyond `memory`: below `folder`, else beside the system's
    temporary files."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET memory_limit = '{memory}'")
    connection.execute("SET temp_directory = $spill", {"spill": fresh(folder)})
    connection.execute("SET preserve_insertion_order = false")
    connection.execute("SET enable_progress_bar = false")  # it would be drawn on stdout
    return connection


def axes(
    connection: duckdb.DuckDBPyConnection, parts: Sequence[Path | Place]
) -> tuple[dict[int, int], list[int], bool]:
    """Last step of each replica, all steps ascending, and whether no last margin is held out."""
    rows = connection.execute(
        "SELECT replica, step, bool_or(held_out) FROM read_parquet(?) "
        "GROUP BY replica, step ORDER BY replica, step",
        [[str(part) for part in parts]],
    ).fetchall()
    last = {replica: step for replica, step, _ in rows}
    in_sample = not any(held for replica, step, held in rows if last[replica] == step)
    return last, sorted({step for _, step, _ in rows}), in_sample


def _fill(
    connection: duckdb.DuckDBPyConnection,
    parts: Sequence[str],
    pairs: str,
    count: int,
    last_steps: dict[int, int],
    steps: list[int] | None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Stream rows into margins [M, T, N] and held_out [M, N]; `steps` None means last ones only."""
    depth = 1 if steps is None else len(steps)
    margins = np.full((len(last_steps), depth, count), np.nan, np.float32)
    held_out = np.zeros((len(last_steps), count), bool)
    replicas = np.array(list(last_steps))
    final_step = np.array(list(last_steps.values()))
    seen = unknown = 0
    for row, replica, step, margin, held in _rows(connection, parts, pairs):
        known = row >= 0
        unknown += int((~known).sum())
        m = np.searchsorted(replicas, replica)
        is_last = step == final_step[m]
        keep = known & (is_last if steps is None else True)
        t = np.zeros_like(m) if steps is None else np.searchsorted(steps, step)
        margins[m[keep], t[keep], row[keep]] = margin[keep]
        seen += int(keep.sum())
        held_out[m[keep & is_last], row[keep & is_last]] = held[keep & is_last]
    if unknown:
        raise strange_margins(unknown)
    repeated = seen - int(np.isfinite(margins).sum())
    if repeated:
        raise repeated_margins(repeated)
    return margins, held_out


def _rows(connection: duckdb.DuckDBPyConnection, parts: Sequence[str], pairs: str) -> Any:
    """Blocks (row, replica, step, margin, held_out) of arrays; row -1 where the pair is unknown."""
    reader = connection.sql(
        "SELECT coalesce(p.file_row_number, -1) AS row, replica, step, margin, held_out "
        "FROM read_parquet($parts) AS m "
        "LEFT JOIN (SELECT pair_id, file_row_number "
        "           FROM read_parquet($pairs, file_row_number = true)) AS p USING (pair_id)",
        params={"parts": list(parts), "pairs": pairs},
    ).to_arrow_reader(ROWS)
    for batch in reader:
        yield tuple(column.to_numpy(zero_copy_only=False) for column in batch.columns)


def strange_margins(count: int) -> RunError:
    """The error of margins that belong to another dataset."""
    return RunError(
        f"{count:,} margins are of pairs that pairs.parquet does not hold",
        hint="The directory mixes two runs: score the dataset into a new one.",
    )


def repeated_margins(count: int) -> RunError:
    """The error of margins that no pair, replica and step has once."""
    return RunError(
        f"{count:,} margins come twice or are not finite numbers",
        hint="Were two shards given the same index? Remove the margins and score again.",
    )


def missing_margins(what: str, count: int, total: int, first: Sequence[str]) -> RunError:
    """The error of pairs that have no margin, or none held out; `first` some of their ids."""
    shown = first_five([*first, *[""] * (count - len(first))])
    return RunError(
        f"{count:,} of {total:,} pairs have no {what}: {shown}",
        hint="Type the command that made the run again: it fills what is missing.",
    )


def _require_all(ids: pa.ChunkedArray, found: RunMargins) -> None:
    """Raise RunError naming the pairs without any margin, or without a held-out one."""
    import pyarrow as pa

    judged = np.isfinite(found.margins[:, -1])
    for what, some in (("margin", judged), ("held-out margin", judged & found.counted)):
        missing = np.flatnonzero(~some.any(axis=0))
        if len(missing):
            first = [str(name) for name in ids.take(pa.array(missing[:6])).to_pylist()]
            raise missing_margins(what, len(missing), len(ids), first)
