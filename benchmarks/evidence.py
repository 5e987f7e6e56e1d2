"""Measure what outside evidence is worth, made honestly from what the audit does not see.

    python -m benchmarks.evidence [--quick] [--json FILE] [--model DIR]

Errors are planted in labels that are right (`planted_noise`): 20 % uniform, and about 18 % by
responses that have the score of another response. Added to the audited model's features, one at a
time: a simulated judge who is right about 65, 75 and 85 % of the pairs, independent of the errors;
the same 75 % judge reversed; random numbers; and a reward model, fitted to right labels of the
other half of the prompts and judged on this half. Folds hold out whole prompts. AUROC of p_wrong
for the planted errors, and the share of them among as many first pairs as there are; ukp-convarg
gold, or with --quick the sample. Not with --quick: hh-harmless with 20 % uniform flips, its own
errors counting as right, and a public embedding model (all-MiniLM-L6-v2, from a package) on
ukp-convarg.

The judges are also asked through `judge:` and a server on this machine, about a tenth of the pairs
(`auditing.asking.choose`): the share of the gain of all answers that this reaches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from benchmarks.detect import HH_LENGTH, prepare
from benchmarks.harness import Options, Report, main, stopwatch
from benchmarks.models import minilm, smollm2
from benchmarks.planted_noise import Labels, plant, right
from benchmarks.trust import sample_labels, ukp_labels
from noisescope.auditing.asking import choose
from noisescope.datasets import load
from noisescope.models import Item
from noisescope.models.causal_lm import load_causal_lm
from noisescope.models.chat import Endpoint
from noisescope.models.embed import load_encoder
from noisescope.models.items import distinct_items
from noisescope.progress import Silent
from noisescope.replicas.answers import LOG_PROBABILITIES, Answers
from noisescope.replicas.head import HeadConfig, HeadFit, fit_heads
from noisescope.replicas.judge import Judge
from noisescope.replicas.selected import with_answers
from noisescope.scoring.metrics import auroc
from noisescope.scoring.noise_models import fit_noise
from tests.helpers.chat_stub import Reply, serving, shown, weighs

Float = NDArray[np.float32]

NOISE = {"uniform": 0.2, "response": 0.18}
ACCURACIES = (0.65, 0.75, 0.85)
CONFIG = HeadConfig(replicas=2, search_steps=8, identity=False)
#: Targets: noise -> least AUROC with a judge of 75 % and of 85 %.
TARGETS = {"response": (0.89, 0.94), "uniform": (0.945, 0.97)}
#: The same for hh-harmless with uniform flips.
HARMLESS = (0.83, 0.93)
#: AUROC that a useless source may cost.
LOSS = 0.003
#: Share of the pairs that a judge with a budget is asked about, and least share of the gain.
BUDGET, GAIN = 0.1, 0.6


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
            for asked in (f"+ {name}", f"+ {name}, a tenth"):
                report.at_most(f"{kind}: AUROC lost to {asked}", plain - found[asked], LOSS)
        precise = {row["evidence"]: row["precision"] for row in rows}
        for accuracy in ACCURACIES:
            name = f"+ judge of {accuracy:.0%}"
            gain = precise[name] - precise["model alone"]
            part = (precise[f"{name}, a tenth"] - precise["model alone"]) / gain
            report.at_least(f"{kind}: share of the gain, {name}, a tenth", part, GAIN)
        half = list(rewarded(clean, labels))
        report.tables[f"{kind} noise, half of the prompts"] = half
        if not options.quick:
            report.tables[f"{kind} noise, embedding model"] = list(embedded(labels, items(options)))
    if not options.quick:
        flipped(harmless(options), options.seed, report)
    return report


def flipped(clean: Labels, seed: int, report: Report) -> None:
    """hh-harmless with 20 % uniform flips: simulated judges, and a reward model of one half."""
    labels = plant(clean, "uniform", NOISE["uniform"], seed)
    rows = list(judged(labels, seed))
    report.tables["hh-harmless, uniform noise, all pairs"] = rows
    rng = np.random.default_rng([seed, 78])
    for accuracy, bound in zip((0.75, 0.85), HARMLESS, strict=True):
        name, values = f"graded judge of {accuracy:.0%}", graded(labels.wrong, accuracy, rng)
        column = {"outside": values[:, None].astype(np.float32)}
        row = audited(labels, column, f"+ {name}", None)[1]
        rows.append(row | {"source alone": float(auroc(-values, labels.wrong))})
        report.at_least(f"hh-harmless: with a {name}", row["AUROC"], bound)
    report.tables["hh-harmless, uniform noise, half of the prompts"] = list(rewarded(clean, labels))


def graded(
    wrong: NDArray[np.bool_], accuracy: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Log odds [N] of a judge who is as sure as it is right: N(mu, 2 mu) for the truth.

    It is right with probability Phi(sqrt(mu / 2)) and finds errors with AUROC Phi(sqrt(mu)).
    """
    mu = 2 * float(ndtri(accuracy)) ** 2
    odds: NDArray[np.float64] = np.where(wrong, -mu, mu) + np.sqrt(2 * mu) * rng.normal(
        size=len(wrong)
    )
    return odds


