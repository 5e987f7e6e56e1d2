"""Adaptive-DPO and Adaptive-IPO (2503.16921): every pair has a weight W and a margin Gamma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from noisescope.objectives.objective import Objective, PairValues, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class AdaptiveDPO(Objective):
    """-W log sigma(beta l - Gamma), W and Gamma detached (2503.16921, Eq. 16)."""

    def loss(self, values: PairValues) -> Tensor:
        _, gamma = values.need("weight", "gamma")
        return -log_sigmoid(self.margin(values) - gamma.detach())


@final
@dataclass(frozen=True)
class AdaptiveIPO(Objective):
    """W (l - Gamma - 1/(2 beta))^2 (2503.16921, Eq. 19)."""

    def loss(self, values: PairValues) -> Tensor:
        _, gamma = values.need("weight", "gamma")
        return (values.logratio - gamma.detach() - 1 / (2 * self.beta)) ** 2
