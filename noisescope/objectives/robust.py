"""Objectives that expect wrong labels: a known rate of them, a bounded loss, or posteriors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from noisescope.objectives.objective import (
    Objective,
    PairValues,
    check_number,
    check_share,
    log_sigmoid,
)

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class CDPO(Objective):
    """-(1 - e) log sigma(h) - e log sigma(-h) (Mitchell 2023, "A note on DPO with noisy
    preferences"); e = `flip_rate`."""

    flip_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("flip-rate", self.flip_rate, 0.5)

    def loss(self, values: PairValues) -> Tensor:
        h, e = self.margin(values), self.flip_rate
        return -(1 - e) * log_sigmoid(h) - e * log_sigmoid(-h)


@final
@dataclass(frozen=True)
class RDPO(Objective):
    """[-(1 - e) log sigma(h) + e log sigma(-h)] / (1 - 2e) (2403.00409, Eq. 12): its mean over
    label flips at rate e is the clean DPO loss."""

    flip_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("flip-rate", self.flip_rate, 0.5)

    def loss(self, values: PairValues) -> Tensor:
        h, e = self.margin(values), self.flip_rate
        return (-(1 - e) * log_sigmoid(h) + e * log_sigmoid(-h)) / (1 - 2 * e)


@final
@dataclass(frozen=True)
class ROPO(Objective):
    """4a/(1+a)^2 [-log sigma(h) + a sigma(-h)] (2404.04102), a = 14."""

    a: float = 14.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("a", self.a, 0)

    def loss(self, values: PairValues) -> Tensor:
        h = self.margin(values)
        return 4 * self.a / (1 + self.a) ** 2 * (-log_sigmoid(h) + self.a * (-h).sigmoid())


@final
@dataclass(frozen=True)
class DrDPO(Objective):
    """-b' log mean_batch exp(-L_i/b') with L the DPO loss (2407.07880, Eq. 10), b' = 1.

    A loss of the whole micro-batch, repeated for each of its pairs so that their mean is it;
    weights enter inside the mean.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("temperature", self.temperature, 0)

    def __call__(self, values: PairValues) -> Tensor:
        return self.loss(values)

    def loss(self, values: PairValues) -> Tensor:
        import torch

        exponent = log_sigmoid(self.margin(values)) / self.temperature
        weight = torch.ones_like(exponent) if values.weight is None else values.weight.detach()
        total = torch.logsumexp(exponent + weight.log(), 0) - weight.sum().log()
        return (-self.temperature * total).expand_as(exponent)


@final
@dataclass(frozen=True)
class HolderDPO(Objective):
    """-(1 + g) p^g + g p^(1 + g), p = sigma(h) (2505.17859), g = 2."""

    g: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("g", self.g, 0)

    def loss(self, values: PairValues) -> Tensor:
        p = self.margin(values).sigmoid()
        return -(1 + self.g) * p**self.g + self.g * p ** (1 + self.g)


@final
@dataclass(frozen=True)
class REPO(Objective):
    """EM over annotators (RE-PO, ICLR 2026): -w log p - (1 - w) log(1 - p), w detached.

    E step: w = p n/(p n + (1 - p)(1 - n)). M step, the caller's: n <- mean of `posterior` over
    an annotator's pairs. Pairs without `reliability` take the objective's own n.
    """

    reliability: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("reliability", self.reliability, 0, 1)

    def posterior(self, values: PairValues) -> Tensor:
        """w [B]: the probability that the label is right, given the policy and n."""
        p = self.margin(values).detach().sigmoid()
        n = self.reliability if values.reliability is None else values.reliability
        return p * n / (p * n + (1 - p) * (1 - n))

    def loss(self, values: PairValues) -> Tensor:
        h, w = self.margin(values), self.posterior(values)
        return -w * log_sigmoid(h) - (1 - w) * log_sigmoid(-h)
