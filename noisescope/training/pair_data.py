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
from noisescope.training.batch_order import groups_held_out, held_out_by

Int = NDArray[np.int64]

Report = Callable[[str, int, int], None]  # stage, done, total


@final
@dataclass(frozen=True)
class PairData:
    """N pairs over I distinct (prompt, response) items."""

    pair_ids: list[str]
    fold_key: NDArray[np.uint64]  # [N], of each pair's content
    held_key: NDArray[np.uint64]  # [N], pairs of equal keys are held out together
    chosen: Int  # [N] item
    rejected: Int  # [N] item
    items: list[Item]

    def held_out(self, *, seed: int, replicas: int) -> NDArray[np.bool_]:
        """[M, N]: True where replica m never trains on the pair."""
        grouped = not np.array_equal(self.held_key, self.fold_key)
        split = groups_held_out if grouped else held_out_by
        return split(self.held_key, seed=seed, replicas=replicas)


def pair_data(table: pa.Table, held_key: NDArray[np.uint64] | None = None) -> PairData:
    """Distinct items and pair incidence of a table; by default single pairs are held out."""
    items, chosen, rejected = distinct_items(table)
    keys = fold_keys(table)
    held = keys if held_key is None else held_key
    return PairData(table["pair_id"].to_pylist(), keys, held, chosen, rejected, items)
