"""Measure what a hundred judgements are worth: coverage and width of the reviewed share.

    python -m benchmarks.review [--quick] [--json FILE] [--data DIR] [--model DIR]

Datasets are audited as `noisescope score` does it (the sample's tiny model by default): the sample
hh-rlhf, ukp-convarg's natural votes (pooled), hh-harmless with 20 % planted flips, and the gold
labels of ukp-convarg under eight kinds of noise. Simulated reviewers who know the truth then judge
samples drawn as `noisescope review` draws them: without errors, and two who err in 10 % of pairs,
evenly or mostly on close ones (so that their errors agree). Widths are compared with Wilson's
interval from a simple random sample of as many pairs. On the sample, reviews are also written as
the page writes them and read by `noisescope review --summary`, which must print the same interval.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import noisescope
from benchmarks.data import truth, with_sides_swapped
from benchmarks.harness import ROOT, Options, Report, main
from noisescope.datasets import load
from noisescope.pairs import PreferenceDataset
from noisescope.replicas.gather import EvidenceConfig
from noisescope.report.review.session import open_session
from noisescope.scoring.metrics import calibration, share
from noisescope.scoring.review_estimate import Votes, review
from noisescope.scoring.reviews import (
    Population,
    cells_of,
    draw_sample,
    queue_of,
    read_p_wrong,
    read_population,
)
from noisescope.storage.reviews import FILE, Log, side_key
from noisescope.storage.run import Run

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

SAMPLE = ROOT / "sample_data"
#: Widths at 100 answers over those of a simple random sample, at most.
WIDEST = {"sample hh-rlhf": 0.6, "ukp natural": 0.75, "hh-harmless + 20 %": 0.95}
ERROR = 0.1
REPLICAS = 2


@dataclass(frozen=True)
class Audited:
    """An audited dataset in the order of its population: p_wrong [N], whether each label is wrong
    [N], and how hard each pair is for people [N], 0 to 1.
    """

    name: str
    run: Run
    pairs: Population
    p: Float
    wrong: Bool
    hard: Float


@dataclass(frozen=True)
class People:
    """Simulated reviewers: how many judge each pair, how often they err, and on which pairs."""

    name: str
    count: int
    error: float
    even: bool = True

    def votes(self, audited: Audited, place: NDArray[np.int64], rng: np.random.Generator) -> Votes:
        """Return their judgements of the pairs at `place`."""
        chance = np.full(len(place), self.error)
        if not self.even:  # the same mean over the dataset, all of it on the hardest pairs
            steep = audited.hard**4
            chance = np.minimum(0.5, self.error * steep[place] / steep.mean())
        errs = rng.random((self.count, len(place))) < chance
        found = (audited.wrong[place] ^ errs).sum(axis=0).astype(np.float64)
        return Votes(place, found, self.count - found, np.zeros(len(place)))


PERFECT = People("one, perfect", 1, 0.0)
ERRING = People("two, err 10 %", 2, ERROR)
ALIKE = People("two, err 10 % on hard pairs", 2, ERROR, even=False)


def run(options: Options) -> Report:
    """Run all cells."""
    report = Report("What reviews are worth: coverage and width of the share of wrong labels")
    draws = 100 if options.quick else 1000
    model = options.model or str(SAMPLE / "models" / "tiny-lm")
    with tempfile.TemporaryDirectory() as scratch:
        rows: list[dict[str, Any]] = []
        for audited in datasets(options, model, Path(scratch)):
            rows += cells(audited, draws, report)
            if audited.name in WIDEST:
                quality(audited, draws // 4, report)
            if audited.name.startswith("sample"):
                commands(audited, report)
        report.tables["the share of wrong labels, 90 % intervals"] = rows
    return report


def datasets(options: Options, model: str, scratch: Path) -> Iterator[Audited]:
    """Audit every dataset, one after the other."""
    sample = load(SAMPLE / "hh-rlhf")
    found = truth(sample, SAMPLE / "hh-rlhf" / "truth.parquet")
    yield audit("sample hh-rlhf", sample, found, model, scratch)
    path = options.data / "ukp-convarg"
    ukp = load(path / "natural.parquet")
    wrong = truth(ukp, path / "truth.parquet")
    yield audit("ukp natural", ukp, wrong, model, scratch, pool=True)
    source = options.data / "hh-harmless" / "test.jsonl.gz"
    harmless = load(source, limit=1000 if options.quick else None)
    swap = np.random.default_rng(0).random(len(harmless)) < 0.2
    flipped = with_sides_swapped(harmless, swap)
    yield audit("hh-harmless + 20 %", flipped, swap, model, scratch)
    gold = with_sides_swapped(ukp, wrong)
    for kind, swap in noises(gold).items():
        yield audit(f"ukp gold, {kind}", with_sides_swapped(gold, swap), swap, model, scratch)


def audit(
    name: str,
    dataset: PreferenceDataset,
    wrong: Bool,
    model: str,
    scratch: Path,
    *,
    pool: bool = False,
) -> Audited:
    """Audit `dataset`, whose labels are `wrong` [N] in the order of its rows."""
    print(f"auditing {name}", file=sys.stderr, flush=True)
    evidence = EvidenceConfig(replicas=REPLICAS, pool=pool)
    found = noisescope.audit(
        dataset, model=model, evidence=evidence, runs_directory=scratch / "runs"
    )
    pairs = read_population(found.run)
    ordered = np.empty(len(wrong), bool)
    ordered[pairs.place] = wrong
    p = read_p_wrong(found.run, pairs)
    margin = np.empty(len(p))
    scores = found.scores
    margin[pairs.places(scores.column("pair_id").to_pylist())] = scores.column("margin").to_numpy()
    hard = 1 - np.argsort(np.argsort(np.abs(margin))) / max(len(margin) - 1, 1)
    return Audited(name, found.run, pairs, p, ordered, hard)


def noises(gold: PreferenceDataset, seed: int = 0) -> dict[str, Bool]:
    """Return labels to reverse [N] under each kind of noise, about a fifth of all."""
    rng = np.random.default_rng(seed)
    n = len(gold)
    chosen, rejected = (_codes(gold.table.column(name)) for name in ("chosen", "rejected"))
    people, prompts = (_codes(gold.table.column(name)) for name in ("annotator", "prompt"))
    _, both = np.unique(np.concatenate([_strings(gold, "chosen"), _strings(gold, "rejected")]),
                        return_inverse=True)  # fmt: skip
    chosen, rejected = both[:n], both[n:]
    wins = np.bincount(chosen, minlength=both.max() + 1)
    losses = np.bincount(rejected, minlength=both.max() + 1)
    quality = np.log((wins + 1) / (losses + 1))
    gap = np.argsort(np.argsort(quality[chosen] - quality[rejected])) / n
    bad = rng.random(len(quality)) < 0.3
    rescored = np.where(bad, rng.permutation(quality) + rng.normal(0, 1, len(quality)), quality)
    touched = bad[chosen] | bad[rejected]
    first = rng.random(n) < 0.5
    return {
        "uniform": rng.random(n) < 0.2,
        "careless": (rng.random(people.max() + 1) < 0.4)[people] & (rng.random(n) < 0.5),
        "contrarian": (rng.random(people.max() + 1) < 0.15)[people],
        "response": touched & (rescored[chosen] < rescored[rejected]),
        "prompt": (rng.random(prompts.max() + 1) < 0.2)[prompts],
        "hard": rng.random(n) < 0.4 * (1 - gap),
        "easy": rng.random(n) < 0.4 * gap,
        "position": ~first & (rng.random(n) < 0.3),
    }


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.unique(np.array(column.to_pylist(), dtype=str), return_inverse=True)[1]


def _strings(dataset: PreferenceDataset, name: str) -> NDArray[np.str_]:
    return np.array(dataset.table.column(name).to_pylist(), dtype=str)


def cells(audited: Audited, draws: int, report: Report) -> list[dict[str, Any]]:
    """Simulate every kind of reviewers and number of answers."""
    rows = []
    for people in (PERFECT, ERRING, ALIKE):
        for count in (50, 100, 200) if people is PERFECT else (100,):
            row = cell(audited, people, count, draws)
            rows.append(row)
            name = f"{audited.name}, {count} answers, {people.name}"
            if people is PERFECT and count == 100:
                report.at_least(f"coverage: {name}", row["covered"], 0.87)
                report.at_most(f"coverage: {name}", row["covered"], 0.93)
            if people is PERFECT and count == 100 and audited.name in WIDEST:
                report.at_most(f"width / random: {name}", row["/ random"], WIDEST[audited.name])
            if people is ERRING:
                report.at_least(f"coverage: {name}", row["covered"], 0.85)
    return rows


def cell(audited: Audited, people: People, count: int, draws: int) -> dict[str, Any]:
    """Draw, judge and estimate `draws` times."""
    rng = np.random.default_rng(1)
    real = float(audited.wrong.mean())
    low, high, middle, random = (np.empty(draws) for _ in range(4))
    for at in range(draws):
        place, cells = sample(audited, count, seed=int(rng.integers(1 << 31)))
        votes = people.votes(audited, place, rng)
        found = review(cells, audited.p, votes).share().share
        low[at], middle[at], high[at] = found.low, found.estimate, found.high
        simple = share(int(audited.wrong[rng.permutation(len(audited.p))[:count]].sum()), count)
        random[at] = simple.high - simple.low
    width = float((high - low).mean())
    return {
        "dataset": audited.name,
        "reviewers": people.name,
        "pairs judged": count,
        "truth": real,
        "mean": float(middle.mean()),
        "covered": float(((low <= real) & (real <= high)).mean()),
        "width": width,
        "random": float(random.mean()),
        "/ random": width / float(random.mean()),
    }


def sample(audited: Audited, count: int, seed: int) -> tuple[NDArray[np.int64], Any]:
    """Return the places of a sample's first `count` pairs, and its cells [N]."""
    draw = draw_sample(Log(), [], audited.pairs, audited.p, count=count, seed=seed)
    return queue_of(draw, audited.pairs)[:count], cells_of(draw)


