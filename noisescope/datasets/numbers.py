"""Read numbers of a dataset's own columns, oriented by its labels.

    read_numbers(dataset, ("reward_a", "reward_b"))   # [N], positive if the chosen side is better

One column is a number of a pair, two are a number of each side. They are taken in the order of the
sides in the source: chosen before rejected, or the first side before the second.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.adapters.cells import RowFault, number
from noisescope.datasets.adapters.schema import Schema
from noisescope.datasets.adapters.table import ADAPTERS
from noisescope.datasets.sources import FLIPS
from noisescope.errors import DataError, UsageError
from noisescope.pairs import Pair

if TYPE_CHECKING:
    from noisescope.pairs import PreferenceDataset

Float = NDArray[np.float64]


def read_numbers(dataset: PreferenceDataset, columns: tuple[str, ...]) -> Float:
    """Difference of two columns, or one column, of each pair; NaN if a row has none, [N].

    Raises UsageError for a dataset whose rows are not pairs, and DataError for a column that is
    missing or has text.
    """
    option = f"--evidence column:{','.join(columns)}"
    schema = _schema(dataset)
    if dataset.reread is None or schema.shape in ("list", "rows"):
        raise UsageError(
            f"{option}: rows of {dataset.resolved} are not pairs",
            hint="Write pair_id and the numbers to a Parquet file: --evidence file:NUMBERS.parquet",
        )
    if schema.shape == "sides" and dataset.flipped:
        raise UsageError(
            f"{option}: {dataset.resolved} is a flipped copy ({FLIPS}), and flips exchange the "
            "sides, not this column",
            hint="Write pair_id, chosen and the numbers to a Parquet file: "
            "--evidence file:NUMBERS.parquet",
        )
    places = list(
        zip(*(dataset.table.column(n).to_pylist() for n in ("source", "row")), strict=True)
    )
    wanted, seen = set(places), set[str]()
    found: dict[tuple[str, int], float] = {}
    for row in dataset.reread({*schema.used, *columns, *(c.partition(".")[0] for c in columns)}):
        if row.values is None or (row.source, row.number) not in wanted:
            continue
        seen.update(row.values)
        (pair,) = schema.parse(row.values)
        try:
            values = [number(row.values, column) for column in columns]
        except RowFault as fault:
            raise DataError(
                f"{option}: {row.source}:{row.number + 1}: {fault.detail}",
                hint="A column of evidence has a number in each row, or is empty.",
            ) from fault
        known = [value for value in values if value is not None]
        sign = -1.0 if isinstance(pair, Pair) and pair.first is False else 1.0
        if len(known) == len(columns):
            found[row.source, row.number] = sign * (known[0] - sum(known[1:]))
    missing = [column for column in columns if column.partition(".")[0] not in seen]
    if missing:
        raise DataError(
            f"{option}: {dataset.resolved} has no column {', '.join(missing)}",
            hint=f"It has {', '.join(sorted(seen))}.",
        )
    return np.array([found.get(place, np.nan) for place in places], np.float64)


def _schema(dataset: PreferenceDataset) -> Schema:
    """The schema that the dataset was read by."""
    base = ADAPTERS.get(dataset.adapter) or Schema(dataset.adapter, {}, modality=dataset.modality)
    return replace(base, roles=dataset.columns, modality=dataset.modality)
