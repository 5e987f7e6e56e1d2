"""Measure what outside evidence is worth, made honestly from what the audit does not see.

    python -m benchmarks.evidence [--quick] [--json FILE] [--model DIR]

Errors are planted in labels that are right (`planted_noise`), 20 % uniform and 18 % by responses
whose scores have errors, and sources are added to the audited model's features one at a time:

* judges who are right about 65, 75 and 85 % of the pairs and as sure as they are right
  (`planted_noise.graded`), the same of 75 % reversed, judges of one confidence, random numbers;
  a tenth of the answers, chosen by `auditing.asking.choose`, and the share of the gain it reaches;
  prompts held out, and for some pooled;
* a reward model: a head fitted to right labels of the other half of the topics, as evidence for
  natural labels (not with --quick) and three kinds of planted errors, prompts held out and pooled;
* the judge of 75 % through the whole audit: `file:`, and `judge:` with a server on this machine.

All but the last on ukp-convarg, with --quick on the sample. Not with --quick: a public encoder
(all-MiniLM-L6-v2, from a package) on ukp-convarg; graded judges and a reward model on the first
1,000 rows of hh-harmless, cut to 128 tokens, its own errors counting as right, means of three
plantings. AUROC of p_wrong for the errors; precision among as many first pairs as are wrong. Each
row is printed as soon as it is done.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.asked_sample import whole_audits
from benchmarks.detect import prepare
from benchmarks.harness import Options, Report, main, stopwatch
from benchmarks.models import cache, minilm, smollm2
from benchmarks.planted_noise import Labels, graded, plant, right
from benchmarks.trust import HELD_OUT, POOLED, fit, sample_labels, ukp_labels
from noisescope.auditing.asking import choose
from noisescope.datasets import load
from noisescope.models import Item
from noisescope.models.causal_lm import load_causal_lm
from noisescope.models.embed import load_encoder
from noisescope.models.items import distinct_items
from noisescope.replicas.answers import BOUND
from noisescope.replicas.head import HeadFit
from noisescope.replicas.selected import with_answers
from noisescope.scoring.metrics import auroc
from noisescope.scoring.noise_models import fit_noise

Float = NDArray[np.float32]
Row = dict[str, Any]

NOISE = {"uniform": 0.2, "response": 0.18}
ACCURACIES = (0.65, 0.75, 0.85)
#: Targets: noise -> least AUROC with a graded judge of 75 % and of 85 %.
TARGETS = {"response": (0.89, 0.94), "uniform": (0.945, 0.97)}
#: The same for hh-harmless with uniform flips.
HARMLESS = (0.83, 0.93)
#: AUROC that a useless source may cost.
LOSS = 0.003
#: Share of the pairs that a judge with a budget is asked about, and least share of the gain.
BUDGET, GAIN = 0.1, 0.6
#: Rows of hh-harmless, tokens of each, and plantings.
HARMLESS_ROWS, HARMLESS_TOKENS, PLANTINGS = 1000, 128, 3
#: Errors that the audit of one half of the topics has to find with a reward model of the other.
REWARDED = {"natural": 0.0, "uniform": 0.2, "response": 0.18, "annotator": 0.2}


def run(options: Options) -> Report:
    """All tables and targets; the sample with --quick."""
    report = Report("What outside evidence is worth")
    given = sample_labels() if options.quick else ukp_labels(options)
    clean = right(given)
    report.facts["pairs"] = len(clean.chosen)
    for kind, rate in NOISE.items():
        labels = plant(clean, kind, rate, options.seed)
        report.facts[f"wrong labels, {kind}"] = float(labels.wrong.mean())
        rows = noted(report, f"{kind} noise", judged(labels, options.seed))
        judge_targets(report, kind, {row["evidence"]: row for row in rows}, options.quick)
    title = "a reward model of the other half of the topics"
    noted(report, title, rewarded(given, options.seed, options.quick))
    rows = noted(report, "the sample, whole audits, a judge of 75%", whole_audits(options.seed))
    first, second = (row["AUROC"] for row in rows[2:])
    report.at_most("AUROC of judge: and file: with the same answers", abs(first - second), LOSS)
    if not options.quick:
        for kind, rate in NOISE.items():
            labels = plant(clean, kind, rate, options.seed)
            noted(report, f"{kind} noise, an encoder", embedded(labels, items(options)))
        flipped(harmless(options), options.seed, report)
    return report


def noted(report: Report, title: str, rows: Iterable[Row]) -> list[Row]:
    """The rows as a table of the report, each printed when it is done."""
    table = report.tables[title] = []
    for row in rows:
        table.append(row)
        cells = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print(f"{title}: {', '.join(cells)}", file=sys.stderr, flush=True)
    return table


def judge_targets(report: Report, kind: str, rows: Mapping[str, Row], quick: bool) -> None:
    """The issue's targets for one kind of noise."""
    plain = rows["model alone"]
    for accuracy, bound in zip(ACCURACIES[1:], TARGETS[kind], strict=True):
        name = f"+ graded judge of {accuracy:.0%}"
        folds = (name, f"{name}, --pool") if kind == "uniform" else (name,)
        for one in () if quick else folds:
            report.at_least(f"{kind}: {one}", rows[one]["AUROC"], bound)
    for name in ("+ random numbers", "+ graded judge of 75% reversed"):
        for asked in (name, f"{name}, a tenth"):
            lost = plain["AUROC"] - rows[asked]["AUROC"]
            report.at_most(f"{kind}: AUROC lost to {asked}", lost, LOSS)
    for accuracy in ACCURACIES:
        name = f"+ graded judge of {accuracy:.0%}"
        whole, tenth = (
            rows[one]["precision"] - plain["precision"] for one in (name, f"{name}, a tenth")
        )
        report.at_least(f"{kind}: share of the gain, {name}, a tenth", tenth / whole, GAIN)


