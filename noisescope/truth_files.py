"""Truth files: which labels of a dataset are wrong, as somebody else knows it.

    wrong, known = read_truth(Path("truth.parquet"), table)

Parquet, CSV or JSON lines with the columns pair_id and mislabelled; `flips.parquet`, which says
`flipped` instead, is one. Nothing that audits reads them: only what judges an audit does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Bool = NDArray[np.bool_]
#: Columns that may say it; the first that is there counts.
LABELS = ("mislabelled", "flipped")


def read_truth(path: Path, table: pa.Table) -> tuple[Bool, Bool]:
    """(mislabelled, known) [N] of the pairs from a Parquet, CSV or JSON-lines file.

    Raises DataError where the file cannot be read, lacks a column, or names no pair of the run.
    """
    import pyarrow as pa

    try:
        stated = _truth_table(path)
        columns = stated.schema.names
        lists = {name: column.to_pylist() for name, column in _wanted(stated).items()}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as truth ({error})") from error
    label = next((name for name in LABELS if name in columns), None)
    if label is None or "pair_id" not in columns:
        raise DataError(
            f"{path}: a truth file needs pair_id and mislabelled, and has {', '.join(columns)}",
            hint="flips.parquet, which noisescope flip writes, is one.",
        )
    values = dict(zip(map(str, lists["pair_id"]), lists[label], strict=True))
    told = [values.get(name) for name in table.column("pair_id").to_pylist()]
    known = np.array([value is not None for value in told])
    if not known.any():
        raise DataError(f"{path}: names none of the run's pairs", hint="Is it another dataset's?")
    return np.array([str(v).strip().lower() in ("true", "1", "1.0") for v in told]), known


def _wanted(table: pa.Table) -> dict[str, Any]:
    """Columns that are used, by name."""
    return {name: table.column(name) for name in ("pair_id", *LABELS) if name in table.schema.names}


def _truth_table(path: Path) -> pa.Table:
    name = path.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        import pyarrow.csv

        return pyarrow.csv.read_csv(path)
    if name.endswith((".jsonl", ".jsonl.gz", ".ndjson")):
        import pyarrow.json

        return pyarrow.json.read_json(path)
    import pyarrow.parquet as pq

    return pq.read_table(path)
