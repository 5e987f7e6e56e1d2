"""Measure false alarms and misses of gates over resamples, and the cost after new pairs.

    python -m benchmarks.gate [--quick] [--json FILE]

First `noisescope gate` of 20 deliveries of 1,500 pairs of the sample, each against another one with
no pair in common: as good, or with 15 points more of wrong labels. Then the command's time on
ukp-convarg with the labels of the consensus of five votes (gold; SmolLM2-135M): on 98 % of the
pairs of some topics with nothing cached, and on all of them afterwards; --quick takes about 1,500
pairs, else all 12,792. Then the default gate on seeded resamples of the same gold labels, which are
clean enough, as they are and with ten points of labels flipped: 20 of 6,000 pairs and 20 of 3,000,
with --quick 2 of 3,000. An inconclusive gate (exit 3) neither passed nor failed. Features of these
resamples are kept in the user's cache folder.
"""

from __future__ import annotations

import atexit
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.data import truth, with_sides_swapped
from benchmarks.harness import ROOT, Options, Report, main
from benchmarks.models import cache as model_cache
from benchmarks.models import smollm2
from noisescope.auditing.audit import audit
from noisescope.datasets import load
from noisescope.gate.evaluate import check_gate
from noisescope.gate.input import Subject
from noisescope.gate.policy import Policy
from noisescope.gate.verdict import Verdict
from noisescope.models import Policy as Judge
from noisescope.models.load import load_policy
from noisescope.pairs import Facts, PreferenceDataset, dataset_fingerprint

Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

RESAMPLES = 20
SEED = 7
#: Ten points more noise.
FLIPPED = 0.1
#: Share of pairs that the pull request adds.
ADDED = 0.02
QUICK_PAIRS = 1500
#: Pairs of a delivery, and by how much the worse one is worse.
DELIVERY, WORSE = 1500, 0.15


def gold(options: Options) -> PreferenceDataset:
    """Load ukp-convarg with every label set to the consensus."""
    folder = options.data / "ukp-convarg"
    dataset = load(folder / "natural.parquet")
    return with_sides_swapped(dataset, truth(dataset, folder / "truth.parquet"))


def resample(dataset: PreferenceDataset, pairs: int, seed: int, noise: float) -> PreferenceDataset:
    """Draw `pairs` of the dataset without replacement, a share `noise` of them flipped."""
    rng = np.random.default_rng([SEED, seed, pairs])
    rows = np.sort(rng.choice(len(dataset), pairs, replace=False))
    table = dataset.table.take(pa.array(rows))
    facts = Facts(rows=pairs, pairs=pairs)
    part = replace(dataset, table=table, facts=facts, fingerprint=dataset_fingerprint(table))
    return with_sides_swapped(part, rng.random(pairs) < noise) if noise else part


def verdict_on(dataset: PreferenceDataset, judge: Judge, runs: Path) -> Verdict:
    """Return the default gate's verdict, by the audit that the command makes."""
    done = audit(dataset, judge, runs_directory=runs)
    return check_gate(Subject(done.run), Policy())


def alarms(options: Options, report: Report, model: str, sizes: list[int], draws: int) -> None:
    """Count verdicts over resamples of clean and of noisier labels."""
    dataset = gold(options)
    judge = load_policy(model, dataset, max_length=None, device="auto", dtype="auto")
    kept = model_cache().parent / "features"
    kept.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch)
        (runs / ".cache").mkdir()
        (runs / ".cache" / "features").symlink_to(kept)
        for pairs in sizes:
            for noise in (0.0, FLIPPED):
                verdicts = [
                    verdict_on(resample(dataset, pairs, seed, noise), judge, runs)
                    for seed in range(draws)
                ]
                rows.append(_counted(pairs, noise, verdicts))
                print(rows[-1], file=sys.stderr)
                right, wrong = ("failed", "passed") if noise else ("passed", "failed")
                name = f"{'+10 points' if noise else 'clean'}, {pairs:,} pairs"
                report.at_least(f"{right}, {name}", rows[-1][right] / draws, 0.95)
                report.at_most(f"{wrong}, {name}", rows[-1][wrong] / draws, 0.05)
    report.tables[f"default gate over {draws} resamples of ukp-convarg gold labels"] = rows


def _counted(pairs: int, noise: float, verdicts: list[Verdict]) -> dict[str, Any]:
    words = Counter(verdict.word for verdict in verdicts)
    breached = Counter(result.check for verdict in verdicts for result in verdict.of("fail"))
    lows = [
        result.low
        for verdict in verdicts
        for result in verdict.results
        if result.check == "flip_rate" and result.low is not None
    ]
    return {
        "pairs": pairs,
        "flipped": noise,
        **{word: words[word] for word in ("passed", "failed", "inconclusive")},
        "breached": ", ".join(f"{name} {count}" for name, count in breached.items()) or "-",
        **{f"e low, {q:.0%}": float(np.quantile(lows, q)) for q in (0.0, 0.05, 0.5, 1.0)},
    }


def with_new_pairs(dataset: PreferenceDataset, pairs: int) -> tuple[pa.Table, pa.Table]:
    """Return (98 %, 100 %) of the pairs of whole topics; the new ones have unseen responses."""
    table = dataset.table.select(["pair_id", "prompt", "chosen", "rejected", "annotator"])
    prompts = np.array(table.column("prompt").to_pylist())
    topics: list[str] = []
    for topic in dict.fromkeys(prompts):
        if np.isin(prompts, topics).sum() < pairs:
            topics.append(topic)
    table = table.filter(pa.array(np.isin(prompts, topics)))
    sides = np.array([table.column(side).to_pylist() for side in ("chosen", "rejected")])
    new = np.zeros(table.num_rows, bool)
    for response in np.random.default_rng(0).permutation(np.unique(sides)):
        if new.mean() < ADDED:
            new |= (sides == response).any(axis=0)
    return table.filter(pa.array(~new)), table


