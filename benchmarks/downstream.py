"""Does the audit pay off in training? Accuracy on clean pairs of new topics after noisy training.

    python -m benchmarks.downstream [--quick] [--json FILE] [--model DIR] [--data DIR]

ukp-convarg labelled by the gold of five votes; 0 to 40 % of the training labels are turned round;
the implicit reward of the trained policy is judged on clean pairs of topics it never saw. The
policy class is the log-linear one, pi(y|c) ~ exp(theta . phi(c, y)), phi frozen SmolLM2 features,
so that l = theta . (phi_w - phi_l) and every objective trains in seconds; the objectives are
`noisescope.objectives`, as the training loop uses them.

Protocol, fixed before looking at results. Per seed: 4 of 16 topics are for testing, 3 for
validation, 9 for training. Every method: the same features, full-batch Adam, 400 steps, learning
rate .02 falling to 0, loss scaled to DPO's slope at l = 0. Three regimes: "tuned", an L2 penalty
chosen per method and rate by accuracy on the NOISY validation labels; "recipe", for all of them the
penalty chosen so for dpo without planted flips, as one reuses published settings; "unregularised",
none: fine-tuning for many steps, where noise is memorised. cdpo and rdpo are told the true flip
rate; the audit (heads on the training pairs alone) is told nothing.
"share of the loss recovered" = (method - noisy dpo) / (clean dpo - noisy dpo), seeds pooled; its
interval resamples seeds and test topics together for all methods.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from benchmarks.data import truth
from benchmarks.detect import BETA, Bool, Float, Material, prepare, uniform
from benchmarks.harness import Options, Report, main
from benchmarks.models import cache, smollm2
from noisescope.detectors import u as instability
from noisescope.flip_rate import fit_flip_rate
from noisescope.flips import coins
from noisescope.objectives import (
    CDPO,
    DPO,
    IPO,
    RDPO,
    REPO,
    ROPO,
    AdaptiveDPO,
    AdaptiveIPO,
    DrDPO,
    HolderDPO,
    Objective,
    PairValues,
)
from noisescope.policies.causal_lm import load_causal_lm
from noisescope.policies.items import fold_keys
from noisescope.replicas.head import HeadConfig, fit_heads
from noisescope.replicas.prior import unit_scale
from noisescope.weights import WeightConfig, adaptive_weights

Int = NDArray[np.int64]
STEPS, RATE = 400, 0.02
REPLICAS = 4
#: L2 penalties tried, on the scale where every group of features gives margins of sd 1.
PENALTIES = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FLIPS = (0.0, 0.1, 0.2, 0.3, 0.4)
TEST_TOPICS, VALIDATION_TOPICS = 4, 3
BOOTSTRAPS = 1000
RIVALS = ("dpo", "cdpo", "rdpo", "ipo", "ropo", "dr-dpo", "holder-dpo", "re-po")
REGIMES = ("tuned", "recipe", "unregularised")


@dataclass(frozen=True)
class Split:
    """Responses as rows [R, K]; pairs by part, right labels, with their topics."""

    rows: torch.Tensor
    train: Int
    validation: Int
    test: Int


@dataclass(frozen=True)
class Noisy:
    """One planting: which pairs are turned round, and what an audit of the training pairs says."""

    flipped: Bool  # [N] of all pairs; test ones are never used
    rate: float
    p_flip: Float  # [n] of the training pairs
    weight: Float
    gamma: Float
    annotator: Int  # [n]


@dataclass(frozen=True)
class Lesson:
    """What a method trains on: n training pairs, or some of them.

    `soft` p: the loss is (1 - p) L(l) + p L(-l). `keep` and `turn` change the dataset itself.
    """

    objective: Objective
    weight: Float | None = None
    gamma: Float | None = None
    soft: Float | None = None
    keep: Bool | None = None
    turn: Bool | None = None


def methods(noise: Noisy, seed: int) -> dict[str, Lesson]:
    """Every method compared: the objective and what it is told."""
    e, p = min(noise.rate, 0.45), noise.p_flip
    wrong, n = p >= 0.5, len(p)
    told = np.random.default_rng(seed).permutation(n) >= int(wrong.sum())
    dpo, paper = DPO(BETA), {"weight": noise.weight, "gamma": noise.gamma}
    return {
        "dpo": Lesson(dpo),
        "cdpo": Lesson(CDPO(BETA, flip_rate=e)),
        "rdpo": Lesson(RDPO(BETA, flip_rate=e)),
        "ipo": Lesson(IPO(BETA)),
        "ropo": Lesson(ROPO(BETA)),
        "dr-dpo": Lesson(DrDPO(BETA)),
        "holder-dpo": Lesson(HolderDPO(BETA)),
        "re-po": Lesson(REPO(BETA)),
        "adaptive-dpo (paper)": Lesson(AdaptiveDPO(BETA), **paper),
        "adaptive-ipo (paper)": Lesson(AdaptiveIPO(BETA), **paper),
        "p_flip: weight 1-p": Lesson(dpo, weight=1 - p),
        "p_flip: weight 1-2p": Lesson(dpo, weight=np.maximum(0.0, 1 - 2 * p)),
        "p_flip: soft labels": Lesson(dpo, soft=p),
        "p_flip: drop-worst": Lesson(dpo, keep=~wrong),
        "p_flip: flip-worst": Lesson(dpo, turn=wrong),
        "random-drop control": Lesson(dpo, keep=told),
    }


def split_of(ukp: Material, seed: int) -> Split:
    """Topics dealt out by `seed`; features scaled by the training pairs, rotated to their axes."""
    prompts = ukp.dataset.table.column("prompt").to_pylist()
    topics = np.array([prompt.partition(" Argue:")[0] for prompt in prompts])
    names = np.random.default_rng(seed).permutation(np.unique(topics))
    test = np.isin(topics, names[:TEST_TOPICS])
    validation = np.isin(topics, names[TEST_TOPICS : TEST_TOPICS + VALIDATION_TOPICS])
    train = np.flatnonzero(~test & ~validation)
    ends = ukp.chosen[train], ukp.rejected[train]
    scaled = [x * unit_scale(x, *ends) for x in ukp.features.values()]
    whole = np.concatenate(scaled, axis=1).astype(np.float64)
    whole -= whole[np.unique(np.concatenate(ends))].mean(axis=0)
    values, axes = np.linalg.eigh(whole @ whole.T)
    kept = values > values[-1] * 1e-6
    rows = torch.tensor(axes[:, kept] * np.sqrt(values[kept]), dtype=torch.float32)
    return Split(rows, train, np.flatnonzero(validation), np.flatnonzero(test))


def planted(ukp: Material, split: Split, flipped: Bool, rate: float) -> Noisy:
    """Turn labels round and audit the training pairs."""
    chosen = np.where(flipped, ukp.rejected, ukp.chosen)[split.train]
    rejected = np.where(flipped, ukp.chosen, ukp.rejected)[split.train]
    keys = fold_keys(ukp.dataset.table)[split.train]
    fit = fit_heads(ukp.features, chosen, rejected, keys, HeadConfig(replicas=REPLICAS))
    margins = fit.margins.astype(np.float64)
    mean = margins.mean(axis=0)
    weight, gamma = adaptive_weights(instability(margins / BETA), WeightConfig())
    names = ukp.dataset.table.column("annotator").to_pylist()
    annotator = np.unique(np.array(names, dtype=str), return_inverse=True)[1][split.train]
    return Noisy(flipped, rate, fit_flip_rate(mean).p_flip(mean), weight, gamma, annotator)


def train(split: Split, ends: tuple[Int, Int], lesson: Lesson, annotator: Int) -> torch.Tensor:
    """theta * beta of every penalty at once, [K, Q].

    l = A rows theta / beta, A [n, R] the incidence of pairs: the objective gives dL/dl by autograd,
    the rest of the chain is two products.
    """
    signs = np.tile(np.array([1, -1], np.float32), len(ends[0]))
    starts = np.arange(0, 2 * len(ends[0]) + 1, 2)
    shape = (len(ends[0]), len(split.rows))
    incidence = csr_array((signs, np.stack(ends, axis=1).ravel(), starts), shape=shape)
    adjoint, rows = incidence.T.tocsr(), split.rows.numpy()  # numpy: thin products, twice as fast
    penalties = torch.tensor(PENALTIES)
    theta = torch.zeros(split.rows.shape[1], len(PENALTIES), requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=RATE)
    given = {
        name: None if value is None else torch.tensor(value, dtype=torch.float32)[:, None]
        for name, value in (("weight", lesson.weight), ("gamma", lesson.gamma))
    }
    soft = None if lesson.soft is None else torch.tensor(lesson.soft, dtype=torch.float32)[:, None]
    slope, reliability = slope_at_zero(lesson.objective), None
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        rewards = rows @ theta.detach().numpy()
        logratio = torch.tensor(incidence @ rewards / BETA, dtype=torch.float32).requires_grad_()
        values = PairValues(logratio, reliability=reliability, **given)
        losses = lesson.objective(values)
        if soft is not None:
            turned = lesson.objective(PairValues(-logratio, **given))
            losses = (1 - soft) * losses + soft * turned
        (slopes,) = torch.autograd.grad(losses.mean(0).sum() / (slope * BETA), logratio)
        if isinstance(lesson.objective, REPO):
            reliability = by_annotator(lesson.objective.posterior(values), annotator)
        upward = rows.T @ (adjoint @ slopes.numpy())
        theta.grad = torch.tensor(upward, dtype=torch.float32) + penalties * theta.detach()
        optimiser.step()
    return theta.detach()


def slope_at_zero(objective: Objective) -> float:
    """|dL/dh| at l = 0 over DPO's 1/2, for a pair of weight 1."""
    logratio = torch.zeros(2, requires_grad=True)
    ones = torch.ones(2)
    loss = objective(PairValues(logratio, weight=ones, gamma=0 * ones)).mean()
    (gradient,) = torch.autograd.grad(loss, logratio)
    return float(gradient.sum().abs()) / BETA / 0.5


