"""Load W and Gamma for every pair of a dataset from a file.

    weights = file_weights(Path("weights.parquet"), dataset)

Pairs are matched by pair_id. Exports also name the dataset, the scheme and each label, and others
are refused; a file of one's own with pair_id and W is taken as it is, with a note.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.readers import read_table
from noisescope.errors import DataError, RunError, first_five
from noisescope.pairs import PreferenceDataset, keys_of, label_key
from noisescope.scoring.weigh import BELIEVED, LABEL, SCHEME, SCHEMES
from noisescope.scoring.weights import belief
from noisescope.training.policy.pair_weights import (
    WORDS,
    PairWeights,
    check_dataset,
    in_order,
)

if TYPE_CHECKING:
    import pyarrow as pa

Float = NDArray[np.float64]

#: Schemes that a file of probabilities serves, and the column.
PROBABILITIES = {"prior": "p_prior", "soft": "p_wrong"}
#: What a weights file may call W.
WEIGHT_NAMES = ("W", "weight", "w")


def file_weights(path: Path, dataset: PreferenceDataset, scheme: str = "") -> PairWeights:
    """Weights of a Parquet, CSV or JSONL file: pair_id, W (or weight), gamma (0 where absent).

    A `scheme` of PROBABILITIES other than the file's is made of its column of probabilities. The
    columns `scheme` and `label` state what the file was made by and which labels it is about.
    Raises RunError for another dataset or other labels, DataError for gaps, missing columns, and a
    gamma of unknown meaning.
    """
    table = read_table(path)
    facts, stated = _origin(table), _stated_scheme(path, table)
    ours = {LABEL, SCHEME} <= set(table.column_names)
    description = f"file {path.name}"
    if "dataset_fingerprint" in facts:
        check_dataset(str(path), facts["dataset_fingerprint"], facts.get("dataset"), dataset)
    elif not ours:
        description += " (it names no dataset: matched by pair_id alone)"
    scheme = scheme or stated
    name = _weight_column(path, table, scheme, stated)
    weight, gamma = _numbers(table, name), np.zeros(table.num_rows)
    if name not in WEIGHT_NAMES:
        weight, gamma = np.ones(table.num_rows), _odds(name, weight)
    elif "gamma" in table.column_names:
        gamma = _numbers(table, "gamma")
        if not stated and (gamma != 0).any():
            raise DataError(
                f"{path} does not state what its column gamma is",
                hint=f"Add a column {SCHEME} that contains u in all rows (gamma is a shift of the "
                f"margin), or {', '.join(BELIEVED)} (log odds that the label is right).",
            )
    ids = [str(one) for one in table.column("pair_id").cast("string").to_pylist()]
    if len(set(ids)) < len(ids):
        twice = [one for one, number in Counter(ids).items() for _ in range(number - 1)]
        raise DataError(
            f"{len(twice):,} pairs are more than once in {path.name}: {first_five(twice)}",
            hint="Keep one row for each pair.",
        )
    keys = keys_of(ids)
    order = np.argsort(keys, kind="stable")
    names, aside = dataset.table.column("pair_id").to_pylist(), int(facts.get("set_aside", 0))
    weight, gamma, at = in_order(names, keys[order], weight[order], gamma[order], path.name, aside)
    if ours:
        _check_labels(
            path, dataset, table.column(LABEL).to_pylist(), np.where(at < 0, -1, order[at])
        )
    description += f": {WORDS[scheme]}" if scheme in WORDS else ""
    return PairWeights(weight, gamma, description, scheme=scheme)


def scheme_of(path: Path) -> str:
    """The scheme of a weights file; empty for weights of unknown origin. Raises DataError."""
    return _stated_scheme(path, read_table(path))


def _stated_scheme(path: Path, table: pa.Table) -> str:
    """The scheme that a weights file states, or that its columns allow alone; else empty."""
    if SCHEME in table.column_names:
        schemes = table.column(SCHEME).unique().to_pylist()
        if len(schemes) != 1 or schemes[0] not in SCHEMES:
            raise DataError(
                f"{path}: the column {SCHEME} holds {first_five([str(one) for one in schemes])}",
                hint=f"It must hold one of {', '.join(SCHEMES)} in all rows.",
            )
        return str(schemes[0])
    if stated := _origin(table).get("weight"):
        return str(stated)
    if set(WEIGHT_NAMES).intersection(table.column_names):
        return ""
    return next((s for s, name in PROBABILITIES.items() if name in table.column_names), "")


def _weight_column(path: Path, table: pa.Table, scheme: str, stated: str) -> str:
    """The column that the weights of a file are made of. Raises DataError if it has none."""
    columns = set(table.column_names)
    wanted: tuple[str, ...] = WEIGHT_NAMES
    if scheme in PROBABILITIES and (scheme != stated or not columns.intersection(WEIGHT_NAMES)):
        wanted = (PROBABILITIES[scheme],)
    name = next((name for name in wanted if name in columns), None)
    if "pair_id" not in columns or name is None:
        raise DataError(
            f"{path} has the columns {', '.join(table.column_names)}; "
            f"pair_id and {wanted[0]} are needed",
            hint="Make one: noisescope export --format weights",
        )
    return name


def _odds(name: str, p: Float) -> Float:
    """`belief` of a file's column p [N]. Raises DataError for numbers outside [0, 1]."""
    outside = (p < 0) | (p > 1)
    if outside.any():
        raise DataError(
            f"{name} is {p[outside][0]:g} for one of the pairs, and must be in [0, 1]",
            hint="Make one: noisescope export --format weights",
        )
    return belief(p)


def _origin(table: pa.Table) -> Mapping[str, Any]:
    """The dataset that an exported Parquet file was made for, by its metadata."""
    for value in (table.schema.metadata or {}).values():
        try:
            facts = json.loads(value)
        except ValueError:
            continue
        if isinstance(facts, dict) and "dataset_fingerprint" in facts:
            return facts
    return {}


def _numbers(table: pa.Table, name: str) -> Float:
    """A column as float64. Raises DataError if it holds no numbers."""
    import pyarrow as pa

    try:
        column = table.column(name).cast(pa.float64()).combine_chunks()
    except pa.ArrowException as error:
        raise DataError(
            f"column {name} of the weights holds no numbers",
            hint="Make one: noisescope export --format weights",
        ) from error
    values: Float = column.to_numpy(zero_copy_only=False)
    return values


def _check_labels(
    path: Path, dataset: PreferenceDataset, labels: Sequence[Any], rows: NDArray[np.int64]
) -> None:
    """Refuse weights made for other labels; `rows` [N] of the file are those of the pairs."""
    columns = [dataset.table.column(n).to_pylist() for n in ("pair_id", "content_id", "chosen")]
    other = [
        name
        for name, content, chosen, row in zip(*columns, rows.tolist(), strict=True)
        if row >= 0 and str(labels[row]) != label_key(content, chosen)
    ]
    if other:
        raise RunError(
            f"{path} holds weights for other labels: {len(other):,} of {len(rows):,} pairs of "
            f"{dataset.name} have another text or the opposite label: {first_five(other)}",
            hint="Leave --weights out: the dataset's own audit is found, or made first.",
        )
