"""Methods of others that no command offers, for the comparison of `downstream.soft`.

recipes = rivals(margins, p_wrong)    # of an audit, [n] each; by name

Curry-DPO (2403.07230): easy pairs first, here in thirds. SPA's self-refinement (2406.04412): labels
the policy is least sure of are smoothed. MM-RLHF's dynamic reward scaling (2502.10391): beta grows
with the margin of a reward model, here the audit's. Relabelling (Selfee, 2402.03469, and SPA):
labels that look wrong are reversed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.detect import BETA, Float
from benchmarks.downstream.policies import Recipe
from noisescope.training.objectives import DPO, Objective, PairValues, log_sigmoid


@dataclass(frozen=True)
class SelfRefined(Objective):
    """-(1 - a) log sigma(h) - a log sigma(-h), a = 0.1 for the tenth of pairs of lowest h, else 0.

    2406.04412, Eq. 9 to 11, with the policy's own margin as its confidence.
    """

    share: float = 0.1
    smoothing: float = 0.1

    def loss(self, values: PairValues) -> torch.Tensor:
        h = self.margin(values)
        unsure = h.detach() < h.detach().quantile(self.share, dim=0)
        a = self.smoothing * unsure
        return -(1 - a) * log_sigmoid(h) - a * log_sigmoid(-h)


@dataclass(frozen=True)
class RewardScaled(Objective):
    """-log sigma(b h), b = 1 + w (1 - exp(-k d)), d = max(0, Gamma): 2502.10391, Eq. 5."""

    w: float = 0.5
    k: float = 0.5

    def loss(self, values: PairValues) -> torch.Tensor:
        (gamma,) = values.need("gamma")
        scale = 1 + self.w * (1 - (-self.k * gamma.clamp(min=0)).exp())
        return -log_sigmoid(scale * self.margin(values))


def rivals(margins: Float, p_wrong: Float) -> dict[str, Recipe]:
    """Every method, from the mean held-out margins [n] and p_wrong [n] of an audit."""
    return {
        "relabel p_wrong >= .5": Recipe(DPO(BETA), turn=p_wrong >= 0.5),
        "easy to hard by |margin|": Recipe(DPO(BETA), stage=thirds(-np.abs(margins))),
        "easy to hard by p_wrong": Recipe(DPO(BETA), stage=thirds(p_wrong)),
        "self-refined labels": Recipe(SelfRefined(BETA)),
        "reward scaling": Recipe(RewardScaled(BETA), gamma=margins),
    }


def thirds(values: Float) -> NDArray[np.int64]:
    """The third of the order of values [n] that each is in, 0 to 2."""
    return np.argsort(np.argsort(values, kind="stable")) * 3 // len(values)
