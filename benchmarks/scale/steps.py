"""Measure how time and memory grow with the dataset: 10,000 to 10 million pairs, eight replicas.

    python -m benchmarks.scale [--quick] [--json FILE]

Pairs and margins are synthetic: 50 pairs a prompt, 1,000 annotators, a fifth of the labels wrong.
Each step is its own process: `flip` of a Parquet file of texts, reading it (up to a million pairs,
whose table is held in memory), margins to scores, then the commands `query`, `gate`, `explain`,
`report` and `export` over that run, and `apply` of 10,000 decisions to the file. --quick omits ten
million pairs. Needs about 9 GB of disk under the temporary directory (TMPDIR) at ten million. The
slope is that of log(seconds) over log(pairs) between 100,000 pairs and the most: 1 is proportional.
The fixed cost of a step (the interpreter, imports) makes it flatter.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from benchmarks.flip import BLOCK, texts
from benchmarks.harness import Options, Report
from noisescope.pairs import pairs_schema
from noisescope.scoring.margins import write_margins
from noisescope.storage.run import Plan, Run, create_run

REPLICAS, ANNOTATORS, PER_PROMPT, DECIDED = 8, 1_000, 50, 10_000
#: The most pairs that are read from the file; runs of more have made-up ids, and no `apply`.
READ = 1_000_000
SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000, 10_000_000), (10_000, 100_000, 1_000_000)
#: Ends of the slope, and the most it may be.
SLOPE_FROM, SLOPE = 100_000, 1.15
SQL = "SELECT annotator, count(*), avg(p_flip) FROM scores JOIN pairs USING (pair_id) GROUP BY 1"
TOP = "SELECT pair_id, p_flip, u FROM scores ORDER BY rank LIMIT 20"
#: Most seconds and MiB of a step at a million pairs.
TARGETS = {"flip": 10.0, "margins -> scores": 10.0, "query": 1.0, "report": 20.0}
MEBIBYTES = 2048.0
#: What ends every step: its wall and CPU seconds and its own peak (VmHWM), on the last line.
MEASURE = """
import json, resource, sys, time
began = time.perf_counter()
def report():
    peak = next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"seconds": time.perf_counter() - began, "MiB": int(peak) / 1024,
                      "CPU": used.ru_utime + used.ru_stime}), file=sys.stderr)
"""
COMMAND = """
from noisescope.__main__ import main
try:
    main()
except SystemExit as end:
    assert not end.code or (end.code in (1, 3) and sys.argv[1] == "gate"), end.code
report()
"""
#: The dataset read as `noisescope score` reads it, into a run.
READING = """
from pathlib import Path
import pyarrow.parquet as pq
from noisescope.datasets import load
from noisescope.storage.run import Plan, create_run
found = load(sys.argv[1])
run = create_run(Path(sys.argv[2]), Plan("made-up", found.fingerprint, "none", "0" * 20,
                                         {"kind": "head", "beta": 0.1}))
pq.write_table(found.table, run.pairs_path, compression="zstd")
report()
origin = {"resolved": found.resolved, "adapter": found.adapter, "columns": found.columns}
Path("origin.json").write_text(json.dumps(origin))
"""
#: Verdicts alone, as `noisescope score` makes them of a run's margins; then the manifest.
VERDICTS = """
from pathlib import Path
from noisescope.storage.run import versions
from noisescope.storage.run import Run
from noisescope.scoring.score import score_run
run = Run(Path(sys.argv[1]))
summary = score_run(run.directory)
report()
facts = {"rows": summary.pairs, "pairs": summary.pairs, "rejected": {}, "annotators": 0}
origin = {"resolved": "made up", "adapter": "columnar"}
if Path("origin.json").exists():
    origin = json.loads(Path("origin.json").read_text())
run.write_manifest(run.plan() | origin | {
    "summary": summary.to_json(), "facts": facts, "versions": versions(), "scores": "complete"})
"""


def columns(pairs: int, seed: int) -> Iterator[dict[str, list[str]]]:
    """Yield columns of BLOCK rows at a time; row numbers make every response unique."""
    rng = np.random.default_rng(seed)
    asked, ones, others = texts(rng, 8, 20), texts(rng, 10, 40), texts(rng, 10, 40)
    for start in range(0, pairs, BLOCK):
        rows = range(start, min(start + BLOCK, pairs))
        yield {
            "prompt": [f"{asked[n // PER_PROMPT % BLOCK]} {n // PER_PROMPT}" for n in rows],
            "chosen": [f"{text} {n}" for n, text in zip(rows, ones, strict=False)],
            "rejected": [f"{text}, {n}" for n, text in zip(rows, others, strict=False)],
            "annotator": [f"w{n % ANNOTATORS}" for n in rows],
        }


def write_source(path: Path, pairs: int, seed: int) -> None:
    """Write the pairs as a Parquet file of texts."""
    names = ("prompt", "chosen", "rejected", "annotator")
    schema = pa.schema([(name, pa.string()) for name in names])
    with pq.ParquetWriter(path, schema) as out:
        for block in columns(pairs, seed):
            out.write_table(pa.table(block, schema))


def made_run(runs: Path, pairs: int, seed: int) -> Path:
    """Write a run's pairs without reading a file: ids are random, as content hashes are."""
    run = create_run(runs, Plan("made-up", f"{pairs:020x}", "none", "0" * 20, {"beta": 0.1}))
    rng, schema, at = np.random.default_rng(seed), pairs_schema(), 0
    with pq.ParquetWriter(run.pairs_path, schema, compression="zstd") as out:
        for block in columns(pairs, seed):
            count = len(block["prompt"])
            text = rng.bytes(10 * count).hex()
            names = pa.array([text[n : n + 20] for n in range(0, 20 * count, 20)])
            made = {name: pa.array(values) for name, values in block.items()}
            made |= {"pair_id": names, "content_id": names}
            made |= {"row": pa.array(np.arange(at, at + count))}
            made["source"] = pa.repeat("made-up.parquet", count)
            for field in schema:
                made.setdefault(field.name, pa.nulls(count, field.type))
            out.write_table(pa.table([made[name] for name in schema.names], schema=schema))
            at += count
    return run.directory


