"""Measure how time and memory grow with the dataset: 10,000 to 10 million pairs, eight replicas.

    python -m benchmarks.scale [--quick] [--json FILE]

Pairs and margins are synthetic. Each step is its own process: `flip` of a Parquet file of texts,
margins to scores, then the commands `query`, `gate`, `report` and `export` over that run. --quick
omits ten million pairs. Needs about 9 GB of disk under the temporary directory (TMPDIR) at ten
million. The slope is that of log(seconds) over log(pairs) between 100,000 pairs and the most: 1 is
proportional. The fixed cost of a step (the interpreter, imports) makes it flatter.
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
import pyarrow.parquet as pq

from benchmarks.flip import BLOCK, blocks, write_parquet
from benchmarks.harness import Options, Report
from noisescope.pairs import pairs_schema
from noisescope.scoring.margins import write_margins
from noisescope.storage.run import Plan, create_run

REPLICAS, ANNOTATORS = 8, 500
SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000, 10_000_000), (10_000, 100_000, 1_000_000)
#: Ends of the slope, and the most it may be.
SLOPE_FROM, SLOPE = 100_000, 1.15
SQL = "SELECT annotator, count(*), avg(p_flip) FROM scores JOIN pairs USING (pair_id) GROUP BY 1"
TOP = "SELECT pair_id, p_flip, u FROM scores ORDER BY rank LIMIT 20"
#: Most seconds and MiB of a step at a million pairs.
TARGETS = {"flip": 10.0, "margins -> scores": 10.0, "query": 1.0, "report": 15.0}
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
    assert not end.code or (end.code == 1 and sys.argv[1] == "gate"), end.code
report()
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
run.write_manifest(run.plan() | {
    "summary": summary.to_json(), "facts": facts, "resolved": "made up", "adapter": "columnar",
    "versions": versions(), "scores": "complete"})
"""


def made_run(runs: Path, pairs: int, replicas: int = REPLICAS, seed: int = 0) -> Path:
    """Write a run of synthetic margins: gaps N(1.5, 1.5^2), a fifth of the labels flipped.

    Ids are random, as content hashes are; pairs have the texts of `benchmarks.flip`.
    """
    plan = Plan("made-up", f"{pairs:020x}", "none", "0" * 20, {"kind": "head", "beta": 0.1})
    run, rng = create_run(runs, plan), np.random.default_rng(seed)
    ids = pa.chunked_array(
        [_ids(rng, min(BLOCK, pairs - at)) for at in range(0, pairs, BLOCK)], pa.string()
    )
    _write_pairs(run.pairs_path, ids, seed)
    gap = (rng.normal(1.5, 1.5, pairs) * np.where(rng.random(pairs) < 0.2, -1, 1)).astype("f4")
    held_out = np.ones((1, pairs), bool)
    for m in range(replicas):
        margins = gap + 0.3 * rng.standard_normal(pairs, np.float32)
        path = run.margins_directory / f"part-{m}.parquet"
        write_margins(path, ids, margins[None, None], steps=[1], held_out=held_out, first_replica=m)
    return run.directory


def _ids(rng: np.random.Generator, count: int) -> pa.Array:
    text = rng.bytes(10 * count).hex()
    return pa.array([text[at : at + 20] for at in range(0, 20 * count, 20)])


def _write_pairs(path: Path, ids: pa.ChunkedArray, seed: int) -> None:
    schema, at = pairs_schema(), 0
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for texts in blocks(len(ids), seed):
            names = ids.slice(at, BLOCK).combine_chunks()
            rows = np.arange(at, at + len(names))
            columns = {name: pa.array(values[: len(names)]) for name, values in texts.items()}
            columns |= {"pair_id": names, "content_id": names, "row": pa.array(rows)}
            columns["source"] = pa.repeat("made-up.parquet", len(names))
            columns["turns"] = pa.nulls(len(names), schema.field("turns").type)
            columns["annotator"] = pa.array([f"w{i}" for i in rows % ANNOTATORS])
            out.write_table(pa.table([columns[name] for name in schema.names], schema=schema))
            at += len(names)


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
    source = place / "columns.parquet"
    write_parquet(source, pairs, seed)
    yield "flip", took(COMMAND, place, "flip", source, "--output", place / "flipped", "--json")
    shutil.rmtree(place / "flipped")
    source.unlink()
    run = made_run(place / "runs", pairs, seed=seed)
    yield "margins -> scores", took(VERDICTS, place, run)
    yield "query", took(COMMAND, place, "query", TOP, "--run", run, "--json")
    yield "query with a join", took(COMMAND, place, "query", SQL, "--run", run, "--json")
    yield "gate", took(COMMAND, place, "gate", run, "--json")
    yield "report", took(COMMAND, place, "report", run, "--json")
    for name in ("weights", "trl"):
        out = place / f"{name}.parquet"
        typed = ("export", run, "--format", name, "--output", out, "--json")
        yield f"export {name}", took(COMMAND, place, *typed)
        out.unlink()


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
