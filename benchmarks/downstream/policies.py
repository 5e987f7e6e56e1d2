"""Train log-linear policies on frozen features: every objective in about a second.

pi(y|c) ~ exp(theta . phi(c, y)), so l = theta . (phi_chosen - phi_rejected) / beta. All methods:
full-batch Adam, 400 steps, learning rate .02 falling to 0, loss scaled to DPO's slope at l = 0,
every L2 penalty at once. Objectives are those of `noisescope.training.objectives`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from benchmarks.detect import BETA, Bool, Float, Material
from noisescope.replicas.prior import unit_scale
from noisescope.training.objectives import REPO, DistilledDPO, Objective, PairValues

Int = NDArray[np.int64]
STEPS, RATE = 400, 0.02
#: L2 penalties tried, on the scale where every group of features gives margins of sd 1.
PENALTIES = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Split:
    """Responses as rows [R, K]; pairs by part."""

    rows: torch.Tensor
    train: Int
    validation: Int
    test: Int


@dataclass(frozen=True)
class Recipe:
    """What a method trains on: n training pairs, or those it keeps; `turn` reverses labels.

    `stage` [n]: pairs of stage s = 0 .. S - 1 are learnt from the share s / S of the steps on.
    """

    objective: Objective
    weight: Float | None = None
    gamma: Float | None = None
    keep: Bool | None = None
    turn: Bool | None = None
    stage: Int | None = None


def split_of(material: Material, test: Bool, validation: Bool) -> Split:
    """Scale features by the differences of the training pairs and rotate them to their axes."""
    train = np.flatnonzero(~test & ~validation)
    ends = material.chosen[train], material.rejected[train]
    scaled = [x * unit_scale(x, *ends) for x in material.features.values()]
    whole = np.concatenate(scaled, axis=1).astype(np.float64)
    whole -= whole[np.unique(np.concatenate(ends))].mean(axis=0)
    values, axes = np.linalg.eigh(whole @ whole.T)
    kept = values > values[-1] * 1e-6
    rows = torch.tensor(axes[:, kept] * np.sqrt(values[kept]), dtype=torch.float32)
    return Split(rows, train, np.flatnonzero(validation), np.flatnonzero(test))


def train(split: Split, ends: tuple[Int, Int], recipe: Recipe, annotator: Int) -> torch.Tensor:
    """Return theta * beta of every penalty at once, [K, Q].

    l = A rows theta / beta, A [n, R] the incidence of pairs: the objective gives dL/dl by autograd,
    the rest of the chain is two products over the responses of the pairs.
    """
    used, places = np.unique(np.stack(ends, axis=1), return_inverse=True)
    n, rows = len(ends[0]), split.rows.numpy()[used]  # numpy: thin products, twice as fast
    signs = np.tile(np.array([1, -1], np.float32), n)
    starts = np.arange(0, 2 * n + 1, 2)
    incidence = csr_array((signs, places.ravel(), starts), shape=(n, len(used)))
    adjoint = incidence.T.tocsr()
    penalties = np.array(PENALTIES, np.float32)
    theta = np.zeros((rows.shape[1], len(PENALTIES)), np.float32)
    mean, square = np.zeros_like(theta), np.zeros_like(theta)
    given = {
        name: None if value is None else torch.tensor(value, dtype=torch.float32)[:, None]
        for name, value in (("weight", recipe.weight), ("gamma", recipe.gamma))
    }
    slope, reliability = slope_at_zero(recipe.objective), None
    for step in range(STEPS):
        logratio = torch.from_numpy(incidence @ (rows @ theta) / np.float32(BETA)).requires_grad_()
        values = PairValues(logratio, reliability=reliability, **given)
        losses = recipe.objective(values)
        if recipe.stage is not None:
            reached = recipe.stage * STEPS <= step * (recipe.stage.max() + 1)
            losses = losses * torch.tensor(reached / reached.mean(), dtype=torch.float32)[:, None]
        loss = losses.mean(0).sum() / (slope * BETA)
        (slopes,) = torch.autograd.grad(loss, logratio)
        if isinstance(recipe.objective, REPO):
            reliability = by_annotator(recipe.objective.posterior(values), annotator)
        gradient = rows.T @ (adjoint @ slopes.numpy()) + penalties * theta
        mean += 0.1 * (gradient - mean)  # Adam
        square += 0.001 * (gradient**2 - square)
        seen = np.sqrt(square / (1 - 0.999 ** (step + 1))) + 1e-8
        theta -= RATE * (1 - step / STEPS) / (1 - 0.9 ** (step + 1)) * mean / seen
    return torch.from_numpy(theta)


def slope_at_zero(objective: Objective) -> float:
    """Return |dL/dh| at l = 0 over DPO's 1/2, for a trusted pair of weight 1."""
    logratio = torch.zeros(2, requires_grad=True)
    ones = torch.ones(2)
    gamma = (12.0 if isinstance(objective, DistilledDPO) else 0.0) * ones
    loss = objective(PairValues(logratio, weight=ones, gamma=gamma)).mean()
    (gradient,) = torch.autograd.grad(loss, logratio)
    return float(gradient.sum().abs()) / BETA / 0.5


def by_annotator(posterior: torch.Tensor, annotator: Int) -> torch.Tensor:
    """Compute RE-PO's M step: each annotator's mean posterior, for each of their pairs, [n, Q]."""
    who = torch.tensor(annotator)
    size = int(who.max()) + 1
    total = torch.zeros(size, posterior.shape[1]).index_add_(0, who, posterior)
    return (total / torch.bincount(who, minlength=size).clamp(min=1)[:, None])[who]


def right(split: Split, theta: torch.Tensor, chosen: Int, rejected: Int) -> Float:
    """Return 1 where the reward prefers `chosen`, ties 1/2, [n, Q]."""
    rewards = (split.rows @ theta).numpy()
    gap = rewards[chosen] - rewards[rejected]
    return ((gap > 0) + 0.5 * (gap == 0)).astype(np.float64)
