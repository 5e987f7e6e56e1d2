"""Measure false alarms and misses of gates over resamples, and the cost after new pairs.

    python -m benchmarks.gate [--quick] [--json FILE]

Data: ukp-convarg with the labels of the consensus of five votes (gold), which is clean enough;
SmolLM2-135M is the model. 20 seeded resamples of 6,000 pairs (and of 3,000 without --quick), once
as they are and once with ten points of labels flipped, each through the default gate. Then the
command `noisescope gate`: on 98 % of the pairs of some topics with nothing cached, and on all of
them afterwards; --quick takes about 3,000 pairs, else all 12,792. Features are kept in the user's
cache folder for the first part alone. Before that, `growth` between deliveries of the sample.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.data import truth, with_sides_swapped
from benchmarks.harness import Options, Report, main
from benchmarks.models import cache, smollm2
from benchmarks.planted_noise import reversed_labels, right
from benchmarks.trust import HELD_OUT, fit, sample_labels
from noisescope.auditing.audit import audit
from noisescope.datasets import load
from noisescope.gate.evaluate import check_gate
from noisescope.gate.growth import difference
from noisescope.gate.input import Subject
from noisescope.gate.policy import Policy
from noisescope.gate.verdict import Verdict, compare_threshold
from noisescope.models import Policy as Judge
from noisescope.models.load import load_policy
from noisescope.pairs import Facts, PreferenceDataset, dataset_fingerprint

RESAMPLES = 20
SEED = 7
#: Ten points more noise.
FLIPPED = 0.1
#: Share of pairs that the pull request adds.
ADDED = 0.02
QUICK_PAIRS = 3000
#: Pairs of a delivery, and by how much the worse one is worse.
DELIVERY, WORSE = 1500, 0.15
MAX_GROWTH = 0.05


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


def alarms(options: Options, report: Report, model: str, sizes: list[int]) -> None:
    """Count verdicts over resamples of clean and of noisier labels."""
    dataset = gold(options)
    judge = load_policy(model, dataset, max_length=None, device="auto", dtype="auto")
    kept = cache().parent / "features"
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
                    for seed in range(RESAMPLES)
                ]
                rows.append(_counted(pairs, noise, verdicts))
                print(rows[-1], file=sys.stderr)
                if not noise:
                    alarmed = RESAMPLES - rows[-1]["passed"]
                    report.at_most(f"alarms, clean, {pairs:,} pairs, of 20", alarmed, 1)
                else:
                    failed = rows[-1]["failed"]
                    report.at_least(f"breaches, +10 points, {pairs:,} pairs, of 20", failed, 19)
    report.tables["default gate over 20 resamples of ukp-convarg gold labels"] = rows


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
    report.at_most(f"gate after {added:,} new pairs, share of the full audit", share, 0.1)


def deliveries(report: Report) -> None:
    """Count alarms and misses of `growth` between two deliveries of 1,500 pairs of the sample.

    The second is as good as the first, or 15 points of its labels more are wrong.
    """
    labels = sample_labels()
    count: dict[tuple[float, str], int] = {}
    start: dict[str, Mapping[str, float]] = {}
    for more in (0.0, WORSE):
        for seed in range(RESAMPLES):
            rng = np.random.default_rng([11, seed, round(100 * more)])
            drawn = rng.permutation(len(labels.chosen))[: 2 * DELIVERY]
            new = np.arange(len(drawn)) >= DELIVERY
            share = more / (1 - 2 * labels.wrong.mean())  # a flip puts a wrong label right
            flipped = np.zeros(len(labels.chosen), bool)
            flipped[drawn[new]] = rng.random(DELIVERY) < share
            noisy = reversed_labels(right(labels), labels.wrong ^ flipped)
            columns = ("chosen", "rejected", "prompts", "annotators", "wrong")
            both = replace(noisy, **{name: getattr(noisy, name)[drawn] for name in columns})
            margins = fit(both, HELD_OUT, start).margins.mean(axis=0, dtype=np.float64)
            found = difference(margins[new], margins[~new])
            status, _ = compare_threshold(found, MAX_GROWTH, "lower", Policy.detect)
            count[more, status] = count.get((more, status), 0) + 1
    rows = [{"points worse": 100 * m, "growth": s, "of 20": n} for (m, s), n in count.items()]
    report.tables["growth between two deliveries of 1,500 pairs"] = rows
    report.at_least("equal deliveries that pass, of 20", count.get((0.0, "pass"), 0), 19)
    report.at_least("worse deliveries that fail, of 20", count.get((WORSE, "fail"), 0), 19)


def run(options: Options) -> Report:
    """Run all parts."""
    report = Report("Gates: alarms, and the cost of new pairs")
    model = options.model or str(smollm2())
    deliveries(report)
    alarms(options, report, model, [6000] if options.quick else [6000, 3000])
    incremental(options, report, model, QUICK_PAIRS if options.quick else 20_000)
    return report


if __name__ == "__main__":
    main(__doc__, run)
