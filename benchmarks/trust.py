"""Test what an audit claims of itself under noise of eight kinds.

    python -m benchmarks.trust [--quick] [--json FILE] [--model DIR]

Noise is planted in labels that are right (`planted_noise`) at 0, 10, 20 and 30 %: simulated
labels of 300 to 10,000 pairs, the sample, and ukp-convarg gold (not with --quick). Heads hold
out whole prompts, as an audit does by default, and a second fit pools responses. For every cell:
the claimed flip rate and its interval, whether it is called identifiable, the bracket of wrong
labels, the ranges of wrong labels among the worst 50 to 800, and the truth, which is the share of
planted errors. Then false alarms of the chance test on pure noise, coverage of cluster intervals,
and AUROC of p_wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from benchmarks.data import truth
from benchmarks.detect import Material, prepare
from benchmarks.harness import ROOT, Options, Report, main, stopwatch
from benchmarks.models import cache, smollm2
from benchmarks.planted_noise import KINDS, Labels, abilities, plant, right, simulated
from noisescope.models.causal_lm import load_causal_lm
from noisescope.replicas.head import HeadConfig, HeadFit, fit_heads
from noisescope.scoring.clusters import auroc_interval, share_interval
from noisescope.scoring.contrasts import HELD_OUT, POOLED, Contrast, differ, measure, widened
from noisescope.scoring.find import expected_finds
from noisescope.scoring.metrics import Interval, auroc, calibration
from noisescope.scoring.noise_models import fit_noise

Float = NDArray[np.float64]
Numbers = NDArray[np.float32]

RATES = (0.0, 0.1, 0.2, 0.3)
#: Columns of the table, means over the seeds.
SUMMARISED = ("wrong", "estimate", "low", "high", "identifiable", "covered", "bracket", "finds")
#: Pairs of a simulated set, and how many sets.
SIZES = {300: 4, 1000: 4, 3000: 2, 10_000: 1}
#: Numbers of most suspicious pairs whose predicted range is compared with the truth.
COUNTS = (50, 100, 200, 400, 800)
#: Least AUROC of p_wrong by labels; pooled fits.
GOALS = {
    "sample": 0.925,
    "natural": 0.888,
    "annotator 5 %": 0.95,
    "annotator 20 %": 0.95,
    "contrarian 20 %": 0.98,
}
QUICK_SIZES = {300: 2, 1000: 2}
#: Second fits and repeated cells: few replicas and a short search.
SHORT = {"replicas": 2, "search_steps": 8}


def run(options: Options) -> Report:
    """AUROC, chance and clusters, then all cells."""
    report = Report("What an audit claims under noise of eight kinds")
    sample, ukp = sample_labels(), None if options.quick else ukp_labels(options)
    found = [auroc_row(sample, "sample"), *(auroc_rows(ukp) if ukp else ())]
    chance(report, 100 if options.quick else 200)
    clusters(report, 400)
    rows = []
    for size, seeds in (QUICK_SIZES if options.quick else SIZES).items():
        for seed in range(seeds):
            rows += list(cells(simulated(size, seed), seed))
    for labels in (sample, ukp) if ukp else (sample,):
        rows += list(cells(right(labels), 0))
    report.facts["cells"] = rows
    report.tables["claimed flip rate against planted errors"] = list(summarised(rows))
    claims(rows, report)
    report.tables["AUROC and calibration of p_wrong"] = found
    for row in found:
        if row["labels"] in GOALS:
            name = f"AUROC of p_wrong, {row['labels']}"
            report.at_least(name, row["p_wrong"], GOALS[row["labels"]])
    return report


def cells(clean: Labels, seed: int) -> Iterator[dict[str, Any]]:
    """One row a kind and rate; the search for regularisation starts from the previous cell."""
    start: dict[str, Mapping[str, float]] = {}
    for kind in KINDS:
        for rate in RATES:
            if rate or kind == KINDS[0]:
                noisy = plant(clean, kind, rate, seed)
                print(f"{clean.name}, seed {seed}, {kind} {rate:.0%}", file=sys.stderr)
                yield {"kind": kind, "rate": rate, "seed": seed, **claim(noisy, start)}


def claim(labels: Labels, start: dict[str, Mapping[str, float]]) -> dict[str, Any]:
    """What an audit claims of these labels, beside the truth; `start` is updated."""
    held = fit(labels, HELD_OUT, start)
    pooled = fit(labels, POOLED, start)
    margins = held.margins.mean(axis=0, dtype=np.float64)
    own = measure(HELD_OUT, margins, labels.facts)
    other = measure(POOLED, pooled.margins.mean(axis=0, dtype=np.float64), labels.facts)
    noise = fit_noise(margins, labels.facts)
    rate = widened(noise.rate, other) if differ(own, other) else noise.rate
    wrong = float(labels.wrong.mean())
    width = rate.high - rate.low
    p = noise.p_wrong(margins)
    counts = [count for count in COUNTS if count <= len(margins) // 2]
    number = np.cumsum(labels.wrong[np.lexsort((margins, -p))])
    finds = expected_finds(noise, margins, counts)
    return {
        "labels": labels.name,
        "wrong": wrong,
        "noise model": noise.chosen,
        "estimate": rate.estimate,
        "low": rate.low,
        "high": rate.high,
        "identifiable": rate.identifiable,
        "covered": rate.low <= wrong <= rate.high,
        "contradiction": max(rate.low - wrong, wrong - rate.high) > width,
        "bracket": rate.low <= wrong <= max(1 - own.accuracy.low, rate.low),
        "fits differ": differ(own, other),
        "pooled alone": _misses(other, wrong),
        "finds": float(np.mean([f.low <= number[f.pairs - 1] <= f.high for f in finds])),
        "AUROC": float(auroc(p, labels.wrong)) if wrong else None,
    }


def _misses(fitted: Contrast, wrong: float) -> bool:
    """Whether a single fit's one-rate interval excludes the truth by more than its width."""
    rate = fitted.flip_rate
    return max(rate.low - wrong, wrong - rate.high) > rate.high - rate.low


