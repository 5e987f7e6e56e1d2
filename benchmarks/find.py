"""Check the ranges of "check the worst N, find a to b wrong labels" against known truth.

    python -m benchmarks.find [--quick] [--json FILE] [--data DIR] [--model DIR]

The sample hh-rlhf and pick-a-pic, and ukp-convarg's natural votes (not with --quick), are audited
as `noisescope score` does it, two replicas each, text by the sample's tiny model unless --model
names another. Ten random halves of the pairs of each: the noise is fitted again to each half's
held-out margins, and the ranges for the worst 50 to 800 are compared with the truth. Ranges under
eight kinds of planted noise are a column of `python -m benchmarks.trust`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import noisescope
from benchmarks.data import truth
from benchmarks.harness import ROOT, Options, Report, main
from noisescope.datasets import load
from noisescope.replicas.gather import EvidenceConfig
from noisescope.scoring.find import expected_finds
from noisescope.scoring.margins import read_margins
from noisescope.scoring.metrics import auroc
from noisescope.scoring.noise_models import fit_noise
from noisescope.scoring.pair_facts import PairFacts, read_facts
from noisescope.scoring.score import survey

COUNTS = (50, 100, 200, 400, 800)
RESAMPLES = 10


def run(options: Options) -> Report:
    """All datasets."""
    report = Report("Wrong labels among the most suspicious pairs: ranges against the truth")
    sample = ROOT / "sample_data"
    text = options.model or str(sample / "models" / "tiny-lm")
    jobs = [
        ("sample hh-rlhf", sample / "hh-rlhf", sample / "hh-rlhf" / "truth.parquet", text),
        (
            "sample pick-a-pic",
            sample / "pick-a-pic",
            sample / "pick-a-pic" / "truth.parquet",
            str(sample / "models" / "tiny-sd"),
        ),
    ]
    ukp = options.data / "ukp-convarg"
    if not options.quick:
        jobs.append(("ukp natural", ukp / "natural.parquet", ukp / "truth.parquet", text))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, path, known, model in jobs:
            found = list(resampled(name, path, known, model, Path(scratch)))
            covered = float(np.mean([row["covered"] for row in found]))
            report.at_least(f"ranges that contain the truth, {name}", covered, 0.85)
            rows += summarised(found)
    report.tables[f"{RESAMPLES} halves of each dataset, means"] = rows
    return report


def resampled(
    name: str, path: Path, known: Path, model: str, scratch: Path
) -> Iterator[dict[str, Any]]:
    """One row a half and count: range, truth, and whether it is inside."""
    dataset = load(path)
    wrong = truth(dataset, known)
    config = EvidenceConfig(replicas=2)
    audited = noisescope.audit(dataset, model=model, evidence=config, runs_directory=scratch)
    plan = audited.run.plan()
    margins = survey(read_margins(audited.run.directory), None, plan["evidence"]["beta"]).margins
    facts = read_facts(audited.run.pairs_path, dataset.modality)
    for seed in range(RESAMPLES):
        half = np.random.default_rng(seed).permutation(len(margins))[: len(margins) // 2]
        noise = fit_noise(margins[half], part_of(facts, half))
        p = noise.p_wrong(margins[half])
        order = np.lexsort((margins[half], -p))
        for found in expected_finds(noise, margins[half], COUNTS):
            number = int(wrong[half][order[: found.pairs]].sum())
            yield {
                "labels": name,
                "worst": found.pairs,
                "of": len(half),
                "low": found.low,
                "high": found.high,
                "wrong": number,
                "covered": found.low <= number <= found.high,
                "AUROC": float(auroc(p, wrong[half])),
            }


def part_of(facts: PairFacts, pairs: NDArray[np.int64]) -> PairFacts:
    """The facts of some pairs."""
    every = {field.name: getattr(facts, field.name) for field in fields(facts)}
    return replace(facts, **{k: None if v is None else v[pairs] for k, v in every.items()})


def summarised(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Means over the halves, by count."""
    for count in sorted({row["worst"] for row in rows}):
        group = [row for row in rows if row["worst"] == count]
        names = ("low", "high", "wrong", "covered", "AUROC")
        means = {name: float(np.mean([row[name] for row in group])) for name in names}
        yield {"labels": group[0]["labels"], "worst": count, "of": group[0]["of"], **means}


if __name__ == "__main__":
    main(__doc__, run)