def by_annotator(posterior: torch.Tensor, annotator: Int) -> torch.Tensor:
    """RE-PO's M step: each annotator's mean posterior, for each of their pairs, [n, Q]."""
    who = torch.tensor(annotator)
    size = int(who.max()) + 1
    total = torch.zeros(size, posterior.shape[1]).index_add_(0, who, posterior)
    return (total / torch.bincount(who, minlength=size).clamp(min=1)[:, None])[who]


def accuracies(split: Split, theta: torch.Tensor, chosen: Int, rejected: Int) -> Float:
    """1 where the reward prefers `chosen`, [n, Q]; ties count a half."""
    rewards = (split.rows @ theta).numpy()
    gap = rewards[chosen] - rewards[rejected]
    return ((gap > 0) + 0.5 * (gap == 0)).astype(np.float64)


def learn(ukp: Material, split: Split, noise: Noisy, lesson: Lesson) -> tuple[Float, int]:
    """Right answers [n test] under every penalty, [n test, Q], and the tuned one's place."""
    flipped = noise.flipped
    turned = flipped[split.train] ^ (False if lesson.turn is None else lesson.turn)
    keep = np.ones(len(split.train), bool) if lesson.keep is None else lesson.keep
    chosen = np.where(turned, ukp.rejected[split.train], ukp.chosen[split.train])[keep]
    rejected = np.where(turned, ukp.chosen[split.train], ukp.rejected[split.train])[keep]
    theta = train(split, (chosen, rejected), lesson, noise.annotator[keep])
    part = split.validation
    noisy = np.where(flipped, ukp.rejected, ukp.chosen)[part]
    other = np.where(flipped, ukp.chosen, ukp.rejected)[part]
    best = int(accuracies(split, theta, noisy, other).mean(axis=0).argmax())
    right = accuracies(split, theta, ukp.chosen[split.test], ukp.rejected[split.test])
    return right, best


