"""What is the audit's knowledge worth in training: annotators, reviews, an outside judge?

    python -m benchmarks.downstream.soft [--quick] [--json FILE] [--seed N]

Simulated pairs, 8 responses a prompt and 40 annotators (`planted_noise.simulated`), and without
--quick the gold labels of ukp-convarg; noise of four kinds at 20 and 30 % in the labels to train
and to validate on. Log-linear policies (`downstream.policies`); the penalty is the one that does
best on the NOISY validation labels ("tuned"), or none. Measured on right labels of prompts never
seen, five seeds. Audits are heads that hold out whole prompts and `fit_noise`, as `score` has them,
and are given no rate: closed (nobody knows who labelled what), with annotators, and beside these
100 of the training pairs judged by a reviewer who knows the truth (`noisescope review`, then
`score`), these and 200 more (as `export --format review` then chooses them), or a judge right about
75 % of the pairs and as sure as it is right, independent of the noise. "train's choice" is
forward-dpo where the audit knows more of one label than of another, else dpo. Ceilings: every
label's truth known, and only each annotator's true rate.

Recovered: (method - noisy dpo) / (clean dpo - noisy dpo), means over the seeds, where the 90 % t
interval of the cost is above 0; gained: accuracy over noisy dpo in points, with its 90 % t
interval. Finished cells are cached.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from benchmarks.detect import BETA, Bool, Float, Material
from benchmarks.downstream.kept import Kept, kept
from benchmarks.downstream.policies import Recipe, Split, right, split_of, train
from benchmarks.downstream.rivals import rivals
from benchmarks.harness import Options, Report, main
from benchmarks.planted_noise import Labels, graded, plant, simulated
from benchmarks.planted_noise import right as corrected
from benchmarks.trust import HELD_OUT, fit, ukp_labels
from noisescope.export.review import choose
from noisescope.replicas.head import HeadConfig
from noisescope.replicas.source_fits import Evidence, outside_odds
from noisescope.scoring.annotators import annotator_table
from noisescope.scoring.detectors import u as instability
from noisescope.scoring.noise_models import DECISIVE, Noise, fit_noise
from noisescope.scoring.review_estimate import (
    UNCHECKED,
    Votes,
    levelled,
    queue,
    review,
    strata_for,
    stratify,
)
from noisescope.scoring.run_scores import REVIEWED
from noisescope.scoring.scores import ranks
from noisescope.scoring.weights import WeightConfig, adaptive_weights, belief, even
from noisescope.training.objectives import DPO, AdaptiveDPO, DistilledDPO, ForwardDPO, SoftDPO

Int = NDArray[np.int64]
Cell = dict[tuple[str, str], float]  # accuracy by method and regime
Where = tuple[str, float]  # kind and rate
KINDS, RATES = ("uniform", "annotator", "contrarian", "response"), (0.2, 0.3)
PAIRS, WIDTH, SEEDS, FIRST_SEED = 2000, 64, 5, 300
#: Shares of the prompts to test and to validate on.
TEST, VALIDATION = 0.25, 0.15
CLEAN, ORACLE = "dpo on right labels", "ceiling: right pairs only"
REGIMES = ("tuned", "unregularised")
CHOICE, TRUE_RATES = "train's choice", "ceiling: forward-dpo, true rates of annotators"
#: Accuracy of the outside judge, numbers of reviews, and how many of them are of a random sample.
JUDGE, REVIEWS, SAMPLED = 0.75, (100, 300), 100
#: Of the fit of the judge alone, which is made before.
HEADS = HeadConfig(replicas=2)


def run(options: Options) -> Report:
    """All kinds, rates and seeds; tables by set of labels and regime, and the targets."""
    report = Report("Training with what an audit knows, judged on right labels of new prompts")
    ukp = None if options.quick else corrected(ukp_labels(options))
    names = ("simulated",) if ukp is None else ("simulated", "ukp")
    first = FIRST_SEED + options.seed
    plan = list(product(names, range(first, first + SEEDS), KINDS, RATES))
    with ProcessPoolExecutor(os.cpu_count(), initializer=partial(torch.set_num_threads, 1)) as pool:
        found = list(pool.map(partial(measured, ukp), plan))
    for name in names:
        cells: dict[Where, list[Cell]] = {}
        for (of, _, *where), cell in zip(plan, found, strict=True):
            if of == name:
                cells.setdefault((where[0], where[1]), []).append(cell)
        for regime in REGIMES:
            table = [row for where, of in cells.items() for row in rows(where, of, regime)]
            report.tables[f"{name}, {regime}"] = table
            report.tables[f"{name}, {regime}: over all cells"] = list(overall(cells, regime))
        targets(cells, name, report)
    return report


def parts(labels: Labels, seed: int) -> tuple[Bool, Bool]:
    """Which pairs test and validate, [N] each: whole prompts."""
    drawn = np.random.default_rng(seed).random(int(labels.prompts.max()) + 1)[labels.prompts]
    return drawn < TEST, (drawn >= TEST) & (drawn < TEST + VALIDATION)


def measured(ukp: Labels | None, what: tuple[str, int, str, float]) -> Cell:
    """`measure` of (labels, seed, kind, rate), or what it found before for the same cell."""
    name, seed, kind, rate = what

    def make() -> Kept:
        clean = ukp if ukp and name == "ukp" else simulated(PAIRS, seed, width=WIDTH)
        noisy = plant(clean, kind, rate, seed)
        found = dict(measure(clean, noisy, *parts(clean, seed), seed))
        print(f"{name}, seed {seed}, {kind} {rate:.0%}", file=sys.stderr, flush=True)
        names = dict.fromkeys(name for name, _ in found)
        return {name: (np.array([[found[name, of] for of in REGIMES]]), 0) for name in names}

    found = kept(make, "soft 2", str(seed), name, kind, str(rate))
    return {
        (name, of): float(value)
        for name, (values, _) in found.items()
        for of, value in zip(REGIMES, values[0], strict=True)
    }


def measure(
    clean: Labels, noisy: Labels, test: Bool, validation: Bool, seed: int
) -> Iterator[tuple[tuple[str, str], float]]:
    """Train every method; yield accuracies by method and regime."""
    split = split_of(material(clean), test, validation)
    alone = learnt(split, clean, noisy, Recipe(DPO(BETA)))
    for name, recipe in {CLEAN: Recipe(DPO(BETA)), **recipes(noisy, split.train, seed)}.items():
        labels = clean if name == CLEAN else noisy
        plain = labels is noisy and is_dpo(recipe)
        found = alone if plain else learnt(split, clean, labels, recipe)
        for regime, accuracy in zip(REGIMES, found, strict=True):
            yield (name, regime), accuracy


def is_dpo(recipe: Recipe) -> bool:
    """Whether a method is dpo on the labels as they are."""
    acted = (recipe.keep is not None and not recipe.keep.all()) or (
        recipe.turn is not None and recipe.turn.any()
    )
    given = recipe.weight, recipe.gamma, recipe.stage
    return recipe.objective == DPO(BETA) and not acted and all(one is None for one in given)


def material(labels: Labels) -> Material:
    return Material(None, labels.features, labels.chosen, labels.rejected)  # type: ignore[arg-type]


def learnt(split: Split, clean: Labels, labels: Labels, recipe: Recipe) -> tuple[float, float]:
    """Accuracy on right labels with the tuned penalty, and without one."""
    keep = np.ones(len(split.train), bool) if recipe.keep is None else recipe.keep
    on, turn = split.train[keep], recipe.turn
    ends = labels.chosen[on], labels.rejected[on]
    if turn is not None:
        ends = np.where(turn[keep], ends[1], ends[0]), np.where(turn[keep], *ends)
    theta = train(split, ends, recipe, np.zeros(len(on), np.int64))
    held = split.validation
    best = int(right(split, theta, labels.chosen[held], labels.rejected[held]).mean(0).argmax())
    found = right(split, theta, clean.chosen[split.test], clean.rejected[split.test]).mean(0)
    return float(found[best]), float(found[0])


def recipes(noisy: Labels, on: Int, seed: int) -> dict[str, Recipe]:
    """Every method for the n training pairs `on`, from audits of those pairs alone."""
    part = subset(noisy, on)
    margins, noise = audited(part, {})
    mean, dpo = margins.mean(axis=0), DPO(BETA)
    closed = fit_noise(mean, replace(part.facts, annotators=None))
    weight, gamma = adaptive_weights(instability(margins / BETA), WeightConfig())
    worst, backwards = standing_out(part, noise, mean)
    p, prior = noise.p_wrong(mean), noise.p_prior()
    found = {
        "dpo": Recipe(dpo),
        "adaptive-dpo (paper)": Recipe(AdaptiveDPO(BETA), weight=weight, gamma=gamma),
        "distilled-dpo": Recipe(DistilledDPO(BETA), gamma=noise.single.gap(mean)),
        "soft-dpo, closed": Recipe(SoftDPO(BETA), gamma=belief(closed.p_wrong(mean))),
        **using("annotators", p, prior),
        "weights 1 - 2 p_wrong, annotators": Recipe(dpo, weight=np.maximum(0.0, 1 - 2 * p)),
        "drop p_wrong >= .5, annotators": Recipe(dpo, keep=p < 0.5),
        "drop annotators": Recipe(dpo, keep=~worst),
        "reverse annotators": Recipe(dpo, turn=backwards),
        **rivals(mean, p),
    }
    sample, *moved = sampled(p, prior, part.wrong, seed)
    judged = np.where(np.isin(np.arange(len(p)), sample), 0.0, np.nan)
    columns = {"p_wrong": moved[0], "rank": ranks(p, mean), REVIEWED: judged}
    for count in REVIEWS:
        at = [*sample, *choose(columns, count - SAMPLED, 0.5)]
        found |= using(f"{count} reviews", *(reviewed(q, part.wrong, at) for q in moved))
        turn = np.zeros(len(p), bool)
        turn[at] = part.wrong[at]
        found[f"dpo on corrected labels, {count} reviews"] = Recipe(dpo, turn=turn)
    judge = {"judge": graded(part.wrong, JUDGE, seed)}
    both, informed = audited(part, judge)
    odds = judge_odds(part, judge, margins)
    found |= using("judge", informed.p_wrong(both.mean(axis=0)), noise.p_prior(odds))
    counts = np.maximum(np.bincount(part.annotators), 1)
    rates = np.bincount(part.annotators, part.wrong) / counts
    return found | {
        TRUE_RATES: Recipe(ForwardDPO(BETA), gamma=belief(rates[part.annotators])),
        ORACLE: Recipe(dpo, keep=~part.wrong),
    }


def subset(labels: Labels, on: Int) -> Labels:
    """The pairs `on`."""
    pairs = ("chosen", "rejected", "prompts", "annotators", "wrong")
    return replace(labels, **{name: getattr(labels, name)[on] for name in pairs})


def audited(part: Labels, numbers: dict[str, NDArray[np.float32]]) -> tuple[Float, Noise]:
    """Held-out margins [M, n], and the noise fitted to them; `numbers` are those of sources."""
    margins = fit(part, HELD_OUT, {}, numbers, replicas=4).margins.astype(np.float64)
    return margins, fit_noise(margins.mean(axis=0), part.facts)


def judge_odds(part: Labels, numbers: dict[str, NDArray[np.float32]], margins: Float) -> Float:
    """Log odds [n] that labels are right by the judge alone, as an audit finds them."""
    alone = replace(part, features={})
    judged = fit(alone, HELD_OUT, {}, numbers, replicas=2).margins.mean(axis=0, dtype=np.float64)
    found = {"model": margins.mean(axis=0), "judge": judged}
    groups = {"model": (), "judge": ("judge",)}
    evidence = Evidence({}, numbers, (part.chosen, part.rejected), part.keys, part.keys, HEADS)
    odds = outside_odds(evidence, groups, lambda names: found[next(iter(names))], part.facts)
    assert odds is not None
    return odds


def using(known: str, p_wrong: Float, prior: Float) -> dict[str, Recipe]:
    """The methods that learn what an audit knows: by p_wrong, by p_prior, and by choice."""
    gamma = belief(prior)
    forward = Recipe(ForwardDPO(BETA), gamma=gamma)
    plain = even(np.ones(len(gamma)), gamma)
    return {
        f"soft-dpo, {known}": Recipe(SoftDPO(BETA), gamma=belief(p_wrong)),
        f"soft-dpo by p_prior, {known}": Recipe(SoftDPO(BETA), gamma=gamma),
        f"{CHOICE}, {known}": Recipe(DPO(BETA)) if plain else forward,
    }


def reviewed(p: Float, wrong: Bool, at: list[int]) -> Float:
    """p [n] with those of the pairs `at` as `chance_wrong` has them after one right answer."""
    out = p.copy()
    out[at] = np.where(wrong[at], 1 - UNCHECKED, UNCHECKED)
    return out


def sampled(p: Float, prior: Float, wrong: Bool, seed: int) -> tuple[Int, Float, Float]:
    """The pairs that `noisescope review` has judged, and p_wrong and p_prior after `score`, [n]."""
    cells = stratify(p, seed, strata=strata_for(SAMPLED))
    coins, again = np.random.default_rng(seed).random((2, len(p)))
    at = queue(cells, coins, again, seed)[:SAMPLED]
    answers = np.stack([wrong[at], ~wrong[at], np.zeros(SAMPLED)]).astype(float)
    found = review(cells, p, Votes(at, *answers))
    return at, found.p, levelled(prior, found.share().share.estimate)


def standing_out(labels: Labels, noise: Noise, margins: Float) -> tuple[Bool, Bool]:
    """Pairs [n] of annotators that stand out, and of those who vote backwards (`standouts`)."""
    gains = {model.name: model.gain for model in noise.models}
    if gains.get("annotator", 0.0) <= DECISIVE:
        nobody = np.zeros(len(margins), bool)
        return nobody, nobody
    names = [str(code) for code in range(int(labels.annotators.max()) + 1)]
    table = annotator_table(names, labels.annotators, margins, noise.single)
    worst = [int(one.name) for one in table if one.careless or one.contrarian]
    backwards = [int(one.name) for one in table if one.contrarian]
    return np.isin(labels.annotators, worst), np.isin(labels.annotators, backwards)


def rows(where: Where, cells: list[Cell], regime: str) -> Iterator[dict[str, object]]:
    """One row a method: accuracy, points gained over noisy dpo, share of the cost recovered."""
    cost = gained(cells, CLEAN, regime)
    for name in methods(cells):
        points = gained(cells, name, regime)
        low, high = interval(points)
        yield {
            "noise": f"{where[0]} {where[1]:.0%}",
            "method": name,
            "accuracy": 100 * float(np.mean([cell[name, regime] for cell in cells])),
            "gained": f"{points.mean():+.2f} [{low:+.2f}, {high:+.2f}]",
            "recovered": f"{points.mean() / cost.mean():.2f}" if interval(cost)[0] > 0 else "–",
        }


def overall(cells: dict[Where, list[Cell]], regime: str) -> Iterator[dict[str, object]]:
    """One row a method: mean gain and share recovered over the cells, and its worst cell."""
    cost = np.mean([gained(of, CLEAN, regime).mean() for of in cells.values()])
    for name in methods(next(iter(cells.values()))):
        points = {where: float(gained(of, name, regime).mean()) for where, of in cells.items()}
        kind, rate = min(points, key=lambda where: points[where])
        yield {
            "method": name,
            "gained": float(np.mean(list(points.values()))),
            "recovered": float(np.mean(list(points.values())) / cost),
            "worst": points[kind, rate],
            "worst cell": f"{kind} {rate:.0%}",
        }


def targets(cells: dict[Where, list[Cell]], labels: str, report: Report) -> None:
    """The targets of `train`'s choice: shares recovered, and never worse than dpo by 0.5 points."""
    worst = []
    for (kind, rate), of in cells.items():
        cost = gained(of, CLEAN, "tuned")
        lost = interval(cost)[0] > 0
        people = kind in ("annotator", "contrarian")
        known = {"annotators": 0.8} if people else {"300 reviews": 0.6, "judge": 0.6}
        for what, bound in known.items() if people or rate == 0.3 else ():
            share = gained(of, f"{CHOICE}, {what}", "tuned").mean() / cost.mean()
            name = f"{labels}, {kind} {rate:.0%}: recovered with {what}"
            report.at_least(name, float(share) if lost else None, bound)
        chosen = [name for name in methods(of) if name.startswith(CHOICE)]
        worst += [float(gained(of, name, "tuned").mean()) for name in chosen]
    report.at_least(f"{labels}: worst cell of train's choice, points over dpo", min(worst), -0.5)


def methods(cells: list[Cell]) -> list[str]:
    return list(dict.fromkeys(name for name, _ in cells[0]))


def gained(cells: list[Cell], name: str, regime: str) -> Float:
    """Points of accuracy over dpo on the noisy labels, by seed."""
    return 100 * np.array([cell[name, regime] - cell["dpo", regime] for cell in cells])


def interval(values: Float) -> tuple[float, float]:
    """90 % t interval of a mean over seeds."""
    half = student.ppf(0.95, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


if __name__ == "__main__":
    main(__doc__, run)
