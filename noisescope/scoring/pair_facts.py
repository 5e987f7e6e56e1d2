"""What noise and intervals may depend on: who, where, which prompt and responses, which copies.

facts = read_facts(run.pairs_path)
facts.groupings    # codes of prompts, responses and annotators, for `clusters`
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.scoring.margins import connect

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

#: A cluster with more than this share of the pairs is the dataset itself.
LARGEST = 0.5
#: Lower case with single spaces: what near copies of a text have in common. Most texts have single
#: spaces already, and replacing takes several times as long as looking.
_SQUEEZED = r"""lower(CASE WHEN regexp_matches({0}, '^ |\s\s|[^\S ]| $')
                      THEN regexp_replace(trim({0}), '\s+', ' ', 'g') ELSE {0} END)"""
_QUERY = f"""
SELECT hash(prompt) AS prompt, hash(prompt, chosen) AS chosen, hash(prompt, rejected) AS rejected,
       hash({_SQUEEZED.format("prompt")},
            least({_SQUEEZED.format("chosen")}, {_SQUEEZED.format("rejected")}),
            greatest({_SQUEEZED.format("chosen")}, {_SQUEEZED.format("rejected")}),
            coalesce(annotator, ({_SQUEEZED.format("chosen")}
                                 < {_SQUEEZED.format("rejected")})::VARCHAR)) AS copy,
       CASE WHEN annotator IS NULL THEN NULL ELSE hash(annotator) END AS annotator,
       hash({{source}}) AS source,
       CASE WHEN {{group}} IS NULL THEN NULL ELSE hash({{group}}) END AS "group",
       {{strength}} AS strength,
       sign(length(chosen) - length(rejected))::TINYINT AS longer,
       {{first}} AS first
FROM read_parquet($pairs, file_row_number = true) ORDER BY file_row_number
"""


@final
@dataclass(frozen=True)
class PairFacts:
    """Facts of N pairs; codes are -1 where unknown, None where no pair has the fact.

    `prompts` [N], `groups` [N] and `sides` [N, 2] number prompts, the values of the group column
    and responses; `strengths` [N] are tenths of |strength of the preference|. `first`, `longer`:
    1 where the labelled side was shown first (is longer), 0 where the other one, -1 unknown.
    `weights`: 1 over how often the same annotator (or label) repeats a pair.
    """

    prompts: Int | None = None
    sides: Int | None = None
    annotators: Int | None = None
    sources: Int | None = None
    groups: Int | None = None
    strengths: Int | None = None
    first: Int | None = None
    longer: Int | None = None
    weights: Float | None = None

    @property
    def groupings(self) -> Sequence[Int]:
        """Clusters of the pairs, for intervals: where some have two pairs and none has most.

        One prompt for nearly all pairs is a fixed instruction, not a sample of prompts.
        """
        found: list[Int] = []
        for codes in (self.prompts, self.groups, self.annotators, self.sides):
            if codes is not None and (codes >= 0).any():
                count = np.bincount(codes[codes >= 0])
                if 1 < count.max() <= LARGEST * len(codes):
                    found.append(codes)
        return found

    def flipped(self, swap: Bool) -> PairFacts:
        """The facts with the labels in `swap` [N] reversed."""
        return replace(self, first=_turned(self.first, swap), longer=_turned(self.longer, swap))


def _turned(side: Int | None, swap: Bool) -> Int | None:
    return None if side is None else np.where(swap & (side >= 0), 1 - side, side)


def read_facts(
    pairs: Path, modality: str = "text", connection: duckdb.DuckDBPyConnection | None = None
) -> PairFacts:
    """The facts of a pairs.parquet, in its order. Image pairs have no lengths."""
    import pyarrow.parquet as pq

    names = pq.read_schema(pairs).names
    query = _QUERY.format(
        first="first::TINYINT" if "first" in names else "NULL::TINYINT",
        source="coalesce(origin, source)" if "origin" in names else "source",
        group='"group"' if "group" in names else "NULL::VARCHAR",
        strength="strength" if "strength" in names else "NULL::DOUBLE",
    )
    if connection is None:
        with connect() as opened:
            columns = opened.execute(query, {"pairs": str(pairs)}).fetchnumpy()
    else:
        columns = connection.execute(query, {"pairs": str(pairs)}).fetchnumpy()
    _, copies, count = np.unique(columns["copy"], return_inverse=True, return_counts=True)
    sides = np.stack([columns["chosen"], columns["rejected"]], axis=1)
    longer = _small(columns["longer"])
    return PairFacts(
        prompts=_coded(columns["prompt"]),
        sides=_coded(sides),
        annotators=_coded(columns["annotator"]),
        sources=_coded(columns["source"]),
        groups=_coded(columns["group"]),
        strengths=_tenths(columns["strength"]),
        first=_small(columns["first"]),
        longer=None if modality == "image" or longer is None else _side(longer),
        weights=1.0 / count[copies],
    )


def facts_of_table(table: pa.Table, modality: str = "text") -> PairFacts:
    """The facts of labels as an audit of a dataset with these pairs and labels would read them.

    Copies of a pair of which one is flipped are no copies any more.
    """
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "pairs.parquet"
        pq.write_table(table, path)
        return read_facts(path, modality)


def _coded(values: NDArray[np.uint64]) -> Int:
    """Codes 0.. of hashes, -1 where masked; the shape is kept."""
    mask = np.ma.getmaskarray(np.ma.asarray(values))
    codes = np.unique(np.ma.getdata(values), return_inverse=True)[1].reshape(mask.shape)
    return np.where(mask, -1, codes).astype(np.int64)


def _tenths(values: Float) -> Int | None:
    """Tenths of |value| by rank, equal values together, -1 where masked; None where all are."""
    size = np.abs(np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan))
    known = np.isfinite(size)
    if not known.any():
        return None
    edges = np.unique(np.quantile(size[known], np.arange(1, 10) / 10))
    return np.where(known, np.searchsorted(edges, size, side="right"), -1).astype(np.int64)


def _small(values: NDArray[np.int8]) -> Int | None:
    """Small integers, -1 where masked; None where all are."""
    mask = np.ma.getmaskarray(np.ma.asarray(values))
    if mask.all():
        return None
    return np.where(mask, -1, np.ma.getdata(values)).astype(np.int64)


def _side(sign: Int) -> Int:
    """1 where the chosen side is longer, 0 where the other is, -1 where they are alike."""
    return np.where(sign > 0, 1, np.where(sign < 0, 0, -1)).astype(np.int64)
