"""Do flip-rate intervals cover what was planted, and is p_flip calibrated?

    python -m benchmarks.coverage [--quick] [--json FILE] [--model DIR]

ukp-convarg's gold labels with 0, 10, 20 and 30 % planted flips, 20 seeds each (4 with --quick):
heads are fitted anew on every planting. Then calibration and the tenths of p_flip at 20 %, and
annotator reliability on the natural votes against an independent estimate.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from benchmarks.data import truth
from benchmarks.detect import RATES, Bool, Float, Material, prepare, uniform
from benchmarks.harness import Options, Report, main
from benchmarks.models import smollm2
from noisescope.annotators import annotator_table
from noisescope.flip_rate import fit_flip_rate
from noisescope.policies.causal_lm import load_causal_lm
from noisescope.statistics import calibration

REPLICAS = 2
FEWEST_LABELS = 20


def run(options: Options) -> Report:
    """All repetitions."""
    report = Report("Coverage of flip-rate intervals and calibration of p_flip")
    policy = load_causal_lm(options.model or str(smollm2()))
    with tempfile.TemporaryDirectory() as scratch:
        path = options.data / "ukp-convarg"
        ukp, _ = prepare(path / "natural.parquet", policy, Path(scratch))
    wrong = truth(ukp.dataset, path / "truth.parquet")
    coverage(ukp.flipped(wrong), 4 if options.quick else 20, report)
    natural(ukp, wrong, path / "annotators.parquet", report)
    return report


def coverage(gold: Material, seeds: int, report: Report) -> None:
    """Plant each rate `seeds` times on clean labels."""
    rows = []
    for planted in RATES:
        found = [planting(gold, planted, seed) for seed in range(seeds)]
        covered = float(np.mean([row["covered"] for row in found]))
        rows.append(
            {
                "planted": planted,
                "seeds": seeds,
                "covered": covered,
                "mean e": float(np.mean([row["e"] for row in found])),
                "mean width": float(np.mean([row["width"] for row in found])),
                "ECE mean": float(np.mean([row["ECE"] for row in found])),
                "ECE max": float(np.max([row["ECE"] for row in found])),
                "top tenth / base rate": float(np.mean([row["lift"] for row in found])),
                "tenths rise": float(np.mean([row["rising"] for row in found])),
            }
        )
        report.at_least(f"intervals cover {planted:.0%}", covered, 0.85)
        if planted == 0.2:
            report.at_most("ECE of p_flip at 20 %, mean", rows[-1]["ECE mean"], 0.03)
            report.at_least(
                "top tenth of p_flip / base rate at 20 %", rows[-1]["top tenth / base rate"], 3
            )
    report.tables["ukp-convarg gold labels with planted flips"] = rows


def planting(gold: Material, rate: float, seed: int) -> dict[str, float]:
    """One repetition: what the audit reads, and how p_flip meets the truth."""
    swap = uniform(len(gold.dataset), rate, seed)
    margins: Float = (
        gold.flipped(swap).fit(replicas=REPLICAS).margins.mean(axis=0, dtype=np.float64)
    )
    fitted = fit_flip_rate(margins)
    shares = tenths(fitted.p_flip(margins), margins, swap)
    base = max(float(swap.mean()), 1e-9)
    return {
        "covered": float(fitted.low <= rate <= fitted.high),
        "e": fitted.estimate,
        "width": fitted.high - fitted.low,
        "ECE": calibration(fitted.p_flip(margins), swap).ece,
        "lift": float(shares[-1] / base),
        "rising": float((np.diff(shares) > 0).all()),
    }


def tenths(p: Float, margins: Float, swap: Bool) -> Float:
    """Share of flipped pairs in each tenth of p_flip, [10]."""
    order = np.lexsort((-margins, p))
    return np.array([swap[part].mean() for part in np.array_split(order, 10)])


def natural(ukp: Material, wrong: Bool, competence: Path, report: Report) -> None:
    """Calibration on natural votes, and annotators against MACE competence."""
    margins = ukp.fit().margins.mean(axis=0, dtype=np.float64)
    fitted = fit_flip_rate(margins)
    errors = {
        "p_flip": calibration(fitted.p_flip(margins), wrong).ece,
        "p_mislabelled": calibration(fitted.p_mislabelled(margins), wrong).ece,
    }
    report.tables["ECE on natural votes, truth = consensus"] = [errors]
    names = ukp.dataset.table.column("annotator").to_pylist()
    found = annotator_table(names, margins, fitted)
    table = pq.read_table(competence).to_pylist()
    known = {str(row["annotator"]): row["competence"] for row in table}
    pairs = [
        (one.reliability, known[one.name])
        for one in found
        if one.labels >= FEWEST_LABELS and known.get(one.name) is not None
    ]
    rho = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    report.tables["annotators"] = [{"with 20 labels or more": len(pairs), "Spearman": rho}]
    report.at_most("ECE of p_mislabelled on natural votes", errors["p_mislabelled"], 0.03)
    report.at_most("ECE of p_flip on natural votes", errors["p_flip"], 0.03)
    report.at_least("annotator reliability, Spearman with competence", rho, 0.5)


if __name__ == "__main__":
    main(__doc__, run)
