"""What is known of a run's labels from outside: for figures, and for the marks beside pairs.

    known = read_known(run)                       # what `noisescope validate` found, if it ran
    known_labels(run, ["8f2c...", "a01b..."])     # pair_id -> "planted flip"

No verdict reads any of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.flip.ground_truth import read_truth
from noisescope.errors import DataError
from noisescope.scoring.metrics import Interval
from noisescope.storage.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: Score columns that a figure may draw as a detector.
DRAWN = ("p_wrong", "p_flip", "u", "confidence", "stability")
#: Truth that may lie beside a dataset, and what it says of a label: (if true, if false).
BESIDE = {
    "flips.parquet": ("a planted flip", "not flipped"),
    "truth.parquet": ("known to be wrong", "known to be right"),
}


@final
@dataclass(frozen=True)
class Known:
    """Scores [N] of pairs whose truth is known, and where that knowledge is from."""

    columns: Mapping[str, Float]
    wrong: Bool
    said: str
    detectors: Mapping[str, Interval]
    ceiling: float | None


def column(table: pa.Table, name: str) -> Float:
    """A numeric column [N] as float64, NaN where null."""
    return np.asarray(table.column(name).to_numpy(), dtype=np.float64)


def read_known(run: Run) -> Known | None:
    """The pairs whose truth `noisescope validate` knew, if it ran: its first seed's scores."""
    import pyarrow.parquet as pq

    rows, summary = run.directory / "validation.parquet", run.directory / "validation.json"
    if not (rows.is_file() and summary.is_file()):
        return None
    result = json.loads(summary.read_text("utf-8"))
    table = pq.read_table(rows)
    table = table.filter(np.asarray(table.column("planting").to_numpy()) == 0)
    names = [name for name in ("margin", *DRAWN) if name in table.schema.names]
    found = {
        name: Interval(row["auroc"], *row["interval"]) for name, row in result["detectors"].items()
    }
    return Known(
        columns={name: column(table, name) for name in names},
        wrong=np.asarray(table.column("mislabelled").to_numpy(zero_copy_only=False), dtype=bool),
        said=result["said"],
        detectors=found,
        ceiling=result["bayes_auroc"],
    )


def known_labels(run: Run, pair_ids: Sequence[str]) -> dict[str, str]:
    """What is known of these labels, in words: from the truth file that `validate` was given,
    else from the truth that lies beside the run's dataset. Pairs it does not name are left out.
    """
    import pyarrow as pa

    table = pa.table({"pair_id": pa.array(pair_ids, pa.string())})
    for path in _truths(run):
        words = BESIDE.get(path.name, BESIDE["truth.parquet"])
        try:
            wrong, known = read_truth(path, table)
        except DataError:  # of another dataset, or of none of these pairs
            continue
        told = zip(pair_ids, wrong, known, strict=True)
        return {name: words[0 if bad else 1] for name, bad, sure in told if sure}
    return {}


def _truths(run: Run) -> list[Path]:
    """Truth files that may speak of the run's pairs, the most deliberate first."""
    found: list[Path] = []
    summary = run.directory / "validation.json"
    if summary.is_file():
        first = json.loads(summary.read_text("utf-8"))["plantings"][0]
        found += [Path(first["truth"])] if "truth" in first else []
    resolved = str(run.manifest().get("resolved", ""))
    for place in (resolved, resolved.rpartition(":")[0]):
        path = Path(place)
        if place and path.exists():
            folder = path if path.is_dir() else path.parent
            found += [folder / name for name in BESIDE]
    return [path for path in found if path.is_file()]
