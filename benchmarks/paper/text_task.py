"""Train log-linear policies on text whose truth is known, in seconds.

    task = text_task(small, seed)
    wrong = task.plant(0.2)
    margins = task.audit(wrong)                      # [M, n], held out, of the training pairs
    task.train(wrong, Recipe(DPO(BETA)))             # right answers by regime

Policies, objectives and their optimiser are those of `benchmarks.downstream`: pi(y|c) ~
exp(theta . phi(c, y)) with frozen features phi. Test prompts (ukp: whole topics) are never trained
on and have right labels; training and validation labels are the noisy ones.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache as remembered
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.data import truth, with_sides_swapped
from benchmarks.detect import BETA, Bool, Float, Material
from benchmarks.downstream.topics import Noisy, Recipe, Split, learn
from benchmarks.models import cache, smollm2
from benchmarks.paper.cache import cached
from benchmarks.paper.image_task import SAMPLES
from benchmarks.paper.script import Small
from noisescope.datasets import load
from noisescope.datasets.flip.plan import coins
from noisescope.models.causal_lm import load_causal_lm
from noisescope.models.features import compute_features
from noisescope.models.items import distinct_items, fold_keys
from noisescope.pairs import digest
from noisescope.replicas.head import HeadConfig, fit_heads
from noisescope.replicas.prior import unit_scale
from noisescope.scoring.detectors import u
from noisescope.scoring.flip_rate import fit_flip_rate
from noisescope.scoring.weights import WeightConfig, adaptive_weights
from noisescope.training.objectives import DPO, AdaptiveDPO, AdaptiveIPO

Int = NDArray[np.int64]
REPLICAS = 4
#: Shares of the prompts (topics) for the test and for choosing the penalty.
TEST, VALIDATION = 0.25, 0.15
#: Salt of the hash that chooses pairs.
CHOSEN = 37
#: "tuned": the L2 penalty that does best on the noisy validation labels; "memorising": none.
REGIMES = ("tuned", "memorising")


@dataclass
class TextTask:
    """N pairs with right labels; `collected` [N] marks those that were wrong as collected."""

    material: Material
    split: Split
    collected: Bool
    group: Int  # prompt or topic of each test pair
    seed: int
    name: str  # task and seed
    audits: dict[str, Float] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        names: list[str] = self.material.dataset.table.column("pair_id").to_pylist()
        return names

    def plant(self, rate: float) -> Bool:
        """Flip a share of the labels as collected; return which are wrong then, [N].

        Flips are a function of (seed, pair_id).
        """
        return np.asarray(self.collected ^ (coins(self.ids, self.seed) < rate))

    def audit(self, wrong: Bool) -> Float:
        """Return held-out margins of heads fitted on the training pairs alone, [M, n]; cached."""
        key = np.packbits(wrong).tobytes().hex()
        if key not in self.audits:
            found = cached(
                lambda: {"margins": self._fit(wrong).ravel()},
                *("audit", self.name, digest(key, *self.ids)),
            )
            self.audits[key] = found.arrays["margins"].reshape(REPLICAS, -1)
        return self.audits[key]

    def _fit(self, wrong: Bool) -> Float:
        """Fit heads on the training pairs with these labels."""
        noisy, part = self.material.flipped(wrong), self.split.train
        keys = fold_keys(noisy.dataset.table)[part]
        config = HeadConfig(replicas=REPLICAS)
        fit = fit_heads(noisy.features, noisy.chosen[part], noisy.rejected[part], keys, config)
        return fit.margins.astype(np.float64)

    def weights(
        self, wrong: Bool, config: WeightConfig | None = None, rho: float = 1.0
    ) -> dict[str, Float]:
        """Return W and Gamma of Eq. 14-15 from the audit's margins, for a `Recipe`."""
        found = u(self.audit(wrong) / BETA, rho)
        weight, gamma = adaptive_weights(found, config or WeightConfig())
        return {"weight": weight, "gamma": gamma}

    def p_flip(self, wrong: Bool) -> Float:
        """Return the calibrated probability that each training label is wrong, [n]."""
        mean = self.audit(wrong).mean(axis=0)
        return np.asarray(fit_flip_rate(mean).p_flip(mean))

    def train(self, wrong: Bool, recipe: Recipe) -> dict[str, Float]:
        """Train on noisy labels; return right answers on the test pairs, [n], by regime."""
        size = len(self.split.train)
        nothing = np.zeros(size)
        noise = Noisy(  # a recipe already contains its weights
            flipped=wrong,
            rate=0.0,
            p_flip=nothing,
            weight=nothing,
            gamma=nothing,
            annotator=np.zeros(size, np.int64),
            gap=nothing,
            rewards=nothing,
        )
        right, best = learn(self.material, self.split, noise, recipe)
        return {"tuned": right[:, best], "memorising": right[:, 0]}

    def adaptive(self, wrong: Bool, config: WeightConfig | None = None, rho: float = 1.0) -> Recipe:
        """Return Adaptive-DPO as published, weighted by the audit."""
        return Recipe(AdaptiveDPO(BETA), **self.weights(wrong, config, rho))

    def shuffled(self, wrong: Bool) -> Recipe:
        """Return Adaptive-DPO with the weights shuffled over the pairs: a control."""
        order = np.random.default_rng(self.seed).permutation(len(self.split.train))
        found = {name: values[order] for name, values in self.weights(wrong).items()}
        return Recipe(AdaptiveDPO(BETA), **found)

    def adaptive_ipo(self, wrong: Bool) -> Recipe:
        """Return Adaptive-IPO, weighted by the audit."""
        return Recipe(AdaptiveIPO(BETA), **self.weights(wrong))

    def clean(self, wrong: Bool) -> Recipe:
        """Return DPO on the pairs whose label is right: an oracle."""
        return Recipe(DPO(BETA), keep=~wrong[self.split.train])

    def trusted(self, wrong: Bool) -> Recipe:
        """Return DPO weighted by max(0, 1 - 2 p_flip), noisescope's own."""
        return Recipe(DPO(BETA), weight=np.maximum(0.0, 1 - 2 * self.p_flip(wrong)))


