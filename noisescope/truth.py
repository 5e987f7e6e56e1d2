"""flips.parquet: which pairs of a planted copy are flipped, and by which plan.

It lies beside the copy; its schema metadata holds the plan, so that planting a copy again with
the same plan takes every decision back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisescope.errors import DataError
from noisescope.flips import U64, FlipPlan, Float, Parsed
from noisescope.pairs import unused

if TYPE_CHECKING:
    import pyarrow as pa

#: The truth, beside the copy; its schema metadata holds the plan under this key.
TRUTH = "flips.parquet"
PLAN_KEY = b"noisescope.flip"


def truth_schema(plan: FlipPlan) -> pa.Schema:
    """Columns of `flips.parquet`, with the plan in the metadata."""
    import pyarrow as pa

    fields = [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("flipped", pa.bool_(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
    return pa.schema(fields, metadata={PLAN_KEY: json.dumps(asdict(plan)).encode()})


def decided(truth: Path, plan: FlipPlan) -> Iterator[tuple[str, bool]] | None:
    """Decisions of the same plan, taken when the source was itself planted; else None."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not truth.is_file():
        return None
    try:
        file = pq.ParquetFile(truth)
        if (file.schema_arrow.metadata or {}).get(PLAN_KEY) != truth_schema(plan).metadata[
            PLAN_KEY
        ]:
            return None
        return _by_row(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{truth}: cannot be read ({error})") from error


def _by_row(file: Any) -> Iterator[tuple[str, bool]]:
    for batch in file.iter_batches(columns=["pair_id", "flipped"]):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def next_decisions(earlier: Iterator[tuple[str, bool]], chunk: Parsed) -> Float:
    """Chances 0 or 1 of a chunk's pairs, as decided before, in the same order."""
    told = list(islice(earlier, len(chunk.ids)))
    for name, (known, _) in zip(chunk.ids, told, strict=False):
        if known != name and not known.startswith(f"{name}~"):
            raise DataError(
                f"{TRUTH} beside the source tells of pair {known}, where {name} stands",
                hint="Remove it if it belongs to another dataset.",
            )
    if len(told) < len(chunk.ids):
        raise DataError(f"{TRUTH} beside the source tells of fewer pairs than it holds")
    return np.array([float(flipped) for _, flipped in told])


def name_repeats(raw: Path, path: Path, keys: Sequence[U64]) -> None:
    """Copy the truth, naming repeats of an id as `pairs.to_table` does; 8 bytes a pair held."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stated = np.concatenate([*keys, np.empty(0, np.uint64)])
    every = np.sort(stated)
    repeated = np.unique(every[1:][every[1:] == every[:-1]])
    begin = 0
    used: dict[str, int] = {}
    with (
        pq.ParquetFile(raw, pre_buffer=False) as file,
        pq.ParquetWriter(path, file.schema_arrow, compression="zstd") as out,
    ):
        for batch in file.iter_batches(1 << 15, use_threads=False):
            names = batch.column(0).to_pylist()
            clash = np.isin(stated[begin : begin + len(names)], repeated)
            begin += len(names)
            names = [
                unused(name, used) if clash[index] or "~" in name else name
                for index, name in enumerate(names)
            ]
            columns = [pa.array(names), *batch.columns[1:]]
            out.write_batch(pa.RecordBatch.from_arrays(columns, schema=file.schema_arrow))
