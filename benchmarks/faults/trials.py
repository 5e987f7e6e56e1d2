"""Kill commands at seeded points: nothing lost, nothing repeated, the same bytes.

    python -m benchmarks.faults [--quick] [--json FILE] [--seed N]

Score (also with a judge), fine-tune, train, flip, export, apply, explain, report, review (answers
imported, typed, and given on the page): 18 SIGKILLs each, 10 of those that load a model (2 with
--quick), and 6 SIGINTs and SIGTERMs, each followed by the same command again; a tiny model of
our own, one thread. How: `benchmarks/faults/killing.py`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.faults.killing import (
    TYPED,
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
#: The most suspicious pairs: a sample would be another one in each run.
REVIEW = ("review", "pairs", "--for", "fix", "--count", "12", "--reviewer", "ann")
#: Where reviews are recorded.
JUDGED = "runs/pairs-1/reviews.jsonl"
#: Cases that begin with a finished run.
SCORED = (
    CASES[-1],
    Case("apply", (("apply", "decisions.csv", "--output", "applied"),), ("applied", JUDGED)),
    Case("review --import", (("review", "pairs", "--import", "answers.csv"),), (JUDGED,)),
    Case("review --terminal", ((*REVIEW, "--terminal"),), (JUDGED,)),
    Case("review", (REVIEW,), (JUDGED,)),
    Case(
        "explain, report",
        (("explain", "pairs"), ("report", "pairs", "--output", "page.html")),
        ("runs", "page.html"),
    ),
)
PAIRS, MANY, DECIDED = 60, 6000, 30
#: Cases that load a model: fewer kills of each.
COMPUTING = ("score", "score, a judge", "fine-tune", "train")
#: A judge that prefers the longer response.
JUDGE = """
import time
from helpers.chat_stub import serving, shown, weighs
def longer(number, text):
    first, second = shown(text)
    return weighs(2.0 if len(first) > len(second) else -2.0)
with serving(longer) as stub:
    print(stub.url, flush=True)
    time.sleep(1e6)
"""
#: A browser that answers everything on the page whose address it gets, then presses Finish.
BROWSER = """
import json, sys, urllib.request
def post(name, **body):
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(sys.argv[1] + name, data, kind)
    return json.load(urllib.request.urlopen(request))
try:
    state = json.load(urllib.request.urlopen(sys.argv[1] + "state"))
    while state["pair"]:
        state = post("answer", pair=state["pair"]["id"], answer="first")
    post("finish")
except OSError:
    pass  # the server was killed
"""


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


@contextmanager
def judge() -> Iterator[str]:
    """Serve a judge from a process of its own; its URL."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}"}
    serving = subprocess.Popen(
        [sys.executable, "-c", JUDGE], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert serving.stdout is not None
    try:
        yield serving.stdout.readline().strip()
    finally:
        serving.kill()
        serving.wait()


def judged_by(url: str) -> Case:
    """An audit with the answers of the judge at `url`."""
    evidence = ("--evidence", f"judge:{url}#stub", "--budget", str(8 * PAIRS))
    return Case("score, a judge", ((*SCORE, *evidence),), ("runs",))


def decided(folder: Path) -> None:
    """Write decisions, answers and keys to type about the finished run of a start directory."""
    import pyarrow.parquet as pq

    (run,) = (path.parent for path in folder.glob("runs/*/pairs.parquet"))
    run.rename(run.with_name("pairs-1"))
    manifest = json.loads((folder / "runs" / "pairs-1" / "manifest.json").read_text())
    ids = pq.read_table(folder / "runs" / "pairs-1" / "pairs.parquet").column("pair_id").to_pylist()
    dataset = manifest["dataset_fingerprint"]
    choices = [(one, ("keep", "flip", "drop")[n % 3]) for n, one in enumerate(ids[:DECIDED])]
    rows = [f"{one},{what},ann,{dataset}" for one, what in choices]
    (folder / "decisions.csv").write_text(
        "\n".join(["pair_id,decision,reviewer,dataset", *rows, ""])
    )
    rows = [f"{one},{('keep', 'flip')[n % 2]},bob" for n, one in enumerate(ids[:DECIDED])]
    (folder / "answers.csv").write_text("\n".join(["pair_id,decision,reviewer", *rows, ""]))
    (folder / TYPED).write_text("1\n" * DECIDED)


def measure(case: Case, kills: int, base: Path, place: Path, seed: int) -> tuple[Outcome, Any]:
    """Run trials of one case until `kills` kills are done; return counts and a whole run."""
    whole = unbroken(case, base, place / "whole")
    draw, found, number = random.Random(f"{seed} {case.name}"), Outcome(), 0
    while found.kills < kills and number < 4 * kills:
        number += 1
        found.add(trial(case, base, place / f"{number}", draw, whole, kills=draw.randint(1, 3)))
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        found.add(trial(case, base, place / signal_.name, draw, whole, kills=3, number=signal_))
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
    with tempfile.TemporaryDirectory() as name, judge() as url:
        folder = Path(name)
        plain = start(folder / "plain")
        scored = start(folder / "scored")
        finished(scored)
        decided(scored)
        (folder / "browser.py").write_text(BROWSER)
        os.environ["BROWSER"] = f"{sys.executable} {folder / 'browser.py'} %s"
        table = []
        for case in (*CASES[:-1], judged_by(url), *SCORED):
            base = scored if case in SCORED else plain
            each = 2 if options.quick else 10 if case.name in COMPUTING else 18
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
            print(", ".join(f"{name} {value}" for name, value in table[-1].items()),
                  file=sys.stderr, flush=True)  # fmt: skip
    report.tables["kills and what they cost"] = table
    report.facts["faults"] = total.faults
    for fault in total.faults[:20]:
        print(fault, file=sys.stderr)
    report.at_least("kills", total.kills, 22 if options.quick else 150)
    report.at_least("stops", total.stops, 10 if options.quick else 40)
    report.at_most("rows lost or twice", total.lost_rows + total.repeated_rows, 0)
    report.at_most("differences from an unbroken run", len(total.faults), 0)
    return report