#: Right answers by (kind, rate, method, regime): one array [n test] a seed.
Outcomes = dict[tuple[str, float, str, str], list[Float]]


def run(options: Options) -> Report:
    """All plantings of all seeds."""
    torch.set_num_threads(1)
    report = Report("Training on noisy labels, judged on clean pairs of new topics")
    policy = load_causal_lm(options.model or str(smollm2()))
    path = options.data / "ukp-convarg"
    natural, cost = prepare(path / "natural.parquet", policy, cache().parent / "features")
    gold = natural.flipped(truth(natural.dataset, path / "truth.parquet"))
    report.tables["feature pass"] = [cost]
    seeds = 3 if options.quick else 5
    outcomes: Outcomes = {}
    topics = []
    began = time.perf_counter()
    for seed in range(options.seed, options.seed + seeds):
        split = split_of(gold, seed)
        topics.append(topic_numbers(gold, split.test))
        recipe = 0
        for kind, rate in plantings(options.quick):
            flipped = turn_round(gold, kind, rate, seed)
            noise = planted(gold, split, flipped, rate)
            lessons = methods(noise, seed)
            lessons["oracle: clean subset"] = Lesson(DPO(BETA), keep=~flipped[split.train])
            for name, lesson in lessons.items():
                right, best = learn(gold, split, noise, lesson)
                if name == "dpo" and rate == 0:
                    recipe = best
                for regime, place in zip(REGIMES, (best, recipe, 0), strict=True):
                    outcomes.setdefault((kind, rate, name, regime), []).append(right[:, place])
            said = f"seed {seed}, {kind} {rate:.0%}: {time.perf_counter() - began:.0f} s"
            print(said, file=sys.stderr)
    tabulate(outcomes, topics, report)
    return report