def judged(labels: Labels, seed: int) -> Iterator[Row]:
    """The model alone, with each source of pairs, and with a tenth of some."""
    plain, row = audited(labels, {}, "model alone", None)
    yield row
    draw = np.random.default_rng([seed, 78]).random((len(labels.wrong), 1))
    truth = np.where(labels.wrong, -1.0, 1.0)[:, None]
    judges = {f"graded judge of {a:.0%}": graded(labels.wrong, a, seed) for a in ACCURACIES}
    tenths = {
        **judges,
        "graded judge of 75% reversed": -judges["graded judge of 75%"],
        "random numbers": np.random.default_rng([seed, 79]).normal(size=truth.shape),
    }
    binary = {
        f"yes/no judge of {a:.0%}": truth * np.where(draw < a, 1, -1) * np.log(a / (1 - a))
        for a in ACCURACIES[1:]
    }
    for name, values in {**tenths, **binary}.items():
        column = {"outside": values.astype(np.float32)}
        alone = float(auroc(-values[:, 0], labels.wrong))
        yield audited(labels, column, f"+ {name}", plain)[1] | {"source alone": alone}
        if name in tenths:
            yield a_tenth(labels, values[:, 0], plain, f"+ {name}, a tenth", seed)
    yield from pooled(labels, judges)


def pooled(labels: Labels, judges: Mapping[str, Float]) -> Iterator[Row]:
    """The model alone and with judges of 75 and 85 % where responses are pooled (`--pool`)."""
    plain, row = audited(labels, {}, "model alone, --pool", None, POOLED)
    yield row
    for accuracy in ACCURACIES[1:]:
        name = f"graded judge of {accuracy:.0%}"
        yield audited(labels, {"outside": judges[name]}, f"+ {name}, --pool", plain, POOLED)[1]


def a_tenth(
    labels: Labels, values: NDArray[np.float64], plain: HeadFit, name: str, seed: int
) -> Row:
    """The audit with a judge of log odds [N] who is asked about a tenth of the pairs."""
    count = round(BUDGET * len(values))
    drawn, selected = choose(labels.keys, p_wrong(plain, labels), count, seed)
    known = np.where(drawn | selected, np.clip(values, -BOUND, BOUND), np.nan)
    margins, shift, weights = with_answers(plain.margins, labels.facts, {"judge": (known, drawn)})
    found = found_errors(p_wrong(replace(plain, margins=margins), labels, shift), labels)
    return {"evidence": name, **found, "weight": weights["judge"]}


def p_wrong(fitted: HeadFit, labels: Labels, shift: Float | None = None) -> NDArray[np.float64]:
    """p_wrong [N] of a fit, whose noise is that of margins without the `shift` of a judge."""
    margins = fitted.margins.mean(axis=0, dtype=np.float64)
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
    folds: str = HELD_OUT,
) -> tuple[HeadFit, Row]:
    """A fit and its row; the search for regularisation starts from the fit `before`."""
    start = {} if before is None else {folds: {**before.variance, **dict.fromkeys(numbers, 0.3)}}
    with stopwatch() as watch:
        fitted = fit(labels, folds, start, numbers)
    row = {
        "evidence": name,
        **found_errors(p_wrong(fitted, labels), labels),
        "held-out accuracy": float(fitted.accuracy.mean()),
        "nats": fitted.log_likelihood,
        "seconds": watch["seconds"],
        "source alone": None,
    }
    return fitted, row


