"""Finished runs with a chosen flip rate, made in a second without any model, for gates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisescope.pairs import Pair, dataset_fingerprint, to_table
from noisescope.scoring.margins import write_margins
from noisescope.scoring.score import score_run
from noisescope.storage.run import Plan, Run, create_run

EVIDENCE = {"kind": "head", "replicas": 2, "folds": 2, "seed": 0, "beta": 0.1, "pool": True}


def margins_of(pairs: int, rate: float, seed: int, gap: float = 1.5) -> NDArray[np.float64]:
    """Held-out margins [N] of labels that follow the mixture model at flip rate `rate`; with a
    larger `gap` fewer pairs are close.
    """
    rng = np.random.default_rng(seed)
    size = rng.gamma(2.0, gap, pairs)
    right = 1 / (1 + np.exp(-size))
    agree = rng.random(pairs) < (1 - rate) * right + rate * (1 - right)
    return np.where(agree, size, -size)


def made_pairs(count: int, first: int = 0) -> list[Pair]:
    """Plain text pairs with 5 annotators; how a side begins says nothing of its label."""
    return [
        Pair(
            prompt=f"Question {index} about topic {index * 7919 % 100003} and {index % 13}",
            chosen=f"{'answer' if index % 2 else 'reply'} {index} {'word ' * (index * 31 % 17)}",
            rejected=f"{'reply' if index % 2 else 'answer'} {index} {'word ' * (index * 53 % 19)}",
            annotator=f"ann-{index % 5}",
            source="pairs.jsonl",
            row=index,
        )
        for index in range(first, first + count)
    ]


def made_run(
    directory: Path,
    pairs: Sequence[Pair],
    margins: NDArray[np.float64],
    *,
    name: str = "toy",
    facts: dict[str, Any] | None = None,
    modality: str = "text",
) -> Run:
    """A finished run of these pairs with these held-out margins [N]."""
    table = to_table(pairs)
    plan = Plan(name, dataset_fingerprint(table), "tiny", "0" * 20, EVIDENCE, modality)
    run = create_run(directory, plan)
    pq.write_table(table, run.pairs_path)
    spread = np.array([1.02, 0.98])[:, None, None]
    write_margins(
        run.margins_directory / "part-0.parquet",
        table.column("pair_id"),
        (spread * margins).astype(np.float32),
        steps=[1],
        held_out=np.ones((2, len(pairs)), bool),
    )
    summary = score_run(run.directory).to_json()
    stated = {"rows": len(pairs), "pairs": len(pairs), "rejected": {}, "rejected_examples": []}
    run.write_manifest(
        plan.to_json()
        | {"resolved": "pairs.jsonl", "facts": stated | (facts or {}), "summary": summary}
    )
    return run


def noisescope(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does, outside any CI."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
    return subprocess.run(
        [sys.executable, "-m", "noisescope", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**clean, "HF_HUB_OFFLINE": "1", "COLUMNS": "160", **environment},
    )


def parsed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object on stdout."""
    assert done.stdout, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


_SEVERAL = """
import json, sys
from noisescope.cli import run
for arguments in json.loads(sys.argv[1]):
    code = run(arguments)
    for stream in (sys.stdout, sys.stderr):
        print(f"\\x1e{code}\\x1d", end="", file=stream, flush=True)
"""


def several(*commands: Sequence[str], cwd: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run command lines one after the other in one process, so that torch is imported once."""
    done = subprocess.run(
        [sys.executable, "-c", _SEVERAL, json.dumps(commands)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160", "GITHUB_ACTIONS": ""},
    )
    told = [stream.split("\x1d")[:-1] for stream in (done.stdout, done.stderr)]
    assert len(told[0]) == len(commands), done.stderr
    results = []
    for arguments, out, err in zip(commands, *told, strict=True):
        out, _, code = out.partition("\x1e")
        results.append(
            subprocess.CompletedProcess(arguments, int(code), out, err.partition("\x1e")[0])
        )
    return results