def plantings(quick: bool) -> Iterator[tuple[str, float]]:
    """(kind, rate) of every planting; without noise there is one."""
    yield from (("uniform", rate) for rate in FLIPS)
    if not quick:
        yield from (("annotator", rate) for rate in (0.2, 0.3))


def turn_round(ukp: Material, kind: str, rate: float, seed: int) -> Bool:
    """Flips [N]: every pair alike, or half the labels of a share 2 r of annotators."""
    n = len(ukp.dataset)
    if kind == "uniform":
        return uniform(n, rate, seed)
    names = ukp.dataset.table.column("annotator").to_pylist()
    careless = coins([str(name) for name in names], seed) < 2 * rate
    return careless & uniform(n, 0.5, seed)


def topic_numbers(ukp: Material, part: Int) -> Int:
    """Topic of each pair of `part`, as small numbers."""
    prompts = ukp.dataset.table.column("prompt").to_pylist()
    names = np.array([prompts[index].partition(" Argue:")[0] for index in part])
    return np.unique(names, return_inverse=True)[1]


def tabulate(outcomes: Outcomes, topics: list[Int], report: Report) -> None:
    """Accuracies, shares recovered with intervals, and the targets."""
    cells = {key: topic_means(value, topics) for key, value in outcomes.items()}
    names = list(dict.fromkeys(key[2] for key in cells))
    draws = resamples(len(topics))
    for regime in REGIMES:
        plant = [key[:2] for key in cells if key[2:] == ("dpo", regime)]
        report.tables[f"accuracy on clean pairs of new topics, {regime}"] = [
            {"method": name}
            | {label(*where): float(cells[*where, name, regime].mean()) for where in plant}
            for name in names
        ]
        clean = cells["uniform", 0.0, "dpo", regime]
        rows = []
        for name in names:
            row: dict[str, Any] = {"method": name}
            for where in plant:
                if where[1] > 0:
                    found = recovered(
                        cells[*where, name, regime], clean, cells[*where, "dpo", regime], draws
                    )
                    row[label(*where)] = found
            rows.append(row)
        report.tables[f"share of the loss recovered [90 %], {regime}"] = rows
        cost = [
            cost_row(cells[*where, "dpo", regime], clean, draws, label(*where)) for where in plant
        ]
        report.tables[f"what noise costs dpo, {regime}"] = cost
        targets(cells, clean, regime, report)
    report.facts["accuracies"] = {
        f"{kind} {rate:g} {name} {regime}": cell.tolist()
        for (kind, rate, name, regime), cell in cells.items()
    }


