"""Define every method that `benchmarks.downstream` compares, and the audit behind ours.

The audit is head replicas cross-fitted on the training pairs alone; it is given no flip rate.
cdpo and rdpo are given the true one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from benchmarks.detect import BETA, Bool, Float, Material
from benchmarks.downstream.policies import Recipe, Split, right, train
from noisescope.models.items import fold_keys
from noisescope.replicas.head import HeadConfig, fit_heads
from noisescope.scoring.detectors import u as instability
from noisescope.scoring.flip_rate import fit_flip_rate
from noisescope.scoring.weights import WeightConfig, adaptive_weights
from noisescope.training.objectives import (
    CDPO,
    DPO,
    IPO,
    RDPO,
    REPO,
    ROPO,
    AdaptiveDPO,
    AdaptiveIPO,
    DistilledDPO,
    DrDPO,
    HolderDPO,
)

Int = NDArray[np.int64]
REPLICAS = 4
ORACLE = "oracle: clean subset"
#: The one method recommended, declared before the reported seeds were run.
OURS = "ours: distilled-dpo"
#: No policy: how often the audit itself would be right about new pairs.
HEADS = "the audit's own heads"


@dataclass(frozen=True)
class Noisy:
    """Which pairs are flipped, and the results of an audit of the training pairs."""

    flipped: Bool  # [N] of all pairs; test ones are never used
    rate: float
    p_flip: Float  # [n] of the training pairs
    weight: Float
    gamma: Float
    annotator: Int  # [n]
    gap: Float  # [n] the held-out margin, calibrated
    rewards: Float  # [R] what the heads think of every response, those of test pairs too


def audited(material: Material, on: Int, flipped: Bool, rate: float) -> Noisy:
    """Flip labels where `flipped` [N] and audit the n training pairs `on`."""
    noisy = material.flipped(flipped)
    chosen, rejected = noisy.chosen, noisy.rejected
    keys = fold_keys(noisy.dataset.table)[on]
    settings = HeadConfig(replicas=REPLICAS)
    fit = fit_heads(noisy.features, chosen[on], rejected[on], keys, settings)
    margins = fit.margins.astype(np.float64)
    mean = margins.mean(axis=0)
    found = fit_flip_rate(mean)
    weight, gamma = adaptive_weights(instability(margins / BETA), WeightConfig())
    names = material.dataset.table.column("annotator").to_pylist()
    annotator = np.unique([str(name) for name in names], return_inverse=True)[1][on]
    return Noisy(
        flipped=flipped,
        rate=rate,
        p_flip=found.p_flip(mean),
        weight=weight,
        gamma=gamma,
        annotator=annotator,
        gap=found.gap(mean),
        rewards=fit.rewards(noisy.features).mean(axis=0),
    )


def heads_right(material: Material, noise: Noisy, test: Int) -> Float:
    """Return 1 where the audit's heads prefer the better side of a test pair, ties 1/2, [n]."""
    gap = noise.rewards[material.chosen[test]] - noise.rewards[material.rejected[test]]
    return ((gap > 0) + 0.5 * (gap == 0)).astype(np.float64)


def methods(on: Int, noise: Noisy, seed: int) -> dict[str, Recipe]:
    """Return every method: its objective, and its settings for the n training pairs `on`."""
    e, p, n = min(noise.rate, 0.45), noise.p_flip, len(noise.p_flip)
    wrong, flipped = p >= 0.5, noise.flipped[on]
    random = np.random.default_rng(seed).permutation(n) >= int(wrong.sum())
    dpo, paper = DPO(BETA), {"weight": noise.weight, "gamma": noise.gamma}
    posterior = np.clip(-logit(p), -12, 12)
    return {
        "dpo": Recipe(dpo),
        "cdpo": Recipe(CDPO(BETA, flip_rate=e)),
        "rdpo": Recipe(RDPO(BETA, flip_rate=e)),
        "ipo": Recipe(IPO(BETA)),
        "ropo": Recipe(ROPO(BETA)),
        "dr-dpo": Recipe(DrDPO(BETA)),
        "holder-dpo": Recipe(HolderDPO(BETA)),
        "re-po": Recipe(REPO(BETA)),
        "adaptive-dpo (paper)": Recipe(AdaptiveDPO(BETA), **paper),
        "adaptive-ipo (paper)": Recipe(AdaptiveIPO(BETA), **paper),
        "p_flip: weight 1-2p": Recipe(dpo, weight=np.maximum(0.0, 1 - 2 * p)),
        "p_flip: soft labels": Recipe(DistilledDPO(BETA), gamma=posterior),
        "p_flip: drop-worst": Recipe(dpo, keep=~wrong),
        "p_flip: flip-worst": Recipe(dpo, turn=wrong),
        OURS: Recipe(DistilledDPO(BETA), gamma=noise.gap),
        "random-drop control": Recipe(dpo, keep=random),
        ORACLE: Recipe(dpo, keep=~flipped),
    }


def learn(material: Material, split: Split, noise: Noisy, recipe: Recipe) -> tuple[Float, int]:
    """Return right answers on clean test pairs under every penalty, [n, Q], and the tuned one."""
    on, held, flipped = split.train, split.validation, noise.flipped
    turned = flipped[on] ^ (False if recipe.turn is None else recipe.turn)
    keep = np.ones(len(on), bool) if recipe.keep is None else recipe.keep
    chosen = np.where(turned, material.rejected[on], material.chosen[on])[keep]
    rejected = np.where(turned, material.chosen[on], material.rejected[on])[keep]
    theta = train(split, (chosen, rejected), recipe, noise.annotator[keep])
    chosen = np.where(flipped, material.rejected, material.chosen)[held]
    rejected = np.where(flipped, material.chosen, material.rejected)[held]
    best = int(right(split, theta, chosen, rejected).mean(axis=0).argmax())
    return right(split, theta, material.chosen[split.test], material.rejected[split.test]), best