def text_task(small: Small, seed: int) -> TextTask:
    """Load the pairs of a task, prompts split by `seed`."""
    torch.set_num_threads(1)
    material, collected = _material(small.task, small.pairs, small.data)
    prompts = material.dataset.table.column("prompt").to_pylist()
    names = [prompt.partition(" Argue:")[0] for prompt in prompts]  # ukp: its topic
    codes = np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)
    order = np.random.default_rng(seed).permutation(int(codes.max()) + 1)
    place = np.argsort(order)[codes] / len(order)
    test = np.flatnonzero(place < TEST)
    validation = np.flatnonzero((place >= TEST) & (place < TEST + VALIDATION))
    train = np.flatnonzero(place >= TEST + VALIDATION)
    rows = _rotated(material.features, material.chosen[train], material.rejected[train])
    split = Split(rows, train, validation, test)
    return TextTask(material, split, collected, codes[test], seed, f"{small.task} {seed}")


def _rotated(
    features: Mapping[str, NDArray[np.float32]], chosen: Int, rejected: Int
) -> torch.Tensor:
    """Scale features by the training pairs and rotate them to their principal axes, [R, K]."""
    scaled = [x * unit_scale(x, chosen, rejected) for x in features.values()]
    whole = np.concatenate(scaled, axis=1).astype(np.float64)
    whole -= whole[np.unique(np.concatenate([chosen, rejected]))].mean(axis=0)
    values, axes = np.linalg.eigh(whole.T @ whole)
    used = values > values[-1] * 1e-6
    return torch.tensor(whole @ axes[:, used], dtype=torch.float32)


@remembered
def _material(task: str, pairs: int, data: Path) -> tuple[Material, Bool]:
    """Load some pairs of a task with right labels and features, and which were wrong, [N]."""
    path = SAMPLES / "hh-rlhf" if task == "sample" else data / "ukp-convarg"
    model = SAMPLES / "models" / "tiny-lm" if task == "sample" else smollm2()
    whole = load(path if task == "sample" else path / "natural.parquet")
    ids = whole.table.column("pair_id").to_pylist()
    keep = np.sort(np.argsort(coins(ids, 0, CHOSEN), kind="stable")[:pairs])
    dataset = replace(whole, table=whole.table.take(keep))
    wrong = truth(dataset, path / "truth.parquet")
    dataset = with_sides_swapped(dataset, wrong)
    items, chosen, rejected = distinct_items(dataset.table)
    policy = load_causal_lm(str(model), device="cpu", dtype="float32")
    began = time.perf_counter()
    features = compute_features(
        policy, items, cache().parent / "features", lambda done, total, note: None
    )
    seconds = time.perf_counter() - began
    print(f"features of {len(items):,} responses: {seconds:.0f} s", file=sys.stderr)
    return Material(dataset, features, chosen, rejected), wrong