def label(kind: str, rate: float) -> str:
    """Column of a planting."""
    return f"{rate:.0%}" if kind == "uniform" else f"{kind} {rate:.0%}"


def topic_means(rights: list[Float], topics: list[Int]) -> Float:
    """Mean accuracy per seed and test topic, [S, T]."""
    return np.array(
        [
            [right[who == topic].mean() for topic in range(TEST_TOPICS)]
            for right, who in zip(rights, topics, strict=True)
        ]
    )


def resamples(seeds: int) -> list[tuple[Int, Int]]:
    """Bootstrap draws of seeds [S] and, within each, of topics [S, T]; the same for all methods."""
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, seeds, seeds), rng.integers(0, TEST_TOPICS, (seeds, TEST_TOPICS)))
        for _ in range(BOOTSTRAPS)
    ]


def drawn(cell: Float, draw: tuple[Int, Int]) -> float:
    """Mean of a resample of seeds and topics."""
    seeds, topics = draw
    return float(cell[seeds[:, None], topics].mean())


def share(method: float, clean: float, noisy: float) -> float:
    """(method - noisy) / (clean - noisy); NaN where noise cost nothing."""
    return (method - noisy) / (clean - noisy) if clean > noisy else float("nan")


def recovered(method: Float, clean: Float, noisy: Float, draws: list[tuple[Int, Int]]) -> str:
    """Share of the loss recovered with its interval, as text."""
    found = [share(*(drawn(cell, draw) for cell in (method, clean, noisy))) for draw in draws]
    low, high = np.nanquantile(found, [0.05, 0.95])
    return f"{share(method.mean(), clean.mean(), noisy.mean()):.2f} [{low:.2f}, {high:.2f}]"


def cost_row(noisy: Float, clean: Float, draws: list[tuple[Int, Int]], name: str) -> dict[str, Any]:
    """How much accuracy noise took, and whether that is more than chance."""
    costs = [drawn(clean, draw) - drawn(noisy, draw) for draw in draws]
    low, high = np.quantile(costs, [0.05, 0.95])
    return {"flips": name, "cost": float(clean.mean() - noisy.mean()), "low": low, "high": high}


def targets(
    cells: Mapping[tuple[str, float, str, str], Float], clean: Float, regime: str, report: Report
) -> None:
    """Our best recovers 80 % at 20 and 30 % flips and beats every rival in the same run."""
    for rate in (0.2, 0.3):
        here = {
            name: cell
            for (kind, r, name, g), cell in cells.items()
            if (kind, r, g) == ("uniform", rate, regime)
        }
        noisy = here["dpo"].mean()
        ours = max(
            (name for name in here if name.startswith("p_flip")), key=lambda n: here[n].mean()
        )
        rival = max(RIVALS, key=lambda n: here[n].mean())
        got = share(here[ours].mean(), clean.mean(), noisy)
        report.at_least(f"{regime}, {rate:.0%}: share recovered by {ours}", got, 0.8)
        ahead = float(here[ours].mean() - here[rival].mean())
        report.at_least(f"{regime}, {rate:.0%}: {ours} less {rival}", ahead, 0.0)


if __name__ == "__main__":
    main(__doc__, run)