def quality(audited: Audited, draws: int, report: Report) -> None:
    """Calibration of p_wrong before and after 100 answers, and the precision at a threshold."""
    rng = np.random.default_rng(2)
    above = audited.p >= 0.5
    after, covered = [], []
    for _ in range(draws):
        place, cells = sample(audited, 100, seed=int(rng.integers(1 << 31)))
        found = review(cells, audited.p, PERFECT.votes(audited, place, rng))
        rest = np.ones(len(audited.p), bool)
        rest[place] = False
        after.append(calibration(found.p[rest], audited.wrong[rest]).ece)
        precision = found.share(above).share
        covered.append(precision.low <= audited.wrong[above].mean() <= precision.high)
    row = {
        "dataset": audited.name,
        "ECE before": calibration(audited.p, audited.wrong).ece,
        "ECE after 100 answers": float(np.mean(after)),
        "precision at 0.5": float(audited.wrong[above].mean()),
        "covered": float(np.mean(covered)),
    }
    report.tables.setdefault("p_wrong recalibrated, pairs nobody judged", []).append(row)


def commands(audited: Audited, report: Report) -> None:
    """Judge through a session as the page does, and read it with the command."""
    chosen = {}
    table = pq.read_table(audited.run.pairs_path, columns=["pair_id", "chosen"])
    for pair_id, side in zip(*(column.to_pylist() for column in table.columns), strict=True):
        chosen[pair_id] = side_key(side)
    equal, inside = [], []
    for seed in range(5):
        (audited.run.directory / FILE).unlink(missing_ok=True)
        session = open_session(audited.run, reviewer="ann", count=100, seed=seed)
        place = audited.pairs.places([task.pair_id for task in session.tasks])
        for task, at in zip(session.tasks, place.tolist(), strict=True):
            first = task.keys[0] == chosen[task.pair_id]
            session.answer(task.content_id, "first" if first != audited.wrong[at] else "second")
        typed = ["review", str(audited.run.directory), "--summary", "--json"]
        told = subprocess.run([sys.executable, "-m", "noisescope", *typed],
                              check=True, capture_output=True, text=True)  # fmt: skip
        printed = json.loads(told.stdout)["wrong_share"]
        votes = PERFECT.votes(audited, place, np.random.default_rng(0))
        mine = review(cells_of(session.draw), audited.p, votes).share().share
        equal.append(np.allclose([printed["low"], printed["high"]], [mine.low, mine.high]))
        inside.append(printed["low"] <= audited.wrong.mean() <= printed["high"])
        del session
    (audited.run.directory / FILE).unlink()
    report.facts["commands covered"] = f"{sum(inside)} of {len(inside)}"
    report.at_least("reviews read by the command give the same interval", np.mean(equal), 1)


if __name__ == "__main__":
    main(__doc__, run)