def fit(
    labels: Labels,
    name: str,
    start: dict[str, Mapping[str, float]],
    numbers: Mapping[str, Numbers] | None = None,
    **config: Any,
) -> HeadFit:
    """Heads that hold out whole prompts, or pool responses; `numbers` are those of sources."""
    settings = HeadConfig(identity=name == POOLED, **(SHORT | config))
    held_out = None if name == POOLED else labels.prompts.astype(np.uint64)
    arrays = labels.features, labels.chosen, labels.rejected, labels.keys, settings
    found = fit_heads(*arrays, numbers=numbers, held_out=held_out, start=start.get(name))
    start[name] = found.variance
    return found


def summarised(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of one set of labels, kind and rate together: means and shares over the seeds."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["labels"], row["kind"], row["rate"]), []).append(row)
    for (labels, kind, rate), group in groups.items():
        means = {
            name: float(np.mean([row[name] for row in group]))
            for name in (
                "wrong",
                "estimate",
                "low",
                "high",
                "identifiable",
                "covered",
                "bracket",
                "finds",
            )
        }
        scored = [row["AUROC"] for row in group if row["AUROC"] is not None]
        model = max({row["noise model"] for row in group}, key=lambda m: _count(group, m))
        yield {"labels": labels, "kind": kind, "rate": rate, **means} | {
            "noise model": model,
            "fits differ": float(np.mean([row["fits differ"] for row in group])),
            "AUROC": float(np.mean(scored)) if scored else None,
        }


def _count(group: list[dict[str, Any]], model: str) -> int:
    return sum(row["noise model"] == model for row in group)


def claims(rows: list[dict[str, Any]], report: Report) -> None:
    """Coverage where a rate is called identifiable, and confident contradictions."""
    known = [row for row in rows if row["identifiable"]]
    report.facts["identifiable cells"] = len(known)
    report.facts["cells in all"] = len(rows)
    covered = float(np.mean([row["covered"] for row in known])) if known else None
    report.at_least(f"covered where identifiable ({len(known)} of {len(rows)})", covered, 0.85)
    wrong = sum(row["contradiction"] for row in rows)
    report.at_most("confident contradictions", float(wrong), 0)
    alone = float(sum(row["pooled alone"] for row in rows))
    report.facts["contradictions of the pooled fit alone, one rate"] = alone
    every = float(np.mean([row["covered"] for row in rows]))
    report.at_least("covered over all cells", every, 0.85)
    report.at_least(
        "ranges of the worst 50 to 800", float(np.mean([row["finds"] for row in rows])), 0.85
    )
    report.at_least(
        "bracket of wrong labels covers", float(np.mean([row["bracket"] for row in rows])), 0.85
    )


def chance(report: Report, draws: int) -> None:
    """False alarms of the sign-flip test on labels that are coin tosses."""
    rows = []
    alarms = total = 0
    settings = (
        ("9 features", 200, 9, "pairs"),
        ("300 features", 200, 300, "pairs"),
        ("dense graph, pooled", 400, 20, "dense"),
        ("rows copied three times", 300, 20, "copies"),
        ("ten pairs a prompt", 1000, 20, "prompts"),
    )
    for name, pairs, width, kind in settings:
        p = np.array([pure_noise(pairs, width, kind, seed) for seed in range(draws)])
        alarm = int((p <= 0.05).sum())
        alarms, total = alarms + alarm, total + draws
        rows.append({"pure noise": name, "pairs": pairs, "false alarms": alarm / draws})
    report.tables[f"the chance test on {draws} draws each"] = rows
    report.at_least("false alarms, all together", alarms / total, 0.03)
    report.at_most("false alarms, all together", alarms / total, 0.08)


def pure_noise(pairs: int, width: int, kind: str, seed: int) -> float:
    """p value for labels that are tossed: single pairs, copies, a dense graph, or prompts."""
    rng = np.random.default_rng([seed, pairs, width])
    distinct = pairs // 3 if kind == "copies" else pairs
    rows = max(20, pairs // 8) if kind == "dense" else 2 * distinct
    x = rng.normal(size=(rows, width)).astype(np.float32)
    left = rng.integers(0, rows, pairs) if kind == "dense" else np.arange(distinct)
    right = (left + rng.integers(1, rows, pairs)) % rows if kind == "dense" else left + distinct
    swap = rng.random(len(left)) < 0.5
    chosen, rejected = np.where(swap, right, left), np.where(swap, left, right)
    repeat = 3 if kind == "copies" else 1
    chosen, rejected = np.tile(chosen, repeat), np.tile(rejected, repeat)
    key = (np.minimum(chosen, rejected) * rows + np.maximum(chosen, rejected)).astype(np.uint64)
    prompts = (np.arange(pairs) // 10).astype(np.uint64) if kind == "prompts" else None
    settings = HeadConfig(
        replicas=1, search_steps=0, identity=kind == "dense", test_chance=True, seed=seed
    )
    found = fit_heads({"x": x}, chosen, rejected, key, settings, held_out=prompts).chance
    assert found is not None
    return found


def clusters(report: Report, draws: int) -> None:
    """Coverage of AUROC intervals where prompts differ in how visible their errors are."""
    rows = []
    for prompts, each in ((200, 10), (50, 40), (16, 125), (16, 800), (8, 250)):
        known = np.mean(
            [_auroc_of(2000, min(each, 40), [9, seed])[0].estimate for seed in range(10)]
        )
        inside = np.zeros(2)
        for seed in range(draws):
            for index, found in enumerate(_auroc_of(prompts, each, [seed])):
                inside[index] += found.low <= known <= found.high
        rows.append(
            {"prompts": prompts, "pairs each": each}
            | dict(zip(("single pairs", "clustered"), (inside / draws).tolist(), strict=True))
        )
        report.at_least(f"coverage, {prompts} prompts x {each}", rows[-1]["clustered"], 0.87)
    report.tables["coverage of 90 % intervals of AUROC"] = rows
    rows = []
    for responses, pairs in ((30, 400), (60, 600), (60, 1700)):
        inside = sum(_share_covered(responses, pairs, seed) for seed in range(draws))
        rows.append({"responses": responses, "pairs": pairs, "clustered": inside / draws})
        report.at_least(f"coverage, {responses} responses", rows[-1]["clustered"], 0.87)
    report.tables["coverage of 90 % intervals of a share of pairs that share responses"] = rows


def _share_covered(responses: int, pairs: int, seed: int) -> bool:
    """Whether the interval of a share covers where each response has an effect of sd 0.5."""
    rng = np.random.default_rng([responses, pairs, seed])
    left = rng.integers(0, responses, pairs)
    sides = np.stack([left, (left + rng.integers(1, responses, pairs)) % responses], axis=1)
    latent = 0.9 + 0.5 * rng.normal(size=responses)[sides].sum(axis=1) + rng.normal(size=pairs)
    found = share_interval((latent > 0).astype(np.float64), [sides])
    return found.low <= ndtr(0.9 / np.sqrt(1.5)) <= found.high


def _auroc_of(prompts: int, each: int, seed: list[int]) -> tuple[Interval, Interval]:
    """AUROC with its interval over pairs, and over prompts."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(prompts), each)
    wrong = rng.random(len(group)) < 1 / (1 + np.exp(1.5 - 0.7 * rng.normal(size=prompts)[group]))
    signal = 1.2 * wrong * (1 + 0.7 * rng.normal(size=prompts)[group])
    score = signal + rng.normal(size=len(group)) + 0.5 * rng.normal(size=prompts)[group]
    return auroc_interval(score, wrong, []), auroc_interval(score, wrong, [group])


def auroc_rows(natural: Labels) -> Iterator[dict[str, Any]]:
    """Natural votes, and gold labels with annotators who err."""
    gold = right(natural)
    yield auroc_row(natural, "natural")
    planted = ("annotator", 0.05), ("annotator", 0.2), ("contrarian", 0.2), ("uniform", 0.2)
    for kind, rate in (*planted, ("response", 0.2)):
        yield auroc_row(plant(gold, kind, rate, 1), f"{kind} {rate:.0%}".replace("%", " %"))


def auroc_row(labels: Labels, name: str) -> dict[str, Any]:
    """AUROC and ECE of p_wrong, p_mislabelled and p_flip, eight replicas, pooled."""
    with stopwatch() as taken:
        found = fit(labels, POOLED, {}, replicas=8, search_steps=25)
        margins = found.margins.mean(axis=0, dtype=np.float64)
        noise = fit_noise(margins, labels.facts)
    p = noise.p_wrong(margins)
    single = noise.single
    return {
        "labels": name,
        "noise model": noise.chosen,
        "p_wrong": float(auroc(p, labels.wrong)),
        "p_mislabelled": float(auroc(single.p_mislabelled(margins), labels.wrong)),
        "p_flip": float(auroc(single.p_flip(margins), labels.wrong)),
        "ECE": calibration(p, labels.wrong).ece,
        "seconds": taken["seconds"],
    }


def _labels(material: Material, wrong: NDArray[np.bool_], name: str) -> Labels:
    """A dataset with known wrong labels; scores from heads fitted on the right ones."""
    table = material.dataset.table
    codes = {}
    for column in ("prompt", "annotator"):
        values = [str(value) for value in table.column(column).to_pylist()]
        codes[column] = np.unique(values, return_inverse=True)[1].astype(np.int64)
    responses = int(max(material.chosen.max(), material.rejected.max())) + 1
    labels = Labels(
        name,
        material.features,
        material.chosen,
        material.rejected,
        codes["prompt"],
        codes["annotator"],
        np.zeros(responses),
        wrong,
    )
    gold = right(labels)
    margins = fit(gold, POOLED, {}).margins.mean(axis=0, dtype=np.float64)
    return replace(labels, score=abilities(gold.chosen, gold.rejected, margins, responses))


def ukp_labels(options: Options) -> Labels:
    """ukp-convarg with its natural votes."""
    policy = load_causal_lm(options.model or str(smollm2()))
    path = options.data / "ukp-convarg"
    material, _ = prepare(path / "natural.parquet", policy, cache().parent / "features")
    return _labels(material, truth(material.dataset, path / "truth.parquet"), "ukp-convarg")


def sample_labels() -> Labels:
    """The sample's text pairs, judged by its tiny model."""
    folder = ROOT / "sample_data" / "hh-rlhf"
    policy = load_causal_lm(str(ROOT / "sample_data" / "models" / "tiny-lm"))
    material, _ = prepare(folder / "train.jsonl.gz", policy, cache().parent / "features")
    return _labels(material, truth(material.dataset, folder / "truth.parquet"), "sample")


if __name__ == "__main__":
    main(__doc__, run)
