"""Measure what outside evidence is worth, made honestly from what the audit does not see.

    python -m benchmarks.evidence [--quick] [--json FILE] [--model DIR]

Errors are planted in labels that are right (`planted_noise`): 20 % uniform, and about 18 % by
responses that have the score of another response. Added to the audited model's features, one at a
time: a simulated judge who is right about 65, 75 and 85 % of the pairs, independent of the errors;
the same 75 % judge reversed; random numbers; and a reward model, fitted to right labels of the
other half of the prompts and judged on this half. Folds hold out whole prompts. AUROC of p_wrong
for the planted errors; ukp-convarg gold, or with --quick the sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Options, Report, main, stopwatch
from benchmarks.planted_noise import Labels, plant, right
from benchmarks.trust import sample_labels, ukp_labels
from noisescope.replicas.head import HeadConfig, HeadFit, fit_heads
from noisescope.scoring.metrics import auroc
from noisescope.scoring.noise_models import fit_noise

Float = NDArray[np.float32]

NOISE = {"uniform": 0.2, "response": 0.18}
ACCURACIES = (0.65, 0.75, 0.85)
CONFIG = HeadConfig(replicas=2, search_steps=8, identity=False)
#: Targets: noise -> least AUROC with a judge of 75 % and of 85 %.
TARGETS = {"response": (0.89, 0.94), "uniform": (0.945, 0.97)}
#: AUROC that a useless source may cost.
LOSS = 0.003


def run(options: Options) -> Report:
    """A table a kind of noise, and the targets."""
    report = Report("What outside evidence is worth")
    clean = right(sample_labels() if options.quick else ukp_labels(options))
    report.facts["pairs"] = len(clean.chosen)
    for kind, rate in NOISE.items():
        labels = plant(clean, kind, rate, options.seed)
        report.facts[f"wrong labels, {kind}"] = float(labels.wrong.mean())
        rows = list(judged(labels, options.seed))
        report.tables[f"{kind} noise, all pairs"] = rows
        found = {row["evidence"]: row["AUROC"] for row in rows}
        plain = found["model alone"]
        if not options.quick:
            for accuracy, bound in zip((0.75, 0.85), TARGETS[kind], strict=True):
                name = f"judge of {accuracy:.0%}"
                report.at_least(f"{kind}: with a {name}", found[f"+ {name}"], bound)
        for name in ("random numbers", "judge of 75% reversed"):
            loss = plain - found[f"+ {name}"]
            report.at_most(f"{kind}: AUROC lost to {name}", loss, LOSS)
        half = list(rewarded(clean, labels))
        report.tables[f"{kind} noise, half of the prompts"] = half
    return report


def judged(labels: Labels, seed: int) -> Iterator[dict[str, Any]]:
    """The model alone, and with each source of pairs."""
    rng = np.random.default_rng([seed, 77])
    plain, row = audited(labels, {}, "model alone", None)
    yield row
    truth = np.where(labels.wrong, -1.0, 1.0)
    draw = rng.random(len(truth))
    judges = {
        f"judge of {accuracy:.0%}": truth
        * np.where(draw < accuracy, 1, -1)
        * np.log(accuracy / (1 - accuracy))
        for accuracy in ACCURACIES
    }
    sources = {
        **judges,
        "judge of 75% reversed": -judges["judge of 75%"],
        "random numbers": rng.normal(size=len(truth)),
    }
    for name, values in sources.items():
        alone = float(auroc(-values, labels.wrong))
        column = {"outside": values[:, None].astype(np.float32)}
        yield audited(labels, column, f"+ {name}", plain)[1] | {"source alone": alone}


def audited(
    labels: Labels, numbers: Mapping[str, Float], name: str, before: HeadFit | None
) -> tuple[HeadFit, dict[str, Any]]:
    """A fit with prompts held out, and its row."""
    start = None if before is None else {**before.variance, **dict.fromkeys(numbers, 0.3)}
    with stopwatch() as watch:
        fit = fit_heads(
            labels.features,
            labels.chosen,
            labels.rejected,
            labels.keys,
            CONFIG,
            numbers=numbers,
            held_out=labels.prompts.astype(np.uint64),
            start=start,
        )
    margins = fit.margins.mean(axis=0, dtype=np.float64)
    row = {
        "evidence": name,
        "AUROC": float(auroc(fit_noise(margins, labels.facts).p_wrong(margins), labels.wrong)),
        "held-out accuracy": float((margins > 0).mean()),
        "nats": fit.log_likelihood,
        "seconds": watch["seconds"],
        "source alone": None,
    }
    return fit, row


def rewarded(clean: Labels, labels: Labels) -> Iterator[dict[str, Any]]:
    """Pairs of one half of the prompts, with rewards learnt from right labels of the other."""
    names = np.unique(labels.prompts)
    here = np.isin(labels.prompts, names[::2])
    teacher = part(clean, ~here)
    taught, _ = audited(teacher, {}, "", None)
    reward = taught.rewards(labels.features).mean(axis=0)  # [R]
    pupil = part(labels, here)
    plain, row = audited(pupil, {}, "model alone", None)
    yield row
    values = reward[pupil.chosen] - reward[pupil.rejected]
    column = {"outside": values[:, None].astype(np.float32)}
    alone = float(auroc(-values, pupil.wrong))
    yield audited(pupil, column, "+ reward model", plain)[1] | {"source alone": alone}


def part(labels: Labels, some: NDArray[np.bool_]) -> Labels:
    """The pairs in `some` [N]."""
    return replace(
        labels,
        chosen=labels.chosen[some],
        rejected=labels.rejected[some],
        prompts=labels.prompts[some],
        annotators=labels.annotators[some],
        wrong=labels.wrong[some],
        first=None if labels.first is None else labels.first[some],
    )


if __name__ == "__main__":
    main(__doc__, run)
