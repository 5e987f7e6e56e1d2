"""Time planting label errors: `noisescope flip` of a million rows, by file format.

    python -m benchmarks.flip [--quick] [--json FILE]

Synthetic pairs of 10 to 40 words a side: three text columns as Parquet and as JSON lines, and
HH-RLHF transcripts of three turns as JSON lines (100,000 rows with --quick). Each copy is made by
the command in its own process, start of the interpreter included; then it is flipped again and
must equal the source, byte for byte (the table, for Parquet).
"""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import Options, Report, main

ROWS, QUICK_ROWS = 1_000_000, 100_000
BLOCK = 20_000
SECONDS, MEBIBYTES = 60.0, 300.0
#: Run `noisescope flip`, then print its cost. VmHWM: the peak of the process itself.
COMMAND = """
import json, resource, sys, time
began = time.perf_counter()
from noisescope.__main__ import main
try:
    main()
except SystemExit:
    pass
peak = next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"seconds": time.perf_counter() - began, "MiB": int(peak) / 1024,
                  "CPU": used.ru_utime + used.ru_stime}), file=sys.stderr)
"""


def texts(rng: np.random.Generator, low: int, high: int) -> list[str]:
    """Make BLOCK sentences of `low` to `high` words."""
    text = "what one asks of a model and what it says in plain words of some length"
    words = np.array(text.split(" "))
    return [" ".join(rng.choice(words, n)) for n in rng.integers(low, high, BLOCK)]


def blocks(rows: int, seed: int) -> Iterator[dict[str, list[str]]]:
    """Yield columns of BLOCK rows at a time; row numbers make every response unique."""
    rng = np.random.default_rng(seed)
    prompts, ones, others = texts(rng, 8, 20), texts(rng, 10, 40), texts(rng, 10, 40)
    for start in range(0, rows, BLOCK):
        yield {
            "prompt": prompts,
            "chosen": [f"{text} {start + i}" for i, text in enumerate(ones)],
            "rejected": [f"{text}, {start + i}" for i, text in enumerate(others)],
        }


def write_parquet(path: Path, rows: int, seed: int) -> None:
    schema = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected")])
    with pq.ParquetWriter(path, schema) as out:
        for columns in blocks(rows, seed):
            out.write_table(pa.table(columns, schema))


def write_lines(path: Path, rows: int, seed: int) -> None:
    with path.open("w") as out:
        for columns in blocks(rows, seed):
            for row in zip(*columns.values(), strict=True):
                out.write(json.dumps(dict(zip(columns, row, strict=True))) + "\n")


def write_transcripts(path: Path, rows: int, seed: int) -> None:
    with path.open("w") as out:
        for columns in blocks(rows, seed):
            for prompt, *sides in zip(*columns.values(), strict=True):
                dialogue = f"\n\nHuman: {prompt}\n\nAssistant: {prompt}\n\nHuman: {prompt}?"
                chosen, rejected = (f"{dialogue}\n\nAssistant: {side}" for side in sides)
                out.write(json.dumps({"chosen": chosen, "rejected": rejected}) + "\n")


FORMATS: dict[str, Callable[[Path, int, int], None]] = {
    "columns.parquet": write_parquet,
    "columns.jsonl": write_lines,
    "transcripts.jsonl": write_transcripts,
}


def flip(source: Path, out: Path) -> dict[str, Any]:
    """Flip a file with the command; return its seconds and memory."""
    typed = ["flip", str(source), "--rate", "0.2", "--output", str(out), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *typed], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout) | json.loads(done.stderr.splitlines()[-1])


def same(one: Path, other: Path) -> bool:
    """Return whether two copies hold the same bytes, or the same table."""
    if one.suffix != ".parquet":
        return filecmp.cmp(one, other, shallow=False)
    return bool(pq.read_table(one).equals(pq.read_table(other)))


def run(options: Options) -> Report:
    """Flip every format and flip it back."""
    report = Report("noisescope flip")
    rows = QUICK_ROWS if options.quick else ROWS
    found = report.tables[f"{rows:,} rows, 20 % flipped"] = []
    for name, write in FORMATS.items():
        with tempfile.TemporaryDirectory() as scratch:
            source, place = Path(scratch) / name, Path(scratch)
            write(source, rows, options.seed)
            once = flip(source, place / "once")
            twice = flip(place / "once" / name, place / "twice")
            restored = same(source, place / "twice" / name)
            size = source.stat().st_size / 1e6
        keys = ("seconds", "CPU", "MiB")
        found.append(
            {"file": name, "MB": size, "flipped": once["flipped"]}
            | {key: once[key] for key in keys}
            | {"back, seconds": twice["seconds"], "restored": restored}
        )
        report.at_least(f"{name}: every row restored", float(restored), 1)
        report.at_most(f"{name}: MiB", once["MiB"], MEBIBYTES)
        if not options.quick:
            report.at_most(f"{name}: seconds", once["seconds"], SECONDS)
    return report


if __name__ == "__main__":
    main(__doc__, run)