def incremental(options: Options, report: Report, model: str, pairs: int) -> None:
    """Time the command `noisescope gate`, cold and after the new pairs."""
    before, after = with_new_pairs(gold(options), pairs)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for name, table in (("before", before), ("after", after)):
            pq.write_table(table, place / f"{name}.parquet")
            command = [sys.executable, "-m", "noisescope", "gate", f"{name}.parquet"]
            command += ["--model", str(Path(model).resolve()), "--json"]
            command += ["--baseline", "before"] if name == "after" else []
            began = time.perf_counter()
            done = subprocess.run(command, cwd=place, capture_output=True, text=True)
            seconds = time.perf_counter() - began
            if not done.stdout:
                raise RuntimeError(done.stderr[-2000:])
            rows.append(
                {"gate": name, "pairs": table.num_rows, "seconds": seconds, "exit": done.returncode}
            )
    report.tables["noisescope gate as typed, interpreter and model load included"] = rows
    share = rows[1]["seconds"] / rows[0]["seconds"]
    added = rows[1]["pairs"] - rows[0]["pairs"]
    report.facts["added"] = added
    report.facts["share of the full audit"] = share
    name = f"gate after {added:,} new pairs, share of the full audit"
    report.at_most(name, None if options.quick else share, 0.1)  # of few pairs, imports exceed it


def part(dataset: PreferenceDataset, rows: Int, flipped: Bool) -> PreferenceDataset:
    """Take these rows of the dataset, with the labels in `flipped` [rows] flipped."""
    table = dataset.table.take(pa.array(rows))
    facts = Facts(rows=len(rows), pairs=len(rows))
    taken = replace(dataset, table=table, facts=facts, fingerprint=dataset_fingerprint(table))
    return with_sides_swapped(taken, flipped) if flipped.any() else taken


@cache
def _sample() -> tuple[PreferenceDataset, float, Judge, Path]:
    """The sample, its share of wrong labels, its tiny model, and a folder for runs."""
    import torch

    torch.set_num_threads(1)
    folder = ROOT / "sample_data"
    dataset = load(folder / "hh-rlhf" / "train.jsonl.gz")
    wrong = truth(dataset, folder / "hh-rlhf" / "truth.parquet")
    model = str(folder / "models" / "tiny-lm")
    judge = load_policy(model, dataset, max_length=None, device="auto", dtype="auto")
    runs = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, runs, ignore_errors=True)
    return dataset, float(wrong.mean()), judge, Path(runs)


def delivery(seed: int) -> dict[str, tuple[int, float]]:
    """Gate a delivery against another: its exit code and growth in points, equal and worse.

    The sample's own errors fail other checks of the default policy, so those of the flip rate and
    of annotators are off.
    """
    dataset, wrong, judge, runs = _sample()
    policy = replace(Policy(), max_flip_rate=None, min_reliability=None)
    rng = np.random.default_rng([11, seed])
    drawn = rng.permutation(len(dataset))
    old, new = np.sort(drawn[:DELIVERY]), np.sort(drawn[DELIVERY : 2 * DELIVERY])
    none = np.zeros(DELIVERY, bool)
    some = rng.random(DELIVERY) < WORSE / (1 - 2 * wrong)  # a flip puts a wrong label right
    baseline = audit(part(dataset, old, none), judge, runs_directory=runs).run
    found = {}
    for name, flipped in (("equal", none), ("worse", some)):
        run = audit(part(dataset, new, flipped), judge, runs_directory=runs).run
        verdict = check_gate(Subject(run, baseline), policy)
        (growth,) = (result for result in verdict.results if result.check == "growth")
        found[name] = verdict.exit_code, 100 * (growth.measured or 0.0)
    return found


def deliveries(report: Report) -> None:
    """Count exit codes of gates between deliveries, equal and 15 points worse, in two processes."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        done = list(pool.map(delivery, range(RESAMPLES)))
    rows = []
    for name in ("equal", "worse"):
        codes, points = zip(*(one[name] for one in done), strict=True)
        row: dict[str, Any] = {"delivery": name}
        row |= {f"exit {code}": codes.count(code) for code in (0, 1, 3)}
        rows.append(row | {"points, lowest": min(points), "points, highest": max(points)})
    report.tables[f"gates of {RESAMPLES} deliveries of {DELIVERY:,} pairs against others"] = rows
    report.at_least("equal deliveries that pass, of 20", rows[0]["exit 0"], RESAMPLES - 1)
    report.at_least("worse deliveries that fail, of 20", rows[1]["exit 1"], RESAMPLES - 1)
    print(rows, file=sys.stderr)


def run(options: Options) -> Report:
    """Run all parts."""
    report = Report("Gates: alarms, and the cost of new pairs")
    model = options.model or str(smollm2())
    deliveries(report)
    incremental(options, report, model, QUICK_PAIRS if options.quick else 20_000)
    alarms(options, report, model, *(([3000], 2) if options.quick else ([6000, 3000], RESAMPLES)))
    return report


if __name__ == "__main__":
    main(__doc__, run)
