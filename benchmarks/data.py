"""Load the shared real datasets with human votes and their truth, kept outside this repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisescope.pairs import PreferenceDataset, dataset_fingerprint


def truth(dataset: PreferenceDataset, path: Path) -> NDArray[np.bool_]:
    """Return column `mislabelled` of a truth file in the order of the pairs of the dataset, [N]."""
    table = pq.read_table(path, columns=["pair_id", "mislabelled"])
    known = dict(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
    return np.array([known[key] for key in dataset.table.column("pair_id").to_pylist()], bool)


def with_sides_swapped(dataset: PreferenceDataset, swap: NDArray[np.bool_]) -> PreferenceDataset:
    """Return the dataset with chosen and rejected exchanged where `swap` [N] is true."""
    from dataclasses import replace

    mask = pa.array(swap)
    chosen, rejected = dataset.table.column("chosen"), dataset.table.column("rejected")
    table = dataset.table
    for name, this, other in (("chosen", chosen, rejected), ("rejected", rejected, chosen)):
        field = table.schema.field(name)
        values = pa.compute.if_else(mask, other, this)
        table = table.set_column(table.schema.get_field_index(name), field, values)
    return replace(dataset, table=table, fingerprint=dataset_fingerprint(table))
