"""Runs of the sample, made by the command line, and what two of them must have in common."""

from __future__ import annotations

import json
from pathlib import Path

from noisescope.storage.run import Run

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"


MODEL = str(SAMPLES / "models" / "tiny-lm")


#: What two runs of one plan may differ in: when, and how long.
PASSING = ("timings", "finished", "checksum")


def score_line(runs: Path, *options: str) -> list[str]:
    line = ["score", str(SAMPLES / "hh-rlhf"), "--model", MODEL, "--dtype", "float32"]
    line += ["--limit", "100", "--replicas", "2"]
    return [*line, "--runs-dir", str(runs), *options]


def the_run(runs: Path) -> Run:
    (found,) = runs.glob("*/plan.json")
    return Run(found.parent)


def files(runs: Path) -> dict[str, bytes]:
    """Feature parts, pairs, margins and scores of the one run under `runs`."""
    cache = {path.name: path.read_bytes() for path in runs.glob(".cache/features/*/*.safetensors")}
    directory = the_run(runs).directory
    return cache | {path.name: path.read_bytes() for path in directory.rglob("*.parquet")}


def manifest(runs: Path) -> dict[str, object]:
    """What the manifest of the one run under `runs` says, wherever that is."""
    content = json.loads(json.dumps(the_run(runs).manifest()).replace(str(runs), "RUNS"))
    return {name: value for name, value in content.items() if name not in PASSING}