def rewarded(given: Labels, seed: int, quick: bool) -> Iterator[Row]:
    """Half of the topics audited with rewards learnt from right labels of the other half."""
    here = half_of_topics(given)
    reward = taught(part(right(given), ~here), given)
    for kind, rate in REWARDED.items():
        if quick and kind == "natural":
            continue
        labels = given if kind == "natural" else plant(right(given), kind, rate, seed)
        for folds in (HELD_OUT, POOLED):
            for row in with_reward(part(labels, here), reward, folds):
                yield {"noise": kind, "folds": folds, **row}


def half_of_topics(labels: Labels) -> NDArray[np.bool_]:
    """Pairs [N] of every other topic: in ukp-convarg two prompts, next to each other by name."""
    topics = labels.prompts // 2 if labels.name == "ukp-convarg" else labels.prompts
    return topics % 2 == 0


def taught(teacher: Labels, labels: Labels) -> NDArray[np.float32]:
    """Rewards [R] of all responses, by a head fitted to the teacher's labels."""
    fitted = audited(teacher, {}, "", None)[0]
    return fitted.rewards(labels.features).mean(axis=0)


def with_reward(
    labels: Labels, reward: NDArray[np.float32], folds: str = HELD_OUT
) -> Iterator[Row]:
    """The model alone, and with the difference of the rewards [R]."""
    plain, row = audited(labels, {}, "model alone", None, folds)
    yield row
    values = reward[labels.chosen] - reward[labels.rejected]
    alone = float(auroc(-values, labels.wrong))
    yield audited(labels, {"outside": values[:, None]}, "+ reward model", plain, folds)[1] | {
        "source alone": alone
    }


def part(labels: Labels, some: NDArray[np.bool_]) -> Labels:
    """The pairs in `some` [N]."""
    names = ("chosen", "rejected", "prompts", "annotators", "wrong")
    return replace(labels, first=None, **{name: getattr(labels, name)[some] for name in names})


def items(options: Options) -> list[Item]:
    """The distinct responses of ukp-convarg, in the order of its features."""
    return distinct_items(load(options.data / "ukp-convarg" / "natural.parquet").table)[0]


def embedded(labels: Labels, responses: Sequence[Item]) -> Iterator[Row]:
    """The embedding model alone, and with the audited model's features."""
    found = load_encoder(str(minilm())).features(responses)
    own = {f"embed {name}": values for name, values in found.items()}
    yield audited(replace(labels, features=own), {}, "embedding model alone", None)[1]
    both = replace(labels, features={**labels.features, **own})
    yield audited(both, {}, "+ embedding model", None)[1]


def harmless(options: Options) -> Labels:
    """The first rows of hh-harmless with their labels as they are."""
    policy = load_causal_lm(options.model or str(smollm2()), max_length=HARMLESS_TOKENS)
    path = options.data / "hh-harmless" / "test.jsonl.gz"
    material, _ = prepare(path, policy, cache().parent / "features", HARMLESS_ROWS)
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


def flipped(clean: Labels, seed: int, report: Report) -> None:
    """hh-harmless with 20 % uniform flips: graded judges, and a reward model of one half."""
    here = half_of_topics(clean)
    reward = taught(part(clean, ~here), clean)

    def rows() -> Iterator[Row]:
        for planting in range(seed, seed + PLANTINGS):
            labels = plant(clean, "uniform", NOISE["uniform"], planting)
            plain, row = audited(labels, {}, "model alone", None)
            yield row
            for accuracy in ACCURACIES[1:]:
                values = graded(labels.wrong, accuracy, planting)
                name = f"+ graded judge of {accuracy:.0%}"
                alone = float(auroc(-values[:, 0], labels.wrong))
                row = audited(labels, {"outside": values}, name, plain)[1]
                yield row | {"source alone": alone}
            for row in with_reward(part(labels, here), reward):
                yield row | {"evidence": f"half: {row['evidence']}"}

    found = noted(report, "hh-harmless, uniform noise", rows())
    for accuracy, bound in zip(ACCURACIES[1:], HARMLESS, strict=True):
        name = f"+ graded judge of {accuracy:.0%}"
        mean = float(np.mean([row["AUROC"] for row in found if row["evidence"] == name]))
        report.at_least(f"hh-harmless: {name}, mean of {PLANTINGS}", mean, bound)


if __name__ == "__main__":
    main(__doc__, run)
