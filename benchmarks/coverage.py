"""Test whether flip-rate intervals cover the planted rate, and whether p_flip is calibrated.

    python -m benchmarks.coverage [--quick] [--json FILE] [--model DIR]

ukp-convarg's gold labels with 0, 10, 20 and 30 % planted flips, 20 seeds each (4 with --quick):
heads are fitted for every seed, and the search for their regularisation starts from the result of
the first seed of the rate. Interval widths are compared with the best that an unbiased estimate
could have if it knew how often the sign of the margin is right. Then calibration and deciles of
p_flip, and annotator reliability on the natural votes against an independent estimate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from benchmarks.data import truth
from benchmarks.detect import RATES, Bool, Float, Material, prepare, uniform
from benchmarks.harness import Options, Report, main
from benchmarks.models import smollm2
from noisescope.models.causal_lm import load_causal_lm
from noisescope.scoring.annotators import annotator_table, coded
from noisescope.scoring.detection import deciles, rise_chance
from noisescope.scoring.flip_rate import fit_flip_rate
from noisescope.scoring.metrics import calibration

REPLICAS = 2
FEWEST_LABELS = 20


def run(options: Options) -> Report:
    """Run all repetitions."""
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
        start, found = None, []
        for seed in range(seeds):
            row, variance = planting(gold, planted, seed, start)
            start = start or variance
            found.append(row)
        rows.append(summarised(planted, found))
        report.at_least(f"intervals cover {planted:.0%}", rows[-1]["covered"], 0.85)
        if planted > 0:
            name = f"width at {planted:.0%} / theoretical best"
            report.at_most(name, rows[-1]["width / best"], 2)
        if planted == 0.2:
            report.at_most("ECE of p_flip at 20 %, mean", rows[-1]["ECE mean"], 0.03)
            lift = rows[-1]["top tenth / base rate"]
            report.at_least("top tenth of p_flip / base rate at 20 %", lift, 3)
    report.tables["ukp-convarg gold labels with planted flips"] = rows


def summarised(planted: float, found: list[dict[str, float]]) -> dict[str, float]:
    """Return the means over the repetitions of one rate."""
    mean = {key: float(np.mean([row[key] for row in found])) for key in found[0]}
    return {
        "planted": planted,
        "seeds": len(found),
        "covered": mean["covered"],
        "mean e": mean["e"],
        "mean width": mean["width"],
        "width / best": mean["width"] / mean["best"],
        "ECE mean": mean["ECE"],
        "ECE max": max(row["ECE"] for row in found),
        "top tenth / base rate": mean["lift"],
        "tenths rise": mean["rising"],
        "of a calibrated p_flip": mean["rising by chance"],
    }


def planting(
    gold: Material, rate: float, seed: int, start: Mapping[str, float] | None
) -> tuple[dict[str, float], Mapping[str, float]]:
    """Run one repetition: flip rate, calibration of p_flip, and the result of the search."""
    swap = uniform(len(gold.dataset), rate, seed)
    fit = gold.flipped(swap).fit(replicas=REPLICAS, start=start)
    margins: Float = fit.margins.mean(axis=0, dtype=np.float64)
    fitted = fit_flip_rate(margins)
    p_flip = fitted.p_flip(margins)
    shares = [float(group.mean()) for group in deciles(p_flip, swap)]
    base = max(float(swap.mean()), 1e-9)
    row = {
        "covered": float(fitted.low <= rate <= fitted.high),
        "e": fitted.estimate,
        "width": fitted.high - fitted.low,
        "best": best_width(np.where(swap, -margins, margins), rate),
        "ECE": calibration(p_flip, swap).ece,
        "lift": float(shares[-1] / base),
        "rising": float((np.diff(shares) > 0).all()),
        "rising by chance": rise_chance(p_flip),
    }
    return row, fit.variance


def best_width(margins: Float, rate: float) -> float:
    """Return the width of the 90 % interval at the Cramer-Rao bound; `margins` [N] by the truth.

    With F = P(the margin's sign is right) known for each pair, a label agrees with it with
    probability a = (1 - e) F + e (1 - F), which has information (2 F - 1)^2 / (a (1 - a)) about e.
    F is measured on the truth, in 50 groups of equal size by |margin|.
    """
    information = 0.0
    for group in np.array_split(np.argsort(np.abs(margins)), 50):
        right = (float((margins[group] > 0).sum()) + 0.5) / (len(group) + 1)
        agree = (1 - rate) * right + rate * (1 - right)
        information += len(group) * (2 * right - 1) ** 2 / (agree * (1 - agree))
    return float(2 * 1.645 / np.sqrt(information))


def natural(ukp: Material, wrong: Bool, competence: Path, report: Report) -> None:
    """Measure calibration on natural votes, and annotators against MACE competence."""
    margins = ukp.fit().margins.mean(axis=0, dtype=np.float64)
    fitted = fit_flip_rate(margins)
    errors = {
        "p_flip": calibration(fitted.p_flip(margins), wrong).ece,
        "p_mislabelled": calibration(fitted.p_mislabelled(margins), wrong).ece,
    }
    report.tables["ECE on natural votes, truth = consensus"] = [errors]
    found = annotator_table(*coded(ukp.dataset.table.column("annotator")), margins, fitted)
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
