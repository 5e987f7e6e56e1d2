"""Export pair_id, W, gamma, u, p_flip and p_wrong for any trainer that accepts example weights.

    scheme "p_wrong" W = max(0, 1 - 2 p_wrong), Gamma = 0: the default
    scheme "p_flip"  W = max(0, 1 - 2 p_flip), Gamma = 0
    scheme "u"       W and Gamma of the Adaptive-DPO paper, as scores (2503.16921, Eq. 14-15)
    scheme "prior"   W = 1, Gamma = log((1 - p_prior)/p_prior): for forward-dpo only
    scheme "soft"    W = 1, Gamma = log((1 - p_wrong)/p_wrong): for soft-dpo only
    scheme "margin"  W = 1, Gamma = the calibrated held-out margin: for distilled-dpo only

For a label that is wrong with probability p, the expected DPO gradient at l = 0 is 1 - 2p times
that of a label known to be right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisescope.datasets.flip.plan import Float
from noisescope.errors import UsageError
from noisescope.export.run_scores import BATCH, RunScores
from noisescope.scoring.weights import belief, believed_margin, even
from noisescope.storage.files import write_atomic
from noisescope.storage.output import KEY, claim

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMES = ("p_wrong", "p_flip", "u", "prior", "soft", "margin")
COLUMNS = ("W", "gamma", "u", "p_flip", "p_wrong", "p_prior")


def weigh(columns: Mapping[str, Float], scheme: str) -> tuple[Float, Float]:
    """Compute W [N] and Gamma [N] of scores [N] by a scheme; 1 and 0 if a pair has no score.

    Raises UsageError for an unknown scheme, and for weights but by p_wrong that hardly differ.
    """
    if scheme == "u":
        weight, gamma = columns["W"], columns["gamma"]
    elif scheme in ("p_wrong", "p_flip"):
        weight = np.maximum(0.0, 1.0 - 2.0 * columns[scheme])
        gamma = np.zeros(len(weight))
    elif scheme == "margin":
        gamma = believed_margin(columns["margin"])
        weight = np.where(np.isnan(gamma), 0.0, 1.0)
    elif scheme in ("prior", "soft"):
        gamma = belief(columns["p_prior" if scheme == "prior" else "p_wrong"])
        weight = np.where(np.isnan(gamma), 0.0, 1.0)
    else:
        raise UsageError(f"--weight {scheme}: one of {', '.join(SCHEMES)}")
    weight, gamma = np.nan_to_num(weight, nan=1.0), np.nan_to_num(gamma)
    if scheme != SCHEMES[0] and even(weight, gamma):
        raise _even(scheme, float(weight.mean()), "Use --weight p_wrong, the default.")
    return weight, gamma


def _even(scheme: str, weight: float, hint: str) -> UsageError:
    return UsageError(
        f"--weight {scheme}: all weights are {weight:.3g} to one in a hundred, and change nothing",
        hint=hint,
    )


def facts_of(scores: RunScores, format: str, **more: Any) -> dict[str, Any]:
    """Describe an export's origin; trainers check weights by `dataset_fingerprint`."""
    manifest = scores.manifest
    names = ("dataset", "dataset_fingerprint", "model", "model_fingerprint", "fingerprint")
    origin = {name: manifest.get(name) for name in names}
    model = Path(str(origin["model"]))
    if model.is_absolute():  # exports are shared: no local paths in them
        origin["model"] = model.name
    beta = manifest.get("evidence", {}).get("beta")
    read = manifest.get("facts", {})
    if read.get("source_fingerprint"):  # weights are for the source; some pairs have none
        origin["dataset_fingerprint"] = read["source_fingerprint"]
        more |= {"set_aside": read["set_aside"]}
    return {"format": format, **origin, "beta": beta, "pairs": len(scores), **more}


def metadata_of(facts: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Encode the facts as Parquet schema metadata, which marks the file as an export."""
    return {KEY: json.dumps(facts, ensure_ascii=False).encode()}


def export_weights(scores: RunScores, out: Path, scheme: str = "p_wrong") -> int:
    """Write one row per pair, in the dataset's order; return their number.

    Raises UsageError or RunError.
    """
    import pyarrow as pa

    claim(out)
    weight, gamma = weigh(scores.columns, scheme)
    if even(weight, gamma):
        raise _even(scheme, float(weight.mean()), "No label looks wrong: train without weights.")
    columns = {**scores.columns, "W": weight, "gamma": gamma}
    fields = [pa.field("pair_id", pa.string(), nullable=False)]
    fields += [pa.field(name, pa.float64()) for name in COLUMNS]
    schema = pa.schema(fields, metadata=metadata_of(facts_of(scores, "weights", weight=scheme)))
    write_atomic(out, lambda path: _write(path, schema, scores, columns))
    return len(scores)


def _write(path: Path, schema: pa.Schema, scores: RunScores, columns: Mapping[str, Float]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for batch, at in scores.pairs([]):
            arrays = [pa.array(columns[name][at], from_pandas=True) for name in COLUMNS]
            rows = pa.Table.from_arrays([batch.column(0), *arrays], schema=schema)
            out.write_table(rows, row_group_size=BATCH)
