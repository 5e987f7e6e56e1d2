"""Evidence on disk: one margin a pair x replica x checkpoint, marked held-out or not.

A margin is beta * l for the pair's stated direction: positive agrees with the label. Replicas
write parts, verdicts read `margins/part-*.parquet`; nothing else passes between the halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from noisescope.storage import write_atomic

if TYPE_CHECKING:
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
