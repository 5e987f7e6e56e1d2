"""Walk a user's path and time it: score, review 100 pairs, train, evaluate.

    python -m benchmarks.path [--quick] [--json FILE] [--model DIR] [--seed N]

Labels that are right (--quick: the sample hh-rlhf and its model; else ukp-convarg and
SmolLM2-135M-Instruct), a quarter of the prompts set aside; in the others all labels of some
annotators are reversed (`noisescope flip --kind contrarian --rate 0.3`). Then, by the commands
alone,

    noisescope score PAIRS
    noisescope export RUN --format review --count 100      # answers.csv, filled in by a simulated
    noisescope review RUN --import answers.csv             # reviewer who errs in one of 20 pairs
    noisescope train PAIRS                                 # what the audit and the reviewer know
    noisescope evaluate --policy TRAINED --labelled RIGHT

against `train --objective dpo --weights none` on the same labels (before) and on right labels.
Accuracy: how often the policy's implicit reward prefers the truly better side of the pairs set
aside; all trainings have the same steps.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import truth, with_sides_swapped
from benchmarks.harness import ROOT, Options, Report, main
from benchmarks.models import smollm2
from noisescope.datasets import load
from noisescope.pairs import digest

TEST_SHARE, RATE, REVIEWS, ERROR = 0.25, 0.3, 100, 0.05
#: Settings of every training: two epochs in the top two blocks.
TRAINING = "--layers 2 --steps 50 --learning-rate 1e-3"
PAIRS, TESTED = 800, 500
COLUMNS = ("prompt", "chosen", "rejected", "annotator")


@dataclass
class Walk:
    """The commands of one path in `folder`, and the seconds of each."""

    folder: Path
    model: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def type(self, step: str, line: str) -> str:
        """Run `noisescope LINE`; return what it printed. Raises RuntimeError with its messages."""
        words = [sys.executable, "-m", "noisescope", *shlex.split(line)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        began = time.perf_counter()
        done = subprocess.run(
            words, cwd=self.folder, env=environment, check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"noisescope {line}\n{done.stdout}{done.stderr}")
        self.rows.append({"step": step, "seconds": time.perf_counter() - began})
        print(f"{step}: {self.rows[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
        return done.stdout

    def accuracy(self, name: str, pairs: str, objective: str = "") -> dict[str, Any]:
        """Train on `pairs`, then measure on the right pairs set aside."""
        place = f"trained-{digest(name)[:6]}"
        line = f"train {pairs} {objective} {TRAINING} --model {self.model} --output {place} --json"
        trained = json.loads(self.type(f"train: {name}", line))
        line = f"evaluate --policy {place} --prompts right.jsonl --limit 1 --max-new-tokens 1"
        line += f" --labelled right.jsonl --labelled-limit {TESTED} --json"
        share = json.loads(self.type(f"evaluate: {name}", line))["labelled"]["implicit_reward"]
        return {
            "policy": name,
            "objective": trained["plan"]["settings"]["objective"],
            "accuracy": 100 * share["estimate"],
            "90 % interval": f"{100 * share['low']:.1f} to {100 * share['high']:.1f}",
        }


def run(options: Options) -> Report:
    """Plant, walk, compare."""
    report = Report("A user's path: what scoring and 100 reviews are worth in training")
    quick = options.quick
    model = Path(options.model or (ROOT / "sample_data/models/tiny-lm" if quick else smollm2()))
    source = ROOT / "sample_data/hh-rlhf" if quick else options.data / "ukp-convarg"
    plain = "--objective dpo --weights none"
    noisy = "noisy/gold.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        walk = Walk(Path(folder), shlex.quote(str(model.resolve())))
        better = prepare(source, walk.folder, options.seed)
        planted = f"--kind contrarian --rate {RATE} --seed {options.seed} --output noisy"
        walk.type("plant errors", f"flip gold.jsonl {planted}")
        before = walk.accuracy("before: dpo on the labels", noisy, plain)
        scored = walk.type("score", f"score {noisy} --model {walk.model} --json")
        report.facts["trust"] = json.loads(scored)["trust"]["word"]
        (audit,) = (path.parent.name for path in walk.folder.glob("runs/*/scores.parquet"))
        queue = f"export {audit} --format review --count {REVIEWS} --output queue"
        walk.type(f"queue of {REVIEWS}", queue)
        answers = walk.folder / "queue" / "answers.csv"
        report.facts["answers"] = answer(answers, better, options.seed)
        walk.type("import answers", f"review {audit} --import queue/answers.csv --reviewer ann")
        after = walk.accuracy("after: what is known", noisy)
        right = walk.accuracy("ceiling: dpo on right labels", "gold.jsonl", plain)
    report.tables["accuracy on right pairs of prompts set aside"] = [before, after, right]
    report.tables["seconds, start of the interpreter included"] = walk.rows
    report.facts["seconds in all"] = sum(row["seconds"] for row in walk.rows)
    gained = after["accuracy"] - before["accuracy"]
    report.at_least("points gained by score, 100 reviews and train", gained, 0.0)
    return report


def prepare(source: Path, folder: Path, seed: int) -> set[str]:
    """Write gold.jsonl (to plant errors in) and right.jsonl (set aside); return the better sides'
    keys of gold.jsonl."""
    single = source / "natural.parquet"
    dataset = load(single if single.is_file() else source)
    gold = with_sides_swapped(dataset, truth(dataset, source / "truth.parquet"))
    rows = gold.table.select(COLUMNS).to_pylist()
    place = [int(digest(str(seed), row["prompt"])[:8], 16) / 16**8 for row in rows]
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    kept = [rows[at] for at in order if place[at] >= TEST_SHARE][:PAIRS]
    aside = [rows[at] for at in order if place[at] < TEST_SHARE][:TESTED]
    for name, part in (("gold.jsonl", kept), ("right.jsonl", aside)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part), "utf-8")
    return {side_of(row["chosen"], row["rejected"]) for row in kept}


def side_of(better: str, worse: str) -> str:
    """A key of one direction of a pair of texts, blind to spaces around them."""
    return digest(better.strip(), worse.strip())


def answer(path: Path, better: set[str], seed: int) -> int:
    """Fill in a queue as a reviewer who knows the truth and errs in ERROR of the pairs."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    errs = np.random.default_rng([seed, 3]).random(len(rows)) < ERROR
    for row, wrong in zip(rows, errs.tolist(), strict=True):
        first = side_of(row["a"], row["b"]) in better
        row["answer"] = "A" if first != wrong else "B"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


if __name__ == "__main__":
    main(__doc__, run)
