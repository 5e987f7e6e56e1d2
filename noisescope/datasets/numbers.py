"""Read numbers of a dataset's own columns, oriented by its labels, and count others' votes.

    read_numbers(dataset, ("reward_a", "reward_b"))   # [N], positive if the chosen side is better
    other_votes(dataset.table)                        # [N], positive if others chose that side too

One column is a number of a pair, two are a number of each side. They are taken in the order of the
sides in the source: chosen before rejected, or the first side before the second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.adapters.cells import RowFault, number
from noisescope.datasets.adapters.table import schema_again
from noisescope.datasets.sources import FLIPS
from noisescope.errors import DataError, UsageError
from noisescope.pairs import Pair

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.pairs import PreferenceDataset

Float = NDArray[np.float64]


def read_numbers(dataset: PreferenceDataset, columns: tuple[str, ...]) -> Float:
    """Difference of two columns, or one column, of each pair; NaN if a row has none, [N].

    Raises UsageError for a dataset whose rows are not pairs, and DataError for a column that is
    missing or has text.
    """
    option = f"--evidence column:{','.join(columns)}"
    schema = schema_again(dataset.adapter, dataset.columns, dataset.modality)
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


def other_votes(table: pa.Table) -> Float:
    """Log odds of the chosen side by the other annotators of the pair, [N]; NaN where none voted.

    log((k + 1/2) / (n - k + 1/2)) for k of n votes. An annotator has one vote a pair: the side that
    they labelled better more often. Labels without an annotator are nobody's vote.
    """
    import pyarrow.compute as pc

    contents, voter = (_codes(table[name]) for name in ("content_id", "annotator"))
    side = np.where(pc.less(table["chosen"], table["rejected"]).to_numpy(), 1, -1)
    known = voter >= 0
    voters = int(voter.max(initial=0)) + 1
    keys, at = np.unique(contents[known] * voters + voter[known], return_inverse=True)
    vote = np.sign(np.bincount(at, side[known], len(keys)))
    size = int(contents.max(initial=0)) + 1
    up, down = (np.bincount(keys // voters, vote == one, size)[contents] for one in (1, -1))
    own = np.zeros(len(side))
    own[known] = vote[at]
    agree = np.where(side > 0, up, down) - (own == side)
    against = np.where(side > 0, down, up) - (own == -side)
    odds = np.log((agree + 0.5) / (against + 0.5))
    return np.where(agree + against > 0, odds, np.nan)


def _codes(values: pa.ChunkedArray) -> NDArray[np.int64]:
    """Numbers of equal texts from 0, -1 where there is none, [N]."""
    indices = values.combine_chunks().dictionary_encode().indices
    return np.asarray(indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
