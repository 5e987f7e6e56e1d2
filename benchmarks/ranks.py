"""Time a feature pass over two ranks against one: one thread each, on two cores.

    python -m benchmarks.ranks [--quick] [--json FILE] [--model DIR]

SmolLM2-135M-Instruct over the distinct responses of the first ukp-convarg pairs, under torchrun
with one process and with two; seconds from the loaded model to the last chunk of the last rank.
Chunks are of 1,024 tokens, so that a few hundred responses make as many chunks as a real pass of
hours has of 16,384; a CPU computes 512 at a time in either. Both caches must hold the same bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.flops import flops
from benchmarks.harness import ROOT, Options, Report, main
from benchmarks.models import smollm2
from noisescope.auditing.audit import Job, compute_over_ranks
from noisescope.auditing.ranks import joined
from noisescope.datasets import load
from noisescope.models.causal_lm import load_causal_lm
from noisescope.models.items import distinct_items
from noisescope.progress import Silent
from noisescope.replicas.gather import EvidenceConfig
from noisescope.storage import cache as parts
from noisescope.storage.run import Run

CHUNK = 1024
#: Pairs read; they share about 200 and 90 responses.
PAIRS, QUICK_PAIRS = 2400, 1000
TARGET = 1.7


def rank(data: str, model: str, limit: str, runs: str) -> None:
    """Run one process: load, wait for the others, compute a share; rank 0 prints the time."""
    parts.CHUNK = CHUNK
    with joined() as world:
        pairs = load(data, limit=int(limit))
        policy = load_causal_lm(model, device="cpu", dtype="float32")
        items = distinct_items(pairs.table)[0]
        policy.features(items[:1])  # the first pass of a process also allocates
        world.exchange()
        began = time.perf_counter()
        job = Job.of(pairs, policy, EvidenceConfig(), "", Silent())
        run = Run(Path(runs) / job.plan.directory_name)
        compute_over_ranks(job, run, job.work(run), Silent(), world)
        world.exchange()
        seconds = time.perf_counter() - began
        facts = {"seconds": seconds, "responses": len(items), "flops": flops(policy, items)}
    if world.first:
        print(json.dumps(facts))


def launched(processes: int, arguments: list[str]) -> dict[str, float]:
    """Return the facts of a pass over `processes` ranks. Raises RuntimeError with their output."""
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*line, "-m", "benchmarks.ranks", "rank", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    facts: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return facts


def contents(runs: Path) -> dict[str, bytes]:
    """Return the feature chunks by name."""
    return {path.name: path.read_bytes() for path in runs.glob(".cache/features/*/*.safetensors")}


def run(options: Options) -> Report:
    """Run both passes, each into an empty cache."""
    report = Report("A feature pass over two ranks")
    limit = QUICK_PAIRS if options.quick else PAIRS
    data = str(options.data / "ukp-convarg" / "natural.parquet")
    rows, seconds = [], {}
    with tempfile.TemporaryDirectory() as place:
        caches = []
        for ranks in (1, 2):
            runs = Path(place) / str(ranks)
            arguments = [data, str(options.model or smollm2()), str(limit), str(runs)]
            facts = launched(ranks, arguments)
            seconds[ranks] = facts["seconds"]
            caches.append(contents(runs))
            rows.append(
                {
                    "ranks": ranks,
                    "responses": int(facts["responses"]),
                    "parts": len(caches[-1]),
                    "seconds": facts["seconds"],
                    "GFLOP/s": facts["flops"] / facts["seconds"] / 1e9,
                }
            )
    report.tables["one thread a rank"] = rows
    report.facts["same bytes"] = caches[0] == caches[1]
    report.at_least("speed of two ranks over one", seconds[1] / seconds[2], TARGET)
    report.at_least("caches hold the same bytes (1 = yes)", float(caches[0] == caches[1]), 1)
    return report


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank(*sys.argv[2:])
    else:
        main(__doc__, run)
