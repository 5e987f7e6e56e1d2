"""Objectives of an audit's columns: every pair has a weight W and a margin Gamma."""

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


@final
@dataclass(frozen=True)
class DistilledDPO(Objective):
    """-t log sigma(h) - (1 - t) log sigma(-h), t = sigma(Gamma): smallest at h = Gamma.

    Gamma is the margin an audit believes in, in the label's direction (`--weighting margin`), and
    the label itself counts only through it. Distilling a reward model into a policy is 2405.19316,
    there by squared error; the cross entropy is DPO where the audit is certain (Gamma large).
    """

    def loss(self, values: PairValues) -> Tensor:
        (gamma,) = values.need("gamma")
        h, t = self.margin(values), gamma.detach().sigmoid()
        return -t * log_sigmoid(h) - (1 - t) * log_sigmoid(-h)
