"""Objectives that take every label as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from noisescope.objectives.objective import Objective, PairValues, check_number, log_sigmoid

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class DPO(Objective):
    """-log sigma(beta l) (2305.18290, Eq. 7)."""

    def loss(self, values: PairValues) -> Tensor:
        return -log_sigmoid(self.margin(values))


@final
@dataclass(frozen=True)
class IPO(Objective):
    """(l - 1/(2 beta))^2 (2310.12036, Eq. 17); its minimum is at l = 1/(2 beta)."""

    def loss(self, values: PairValues) -> Tensor:
        return (values.logratio - 1 / (2 * self.beta)) ** 2


@final
@dataclass(frozen=True)
class Hinge(Objective):
    """max(0, 1 - h) (SLiC-HF, 2305.10425)."""

    def loss(self, values: PairValues) -> Tensor:
        return (1 - self.margin(values)).clamp(min=0)


@final
@dataclass(frozen=True)
class MaPO(Objective):
    """Reference-free: -log sigma(beta (s_w - s_l)) - s_w (2406.06424).

    s is the mean log-likelihood of a side: log pi per token (text), minus the mean squared
    noise error (images, whose callers give `*_logps` = -error and `*_tokens` = 1).
    """

    def loss(self, values: PairValues) -> Tensor:
        chosen, rejected, chosen_tokens, rejected_tokens = values.need(
            "chosen_logps", "rejected_logps", "chosen_tokens", "rejected_tokens"
        )
        s_chosen, s_rejected = chosen / chosen_tokens, rejected / rejected_tokens
        return -log_sigmoid(self.beta * (s_chosen - s_rejected)) - s_chosen


@final
@dataclass(frozen=True)
class LengthNormalisedDPO(Objective):
    """-log sigma(beta (r_w/|w| - r_l/|l|)), r = log pi - log pi_ref of a side (2407.15229)."""

    beta: float = 2.0

    def margin(self, values: PairValues) -> Tensor:
        chosen, rejected, chosen_tokens, rejected_tokens = values.need(
            "chosen_ratio", "rejected_ratio", "chosen_tokens", "rejected_tokens"
        )
        return self.beta * (chosen / chosen_tokens - rejected / rejected_tokens)

    def loss(self, values: PairValues) -> Tensor:
        return -log_sigmoid(self.margin(values))


@final
@dataclass(frozen=True)
class RPO(Objective):
    """-log sigma(h) + a * NLL(chosen)/|chosen| (2404.19733, Eq. 2; cf. 2405.16436), a = 1."""

    a: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("a", self.a, 0)

    def loss(self, values: PairValues) -> Tensor:
        chosen, tokens = values.need("chosen_logps", "chosen_tokens")
        return -log_sigmoid(self.margin(values)) - self.a * chosen / tokens
