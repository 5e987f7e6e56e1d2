"""Fig. 3: the share of flipped labels by the metric u, 20 % flips.

    python -m benchmarks.paper.figure3 --scale tiny|full [--out DIR] [--json FILE]

Audits of both sample datasets, then `noisescope validate`: labels are flipped, heads fitted again,
u computed again. Shown: the flipped share by interval of u (the paper's bar chart), the histogram,
and how well u and p_flip rank the flips.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.paper.figures import histogram
from benchmarks.paper.full import PICK, Step, score
from benchmarks.paper.image_task import SAMPLES
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Direction, Result, shown
from benchmarks.paper.script import Script, Small, main
from noisescope import audit
from noisescope.auditing.validation import Planned, validate
from noisescope.report.bars import share_bars
from noisescope.report.style import Picture
from noisescope.scoring.detection import u_edges
from noisescope.scoring.metrics import Bool, Float, Interval, auroc

TITLE = "Fig. 3: flipped labels by u, 20 % flips"
RATE = 0.2
MODELS = {"hh-rlhf": "tiny-lm", "pick-a-pic": "tiny-sd"}
READABLE = 1e-3
SHOWN = ("u", "confidence", "stability", "p_flip")


def tiny(small: Small) -> Result:
    """Audit and validate both sample datasets."""
    result = Result()
    for name, model in MODELS.items():
        limit = small.pairs if name == "hh-rlhf" else small.images
        with tempfile.TemporaryDirectory(prefix="noisescope-paper-") as scratch:
            done = audit(
                SAMPLES / name,
                SAMPLES / "models" / model,
                limit=limit,
                runs_directory=scratch,
                device="cpu",
            )
            validate(done.run, Planned((RATE,), seeds=len(small.seeds)))
            table = pq.read_table(done.run.directory / "validation.parquet")
        result = _add(result, name, {n: table[n].to_numpy() for n in table.column_names})
    return result


def _add(result: Result, name: str, columns: dict[str, Any]) -> Result:
    """Add the tables, the question and the pictures of one dataset."""
    plantings = [columns["planting"] == index for index in np.unique(columns["planting"])]
    flipped = columns["mislabelled"].astype(bool)
    rows = []
    for score_name in SHOWN:
        areas = [auroc(columns[score_name][part], flipped[part]) for part in plantings]
        found = Interval(float(np.mean(areas)), min(areas), max(areas))
        rows.append({"score": score_name, "AUROC [least, most]": shown(found)})
    result.tables[f"{name}: how well each score finds the flips"] = rows
    edges = u_edges(columns["u"][plantings[0]])
    where = np.clip(np.searchsorted(edges[:-1], columns["u"], side="right") - 1, 0, len(edges) - 2)
    result.tables[f"{name}: flipped share by interval of u, all seeds"] = [
        {
            "u from": f"{edges[index]:.3g}",
            "pairs": int((where == index).sum()),
            "flipped": float(flipped[where == index].mean()) if (where == index).any() else None,
        }
        for index in range(len(edges) - 1)
    ]
    areas = [auroc(columns["u"][part], flipped[part]) - 0.5 for part in plantings]
    question = f"Does u rank flipped labels above kept ones? ({name}; AUROC - 1/2, least to most)"
    spread = Interval(float(np.mean(areas)), min(areas), max(areas))
    result.directions.append(
        Direction(question, spread, "Pick-a-Pic v2: yes, a significant increase")
    )
    first = plantings[0]
    scores, truth = columns["u"][first].astype(np.float64), flipped[first]
    caption = "First seed. A metric that finds flips has them on the right."
    title = f"u of flipped and kept labels, {name}"
    result.pictures.append(histogram(f"figure3-{name}-histogram", title, scores, truth, caption))
    if edges[1] > READABLE:  # u of images is about 1e-9, whose labels would overlap
        result.pictures.append(flips_by_u(f"figure3-{name}", scores, truth))
    return result


def flips_by_u(name: str, u: Float, flipped: Bool) -> Picture:
    """Draw the share of flipped pairs per interval of u, the last of which is open."""
    edges = u_edges(u)
    labels = [f"{low:.3g}–{high:.3g}" for low, high in pairwise(edges[:-1])]
    where = np.searchsorted(edges[1:-1], u, side="right")
    return share_bars(
        name,
        "Share of flipped pairs by Adaptive-DPO's u",
        "u = stability × confidence, per pair",
        [*labels, f"≥ {edges[-2]:.3g}"],
        [flipped[where == index] for index in range(len(edges) - 1)],
        float(flipped.mean()),
        "flipped",
        "If bars rise to the right, u finds wrong labels; the dashed line is the share in a random "
        "selection.",
    )


def full() -> Iterator[Step]:
    """Audit Pick-a-Pic v2 with SD1.5, then flip labels without another forward pass."""
    yield score(f"{PICK} --split train", "sd15")
    yield Step(f"noisescope validate --rate {RATE:g} --seeds 3")


SCRIPT = Script("figure3", __doc__ or "", TITLE, PUBLISHED["figure3"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