def add_margins(directory: Path, replicas: int = REPLICAS, seed: int = 0) -> None:
    """Write synthetic margins to a run: gaps N(1.5, 1.5^2), a fifth of the labels flipped."""
    run, rng = Run(directory), np.random.default_rng(seed)
    ids = pq.read_table(run.pairs_path, columns=["pair_id"]).column(0)
    pairs = len(ids)
    gap = (rng.normal(1.5, 1.5, pairs) * np.where(rng.random(pairs) < 0.2, -1, 1)).astype("f4")
    held_out = np.ones((1, pairs), bool)
    for m in range(replicas):
        margins = gap + 0.3 * rng.standard_normal(pairs, np.float32)
        path = run.margins_directory / f"part-{m}.parquet"
        write_margins(path, ids, margins[None, None], steps=[1], held_out=held_out, first_replica=m)


def write_decisions(directory: Path, path: Path) -> None:
    """Write decisions about DECIDED pairs of a run: keep, flip and drop in turn."""
    ids = pq.read_table(Run(directory).pairs_path, columns=["pair_id"]).column(0)
    chosen = ids.take(pa.array(np.arange(0, len(ids), max(1, len(ids) // DECIDED))))
    words = [("keep", "flip", "drop")[n % 3] for n in range(len(chosen))]
    pa.csv.write_csv(pa.table({"pair_id": chosen, "decision": words}), path)


def took(code: str, place: Path, *arguments: object) -> dict[str, Any]:
    """Return seconds, CPU seconds and peak MiB of a step in its own process."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE + code, *map(str, arguments)],
        cwd=place,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{arguments}: {done.stderr[-2000:]}")
    printed = [line for line in done.stderr.splitlines() if line.startswith('{"seconds"')]
    return dict(json.loads(printed[-1]))


def steps(place: Path, pairs: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each step over `pairs` pairs with its cost, in the order of a user."""
    source, runs = place / "columns.parquet", place / "runs"
    write_source(source, pairs, seed)
    yield "flip", took(COMMAND, place, "flip", source, "--output", place / "flipped", "--json")
    shutil.rmtree(place / "flipped")
    if pairs <= READ:
        yield "read", took(READING, place, source, runs)
        (run,) = runs.iterdir()
    else:
        source.unlink()
        run = made_run(runs, pairs, seed)
    add_margins(run, seed=seed)
    yield "margins -> scores", took(VERDICTS, place, run)
    yield "query", took(COMMAND, place, "query", TOP, "--run", run, "--json")
    yield "query with a join", took(COMMAND, place, "query", SQL, "--run", run, "--json")
    yield "gate", took(COMMAND, place, "gate", run, "--json")
    yield "explain", took(COMMAND, place, "explain", run, "--json")
    yield "report", took(COMMAND, place, "report", run, "--json")
    for name in ("weights", "trl"):
        out = place / f"{name}.parquet"
        typed = ("export", run, "--format", name, "--output", out, "--force", "--json")
        yield f"export {name}", took(COMMAND, place, *typed)
        out.unlink()
    if pairs <= READ:
        write_decisions(run, place / "decisions.csv")
        typed = ("apply", "decisions.csv", run, "--output", "applied", "--reviewer", "a", "--json")
        yield "apply", took(COMMAND, place, *typed)


def slope(seconds: dict[int, float]) -> float | None:
    """Return d log(seconds) / d log(pairs) between SLOPE_FROM and the most pairs."""
    ends = [seconds[size] for size in (SLOPE_FROM, max(seconds)) if size in seconds]
    if len(ends) < 2 or max(seconds) == SLOPE_FROM:
        return None
    return float(np.log(ends[1] / ends[0]) / np.log(max(seconds) / SLOPE_FROM))


def run(options: Options) -> Report:
    """Run every step at every size."""
    report = Report("Scale")
    taken: dict[str, dict[int, float]] = {}
    for pairs in QUICK_SIZES if options.quick else SIZES:
        rows = report.tables[f"{pairs:,} pairs x {REPLICAS} replicas"] = []
        with tempfile.TemporaryDirectory() as scratch:
            for name, cost in steps(Path(scratch), pairs, options.seed):
                print(f"{pairs:,} {name}: {cost['seconds']:.1f} s", file=sys.stderr, flush=True)
                rows.append({"step": name} | cost)
                taken.setdefault(name, {})[pairs] = cost["seconds"]
        if pairs == 1_000_000:
            for row in rows:
                if row["step"] in TARGETS:
                    bound = TARGETS[row["step"]]
                    report.at_most(f"1M {row['step']}, seconds", row["seconds"], bound)
                if row["step"] == "margins -> scores":
                    report.at_most("1M margins -> scores, MiB", row["MiB"], MEBIBYTES)
    for name, seconds in taken.items():
        report.at_most(f"{name}: slope", slope(seconds), SLOPE)
    return report