def harmless(options: Options) -> Labels:
    """hh-harmless with its labels as they are."""
    policy = load_causal_lm(options.model or str(smollm2()), max_length=HH_LENGTH)
    with tempfile.TemporaryDirectory() as scratch:
        path = options.data / "hh-harmless" / "test.jsonl.gz"
        material, _ = prepare(path, policy, Path(scratch))
    prompts = material.dataset.table.column("prompt").to_pylist()
    codes = np.unique(prompts, return_inverse=True)[1].astype(np.int64)
    none = np.zeros(len(codes), np.int64)
    responses = len(next(iter(material.features.values())))
    return Labels(
        "hh-harmless",
        material.features,
        material.chosen,
        material.rejected,
        codes,
        none,
        np.zeros(responses),
        none.astype(bool),
    )


def items(options: Options) -> list[Item]:
    """The distinct responses of ukp-convarg, in the order of its features."""
    return distinct_items(load(options.data / "ukp-convarg" / "natural.parquet").table)[0]


def embedded(labels: Labels, responses: Sequence[Item]) -> Iterator[dict[str, Any]]:
    """The model alone, the embedding model alone, and both."""
    found = load_encoder(str(minilm())).features(responses)
    own = {f"embed {name}": values for name, values in found.items()}
    yield audited(labels, {}, "model alone", None)[1]
    yield audited(replace(labels, features=own), {}, "embedding model alone", None)[1]
    both = replace(labels, features={**labels.features, **own})
    yield audited(both, {}, "+ embedding model", None)[1]


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
        some = choose(labels.keys, p_wrong(plain, labels), round(BUDGET * len(values)), seed)
        told = through_endpoint(labels, values, some[0] | some[1])
        known = np.where(some[0] | some[1], told, np.nan)
        margins, shift, weights = with_answers(
            plain.margins, labels.facts, {"judge": (known, some[0])}
        )
        moved = replace(plain, margins=margins)
        yield {
            "evidence": f"+ {name}, a tenth",
            **found_errors(p_wrong(moved, labels, shift), labels),
            "weight": weights["judge"],
        }


def through_endpoint(
    labels: Labels, values: NDArray[np.float64], some: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Log odds [N] as a judge behind a server gives them for the pairs in `some`, 0 for others."""
    rows = np.flatnonzero(some)
    pairs = [
        (f"prompt {row}", f"response {labels.chosen[row]}", f"response {labels.rejected[row]}")
        for row in rows
    ]
    odds = dict(zip((pair[:2] for pair in pairs), values[rows].tolist(), strict=True))

    def answer(_: int, message: str) -> Reply:
        prompt = message.split("\n", 2)[1]
        first, second = shown(message)
        mine = odds.get((prompt, first))
        return weighs(-odds[prompt, second] if mine is None else mine)

    out = np.zeros(len(values))
    with serving(answer) as server, tempfile.TemporaryDirectory() as folder:
        judge = Judge(Endpoint(server.url, "stub"), Answers(Path(folder) / "answers"))
        found = judge.ask(pairs, LOG_PROBABILITIES, Silent(), "").log_odds
    out[rows] = found
    return out


def p_wrong(fit: HeadFit, labels: Labels, shift: Float | None = None) -> NDArray[np.float64]:
    """p_wrong [N] of a fit, whose noise is that of margins without the `shift` of a judge."""
    margins = fit.margins.mean(axis=0, dtype=np.float64)
    return fit_noise(margins if shift is None else margins - shift, labels.facts).p_wrong(margins)


def found_errors(p: NDArray[np.float64], labels: Labels) -> dict[str, float | None]:
    """AUROC of p_wrong, and the share of errors among as many first pairs as there are."""
    first = np.argsort(-p, kind="stable")[: int(labels.wrong.sum())]
    precision = float(labels.wrong[first].mean()) if len(first) else None
    return {"AUROC": float(auroc(p, labels.wrong)), "precision": precision}


def audited(
    labels: Labels,
    numbers: Mapping[str, Float],
    name: str,
    before: HeadFit | None,
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
    row = {
        "evidence": name,
        **found_errors(p_wrong(fit, labels), labels),
        "held-out accuracy": float(fit.accuracy.mean()),
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
