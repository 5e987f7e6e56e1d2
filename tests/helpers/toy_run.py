"""A small dataset and a finished run over it, in which every sixth pair is judged to be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from helpers.planted_run import HOSTILE
from noisescope.datasets import load
from noisescope.pairs import PreferenceDataset
from noisescope.scoring.margins import write_margins
from noisescope.scoring.run_scores import RunScores, find_run_scores
from noisescope.scoring.score import score_run
from noisescope.storage.run import Plan, create_run

PAIRS = 120


def rows(count: int = PAIRS) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"question {i}",
            "chosen": HOSTILE if i == 3 else f"first {i}, é\n",
            "rejected": f'second "{i}"',
            "annotator": f"a{i % 9}",
        }
        for i in range(count)
    ]


def scored_run(dataset: PreferenceDataset, directory: Path, *, good: bool = True) -> RunScores:
    """A finished run over `dataset`: every sixth pair is judged to be wrong."""
    count = len(dataset)
    rng = np.random.default_rng(0)
    gap = rng.gamma(2.0, 1.0, count) + 0.5
    wrong = np.arange(count) % 6 == 0
    margins = np.where(wrong, -gap, gap) + rng.normal(0, 0.2, (4, 1, count))
    evidence = {"kind": "head", "replicas": 4, "beta": 0.1}
    plan = Plan("toy", dataset.fingerprint, "/a/tiny", "0" * 20, evidence, dataset.modality)
    run = create_run(directory.parent, plan, directory)
    pq.write_table(dataset.table, run.pairs_path)
    write_margins(
        run.margins_directory / "part-0.parquet",
        dataset.table.column("pair_id"),
        margins.astype(np.float32),
        steps=[1],
        held_out=np.ones((4, count), bool),
    )
    trust = {"word": "good", "sentence": "Trusted.", "helps": [], "acts": True}  # marks: "first"
    summary = score_run(run.directory).to_json() | ({"trust": trust} if good else {"chance": True})
    stated = {"resolved": dataset.resolved, "adapter": dataset.adapter, "summary": summary}
    stated |= {"columns": dataset.columns, "pairs_of": dataset.pairs, "reading": dataset.reading}
    run.write_manifest(plan.to_json() | stated | {"facts": dataset.facts.to_json()})
    return find_run_scores(str(directory), directory.parent, force=not good)


def write_lines(path: Path, items: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")


def toy(folder: Path) -> RunScores:
    """The run over `folder`/toy.jsonl, in `folder`/runs."""
    path = folder / "toy.jsonl"
    write_lines(path, rows())
    return scored_run(load(path), folder / "runs" / "toy-1")
