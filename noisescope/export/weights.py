"""Export pair_id, W, gamma, u, p_flip, p_wrong and p_prior for trainers with example weights.

The schemes are those of `scoring.weigh`. Every row names its scheme and its label (`label_key`), so
that a copy in another format cannot be read as weights of another kind or of reversed labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.datasets.flip.plan import Float
from noisescope.errors import UsageError
from noisescope.pairs import label_key
from noisescope.scoring.run_scores import BATCH, RunScores
from noisescope.scoring.weigh import LABEL, SCHEME, weigh
from noisescope.scoring.weights import even
from noisescope.storage.files import write_atomic
from noisescope.storage.output import KEY, claim, require_ending

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("W", "gamma", "u", "p_flip", "p_wrong", "p_prior")


def refuse_even(scheme: str, weight: Float, gamma: Float) -> None:
    """Raise UsageError for W [N] and Gamma [N] that hardly differ."""
    if even(weight, gamma):
        raise UsageError(
            f"--weight {scheme}: all weights are {weight.mean():.3g} to one in a hundred, and "
            "change nothing",
            hint={
                "p_wrong": "No label looks wrong: train without weights.",
                "reviews": "Judge some pairs first: noisescope review",
            }.get(scheme, "Use --weight p_wrong, the default."),
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

    require_ending(out, ".parquet")
    claim(out)
    weight, gamma = weigh(scores, scheme)
    refuse_even(scheme, weight, gamma)
    columns = {**scores.columns, "W": weight, "gamma": gamma}
    fields = [pa.field("pair_id", pa.string(), nullable=False)]
    fields += [pa.field(name, pa.float64()) for name in COLUMNS]
    fields += [pa.field(name, pa.string(), nullable=False) for name in (SCHEME, LABEL)]
    schema = pa.schema(fields, metadata=metadata_of(facts_of(scores, "weights", weight=scheme)))
    write_atomic(out, lambda path: _write(path, schema, scores, columns, scheme))
    return len(scores)


def _write(
    path: Path, schema: pa.Schema, scores: RunScores, columns: Mapping[str, Float], scheme: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for batch, at in scores.pairs(["content_id", "chosen"]):
            ids, contents, chosen = batch.columns
            arrays = [pa.array(columns[name][at], from_pandas=True) for name in COLUMNS]
            labels = map(label_key, contents.to_pylist(), chosen.to_pylist())
            arrays += [pa.array([scheme] * len(at)), pa.array(labels, pa.string())]
            rows = pa.Table.from_arrays([ids, *arrays], schema=schema)
            out.write_table(rows, row_group_size=BATCH)
