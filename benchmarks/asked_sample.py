"""Audit the sample as a whole with a graded judge: from a file, and behind a server.

rows = list(whole_audits(seed=0))

The sample with its labels put right and 20 % uniform errors planted, judged by its tiny model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data import truth, with_sides_swapped
from benchmarks.harness import ROOT, stopwatch
from benchmarks.models import cache
from benchmarks.planted_noise import graded, plant, right
from benchmarks.trust import sample_labels
from noisescope.auditing.audit import audit
from noisescope.datasets import load
from noisescope.models.causal_lm import load_causal_lm
from noisescope.pairs import PreferenceDataset
from noisescope.replicas.answers import BOUND
from noisescope.replicas.gather import EvidenceConfig
from noisescope.scoring.metrics import auroc
from tests.helpers.chat_stub import Reply, serving, shown, weighs

SAMPLE = ROOT / "sample_data"
ACCURACY = 0.75
#: Calls of a judge about a tenth of the sample's 4,000 pairs, in both orders.
TENTH = 800


def whole_audits(seed: int) -> Iterator[dict[str, Any]]:
    """The model alone; `judge:` asked about a tenth and all pairs; `file:` of all answers."""
    folder = SAMPLE / "hh-rlhf"
    given = load(folder / "train.jsonl.gz")
    labels = plant(right(sample_labels()), "uniform", 0.2, seed)
    swap = truth(given, folder / "truth.parquet") ^ labels.wrong
    data = with_sides_swapped(given, swap)
    values = np.clip(graded(labels.wrong, ACCURACY, seed)[:, 0], -BOUND, BOUND).astype(float)
    policy = load_causal_lm(str(SAMPLE / "models" / "tiny-lm"))
    with tempfile.TemporaryDirectory() as scratch, serving(answers(data, values)) as server:
        place = Path(scratch)
        (place / "runs" / ".cache").mkdir(parents=True)
        (place / "runs" / ".cache" / "features").symlink_to(cache().parent / "features")
        numbers = {"pair_id": data.table.column("pair_id"), "judge": pa.array(values)}
        pq.write_table(pa.table(numbers), place / "judge.parquet")
        asked = f"judge:{server.url}#stub"
        for name, sources, budget in (
            ("model alone", (), None),
            ("judge: of a tenth", (asked,), TENTH),
            ("judge: of all pairs", (asked,), 2 * len(values)),
            ("file: of all pairs", (f"file:{place / 'judge.parquet'}",), None),
        ):
            config = EvidenceConfig(replicas=2, sources=sources, budget=budget)
            before = len(server.requests)
            with stopwatch() as watch:
                found = audit(data, policy, evidence=config, runs_directory=place / "runs")
            table = pq.read_table(found.run.scores_path, columns=["pair_id", "p_wrong"])
            p = dict(zip(*(column.to_pylist() for column in table.columns), strict=True))
            ranked = np.array([p[one] for one in data.table.column("pair_id").to_pylist()], float)
            first = np.argsort(-ranked, kind="stable")[: int(labels.wrong.sum())]
            yield {
                "evidence": name,
                "AUROC": float(auroc(ranked, labels.wrong)),
                "precision": float(labels.wrong[first].mean()),
                "calls": len(server.requests) - before,
                "seconds": watch["seconds"],
            }


def answers(data: PreferenceDataset, values: np.ndarray[Any, Any]) -> Any:
    """The reply of a judge with log odds [N] of the labelled sides, whichever is shown first."""
    sides = zip(*(data.table.column(n).to_pylist() for n in ("chosen", "rejected")), strict=True)
    odds = dict(zip(sides, values.tolist(), strict=True))

    def answer(_: int, message: str) -> Reply:
        one, other = shown(message)
        mine = odds.get((one, other))
        return weighs(-odds[other, one] if mine is None else mine)

    return answer
