"""A preference table as arrays: pairs over distinct (prompt, response) items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noisescope.models import Item
from noisescope.models.items import distinct_items, fold_keys

Int = NDArray[np.int64]

Report = Callable[[str, int, int], None]  # stage, done, total


@final
@dataclass(frozen=True)
class PairData:
    """N pairs over I distinct (prompt, response) items."""

    pair_ids: list[str]
    fold_key: NDArray[np.uint64]  # [N]
    chosen: Int  # [N] item
    rejected: Int  # [N] item
    items: list[Item]


def pair_data(table: pa.Table) -> PairData:
    """Distinct items and pair incidence of a table of pairs."""
    items, chosen, rejected = distinct_items(table)
    return PairData(table["pair_id"].to_pylist(), fold_keys(table), chosen, rejected, items)
