"""Read the known truth about a run's labels, for figures and for remarks on pairs.

    known = read_known(run)                       # the results of `noisescope validate`, if any
    known_labels(run, ["8f2c...", "a01b..."])     # pair_id -> "planted flip"

Scores do not depend on any of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.flip.ground_truth import own_ids, read_truth
from noisescope.errors import DataError
from noisescope.scoring.metrics import Interval
from noisescope.storage.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: Score columns that a figure may draw as a detector.
DRAWN = ("p_wrong", "p_flip", "u", "confidence", "stability")
#: Truth files next to a dataset -> remarks on a label (wrong, right).
REMARKS = {
    "flips.parquet": ("a planted flip", "not flipped"),
    "truth.parquet": ("known to be wrong", "known to be right"),
}


@final
@dataclass(frozen=True)
class Known:
    """Scores [N] of pairs with known truth, and a description of its origin.

    `what` is the truth: flipped for planted flips, wrong for a file that lists wrong labels.
    """

    columns: Mapping[str, Float]
    wrong: Bool
    description: str
    detectors: Mapping[str, Interval]
    ceiling: float | None
    what: str = "flipped"

    @property
    def score(self) -> str:
        """The probability that is about this truth."""
        return "p_wrong" if self.what == "wrong" and "p_wrong" in self.columns else "p_flip"


def column(table: pa.Table, name: str) -> Float:
    """Return a numeric column [N] as float64, NaN for null."""
    return np.asarray(table.column(name).to_numpy(), dtype=np.float64)


def read_known(run: Run) -> Known | None:
    """Read the scores of the first seed of `noisescope validate`; None if it did not run."""
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
        description=result["said"],
        detectors=found,
        ceiling=result["bayes_auroc"],
        what="flipped" if _planted(result["plantings"][0].get("truth")) else "wrong",
    )


def _planted(truth: str | None) -> bool:
    """Whether the truth is planted flips: those of `validate` itself or of `flip`."""
    return truth is None or Path(truth).name == "flips.parquet"


def known_labels(run: Run, pair_ids: Sequence[str]) -> tuple[dict[str, str], Path | None]:
    """Describe the known truth of these labels, from the truth file given to `validate`, or else
    the one next to the run's dataset, and name that file. Pairs without known truth are omitted.
    """
    import pyarrow as pa

    table = pa.table({"pair_id": pa.array(pair_ids, pa.string())})
    for path in _truths(run):
        words = REMARKS.get(path.name, REMARKS["truth.parquet"])
        try:
            wrong, known = read_truth(path, table, own_ids(run))
        except DataError:  # of a different dataset, or without these pairs
            continue
        rows = zip(pair_ids, wrong, known, strict=True)
        return {name: words[0 if bad else 1] for name, bad, sure in rows if sure}, path
    return {}, None


def _truths(run: Run) -> list[Path]:
    """List truth files that may contain the run's pairs, the explicitly given first."""
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
            found += [folder / name for name in REMARKS]
    return [path for path in found if path.is_file()]
