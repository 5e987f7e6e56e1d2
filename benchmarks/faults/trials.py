"""Kill score, fine-tune, train, flip and export: nothing lost, nothing repeated, the same bytes.

    python -m benchmarks.faults [--quick] [--json FILE] [--seed N]

A hundred and twenty SIGKILLs at seeded points (24 with --quick), each followed by the same
command again; a tiny model of our own, one thread. How: `benchmarks/faults/killing.py`.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.faults.killing import (
    jumping,
    output_of,
    prepare,
    run_forked,
    together,
    trial,
    unbroken,
)
from benchmarks.faults.leftovers import Case, Outcome
from benchmarks.harness import ROOT, Options, Report

SCORE = ("score", "pairs.jsonl", "--model", "tiny", "--replicas", "2", "--folds", "2")
LORA = ("--kind", "lora", "--replicas", "2", "--layers", "top-2", "--checkpoints", "2")
TRAIN = ("--steps", "8", "--batch-size", "8", "--save-every", "2", "--output", "tuned")
CASES = (
    Case("score", (SCORE,), ("runs",)),
    Case(
        "fine-tune",
        (("fine-tune", "pairs.jsonl", "--model", "tiny", *LORA, "--steps", "6"),),
        ("runs",),
    ),
    Case(
        "train",
        (("train", "pairs.jsonl", "--model", "tiny", "--objective", "dpo", *TRAIN),),
        ("tuned",),
    ),
    Case("flip", (("flip", "many.jsonl", "--rate", "0.2", "--output", "copy"),), ("copy",)),
    Case(
        "export",
        (
            ("export", "pairs", "--format", "clean", "--output", "clean", "--force"),
            ("export", "pairs", "--format", "weights", "--output", "weights.parquet", "--force"),
            ("export", "pairs", "--format", "review", "--output", "review", "--force"),
        ),
        ("clean", "weights.parquet", "review"),
    ),
)
PAIRS, MANY = 60, 6000


def start(folder: Path) -> Path:
    """Make a directory with data, a tiny model and a finished run to export."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.tiny_models import save, tiny_llama, tiny_tokenizer

    folder.mkdir(parents=True)
    save(folder / "tiny", tiny_llama(), tiny_tokenizer())
    draw = random.Random(0)
    words = ["knead", "the dough", "wait", "bake it", "slowly", "no idea", "bread", "oven salt"]
    for name, count in (("pairs.jsonl", PAIRS), ("many.jsonl", MANY)):
        with (folder / name).open("w") as out:
            for number in range(count):
                good = " ".join(draw.choices(words, k=draw.randint(10, 24)))
                bad = " ".join(draw.choices(words, k=draw.randint(4, 12)))
                row = {"prompt": f"question {number % 40}", "chosen": good, "rejected": bad}
                out.write(json.dumps(row) + "\n")
    return folder


def finished(folder: Path) -> None:
    """Score the pairs of a start directory, for the exports."""
    code, _, _ = run_forked(SCORE, folder)
    if code not in (0, 2):  # 2: scores that carry no verdict, which is what noise gives
        raise RuntimeError(f"score ended with {code}: {output_of(folder)}")


def measure(case: Case, kills: int, base: Path, place: Path, seed: int) -> tuple[Outcome, Any]:
    """Run trials of one case until `kills` kills are done; return counts and a whole run."""
    whole = unbroken(case, base, place / "whole")
    draw, found, number = random.Random(f"{seed} {case.name}"), Outcome(), 0
    while found.kills < kills and number < 4 * kills:
        number += 1
        found.add(trial(case, base, place / f"{number}", draw, whole, kills=draw.randint(1, 3)))
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        found.add(trial(case, base, place / signal_.name, draw, whole, kills=2, number=signal_))
    found.add(jumping(case, base, place / "clock", draw, whole))
    found.add(together(case, base, place / "together", whole))
    return found, whole


def few(seed: int, kills: int) -> dict[str, Any]:
    """Run everything for flip, the cheapest command, and one kill of score, for the tests."""
    prepare()
    case = {case.name: case for case in CASES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = start(folder / "base")
        total, _ = measure(case["flip"], kills, base, folder / "flip", seed)
        whole = unbroken(case["score"], base, folder / "whole")
        total.add(trial(case["score"], base, folder / "one", random.Random(seed), whole))
    return asdict(total)


def run(options: Options) -> Report:
    """Run the trials of every case."""
    prepare()
    report, total = Report("kills"), Outcome()
    each = 5 if options.quick else 24
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = start(folder / "plain")
        scored = start(folder / "scored")
        finished(scored)
        table = []
        for case in CASES:
            base = scored if case.name == "export" else plain
            found, whole = measure(case, each, base, folder / case.name, options.seed)
            table.append(
                {
                    "command": case.name,
                    "kills": found.kills,
                    "SIGINT, SIGTERM": found.stops,
                    "at a write": found.by_write,
                    "refused beside another": found.refused,
                    "rows lost": found.lost_rows,
                    "rows twice": found.repeated_rows,
                    "differences": len(found.faults),
                    "temporary files left": found.leftovers,
                    "unbroken s": round(sum(whole.seconds), 2),
                    "writes": sum(whole.writes),
                }
            )
            total.add(found)
    report.tables["kills and what they cost"] = table
    report.facts["faults"] = total.faults
    for fault in total.faults[:20]:
        print(fault, file=sys.stderr)
    report.at_least("kills", total.kills, 24 if options.quick else 100)
    report.at_most("rows lost or twice", total.lost_rows + total.repeated_rows, 0)
    report.at_most("differences from an unbroken run", len(total.faults), 0)
    return report
