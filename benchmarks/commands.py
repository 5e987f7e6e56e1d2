"""Time the commands around an audit: --help, a query, and scores of many pairs.

    python -m benchmarks.commands [--quick] [--json FILE]

Synthetic margins: a million pairs x 8 replicas (100,000 with --quick for the scores).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Options, Report, main
from noisescope.pairs import pairs_schema
from noisescope.scoring.margins import write_margins
from noisescope.storage.run import Plan, create_run

SQL = "SELECT count(*) AS n, avg(u) AS u FROM scores WHERE p_flip > 0.2"


def seconds(command: list[str], cwd: Path, repeats: int) -> float:
    """Return the median wall seconds of a command, start of the interpreter included."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run(command, cwd=cwd, check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def synthetic_run(runs: Path, pairs: int, replicas: int) -> Path:
    """Write a run of synthetic margins: gaps N(1.5, 1.5^2), a fifth of the labels flipped."""
    rng = np.random.default_rng(0)
    plan = Plan("synthetic", "0" * 20, "none", "0" * 20, {"kind": "head", "beta": 0.1})
    run = create_run(runs, plan)
    ids = pa.array([f"{i:020x}" for i in range(pairs)])
    text = pa.array(["-"] * pairs)
    columns = {name: text for name in ("prompt", "chosen", "rejected", "source")}
    columns |= {"pair_id": ids, "content_id": ids, "row": pa.array(np.arange(pairs))}
    schema = pairs_schema()
    columns = {field.name: pa.nulls(pairs, field.type) for field in schema} | columns
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    pq.write_table(table, run.pairs_path)
    gap = rng.normal(1.5, 1.5, pairs) * np.where(rng.random(pairs) < 0.2, -1, 1)
    margins = (gap + rng.normal(0, 0.3, (replicas, 1, pairs))).astype(np.float32)
    held_out = np.ones((replicas, pairs), bool)
    write_margins(
        run.margins_directory / "part-0.parquet", ids, margins, steps=[1], held_out=held_out
    )
    return run.directory


def run(options: Options) -> Report:
    """Time each command as typed."""
    report = Report("Commands around an audit")
    tool = [sys.executable, "-m", "noisescope"]
    pairs = 100_000 if options.quick else 1_000_000
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        directory = synthetic_run(place / "runs", pairs, 8)
        began = time.perf_counter()
        code = (
            "import resource, sys; from pathlib import Path\n"
            "from noisescope.scoring.score import score_run; score_run(Path(sys.argv[1]))\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(directory)], check=True, capture_output=True, text=True
        )
        verdicts, peak = time.perf_counter() - began, float(done.stdout)
        (directory / "manifest.json").write_text("{}")
        query = seconds([*tool, "query", SQL, "--json"], place, 5)
        helped = seconds([*tool, "--help"], place, 7)
    report.tables["seconds, interpreter start included"] = [
        {"command": "noisescope --help", "seconds": helped},
        {"command": f"noisescope query, {pairs:,} scores", "seconds": query},
        {"command": f"margins -> scores, {pairs:,} x 8", "seconds": verdicts, "peak MiB": peak},
    ]
    report.at_most("--help, seconds", helped, 0.3)
    report.at_most(f"query over {pairs:,} scores, seconds", query, 1.0)
    if not options.quick:
        report.at_most("1M x 8 margins -> scores, seconds", verdicts, 10.0)
        report.at_most("1M x 8 margins -> scores, MiB", peak, 2048.0)
    return report


if __name__ == "__main__":
    main(__doc__, run)
