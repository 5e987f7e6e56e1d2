"""Preference objectives: frozen callables from the values of [B] pairs to [B] losses.

Notation (docs/method.md): l = logratio, h = beta * l, p = sigma(h). An objective returns one loss a
pair, already times `weight` where given; the caller averages. No models here.

    loss = OBJECTIVES["adaptive-dpo"](beta=0.1)(PairValues(l, weight=W, gamma=gamma)).mean()
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, final

from noisescope.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class PairValues:
    """Values of B pairs under a policy; every tensor is [B], absent ones None.

    `logratio` l; `weight` W and `gamma` Gamma (both detached, from an audit); `chosen_logps` and
    `rejected_logps` log pi(y|c), summed over tokens; `chosen_ratio` and `rejected_ratio`
    log pi(y|c) - log pi_ref(y|c); `*_tokens` response lengths; `reliability` the share n of
    right labels of the pair's annotator (RE-PO).
    """

    logratio: Tensor
    weight: Tensor | None = None
    gamma: Tensor | None = None
    chosen_logps: Tensor | None = None
    rejected_logps: Tensor | None = None
    chosen_ratio: Tensor | None = None
    rejected_ratio: Tensor | None = None
    chosen_tokens: Tensor | None = None
    rejected_tokens: Tensor | None = None
    reliability: Tensor | None = None

    def need(self, *names: str) -> list[Tensor]:
        """The named tensors; raises UsageError naming those that are absent."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        absent = [name for name in names if held[name] is None]
        if absent:
            raise UsageError(
                f"this objective needs {', '.join(absent)} for every pair",
                hint="Give --weights RUN (made by `noisescope score`), or choose --objective dpo.",
            )
        return [held[name] for name in names]


def log_sigmoid(x: Tensor) -> Tensor:
    """log sigma(x)."""
    import torch.nn.functional as F

    return F.logsigmoid(x)


@dataclass(frozen=True)
class Objective(ABC):
    """Loss [B] of PairValues; `beta` scales l into the margin h.

    `whole_batch`: whether a pair's loss depends on the other pairs of its micro-batch.
    """

    beta: float = 0.1
    whole_batch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UsageError(f"--beta must be above 0, not {self.beta}", hint="Try --beta 0.1.")

    def __call__(self, values: PairValues) -> Tensor:
        """Weighted loss a pair, [B]."""
        loss = self.loss(values)
        return loss if values.weight is None else values.weight.detach() * loss

    @abstractmethod
    def loss(self, values: PairValues) -> Tensor:
        """Unweighted loss a pair, [B]."""

    def margin(self, values: PairValues) -> Tensor:
        """h = beta * l, [B]."""
        return self.beta * values.logratio


def check_share(name: str, value: float, below: float) -> None:
    if not 0 <= value < below:
        raise UsageError(
            f"--{name} must be at least 0 and below {below:g}, not {value}", hint="Try 0.2."
        )


def check_number(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low < value < high:
        raise UsageError(
            f"--parameter {name} must be between {low:g} and {high:g}, not {value}",
            hint="docs/train.md lists each objective's own numbers.",
        )


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
    whole_batch: ClassVar[bool] = True

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


@dataclass(frozen=True)
class DistilledDPO(Objective):
    """-t log sigma(h) - (1 - t) log sigma(-h), t = sigma(Gamma): smallest at h = Gamma.

    Gamma is the audit's calibrated margin, in the label's direction (`--weighting margin`), and
    the label itself counts only through it. Distilling a reward model into a policy is 2405.19316,
    there by squared error; the cross entropy is DPO where the audit is certain (Gamma large).
    """

    def loss(self, values: PairValues) -> Tensor:
        (gamma,) = values.need("gamma")
        h, t = self.margin(values), gamma.detach().sigmoid()
        return -t * log_sigmoid(h) - (1 - t) * log_sigmoid(-h)


@final
@dataclass(frozen=True)
class SoftDPO(DistilledDPO):
    """-(1 - p) log sigma(h) - p log sigma(-h): cDPO with a pair's own p = p_wrong.

    Gamma carries p as log((1 - p)/p), the log odds that the label is right (`--weighting soft`):
    reviews, annotators and other evidence enter through it. p = 0 is DPO, p = 1 the flipped label.
    """


@final
@dataclass(frozen=True)
class ForwardDPO(DistilledDPO):
    """-log[(1 - p) sigma(h) + p sigma(-h)]: the likelihood of a label that is wrong with chance p.

    p = p_prior, what is known of the label without its responses (annotator, reviews, outside
    evidence), enters as Gamma = log((1 - p)/p) (`--weighting prior`); the policy itself is the
    model of the responses. The "forward" correction of 1609.03683, Theorem 2, for two classes with
    a rate a pair. p = 0 is DPO; p = 1/2 teaches nothing.
    """

    def loss(self, values: PairValues) -> Tensor:
        (gamma,) = values.need("gamma")
        h, odds = self.margin(values), gamma.detach()
        right, wrong = log_sigmoid(odds) + log_sigmoid(h), log_sigmoid(-odds) + log_sigmoid(-h)
        return -right.logaddexp(wrong)


OBJECTIVES: dict[str, type[Objective]] = {
    "dpo": DPO,
    "ipo": IPO,
    "hinge": Hinge,
    "adaptive-dpo": AdaptiveDPO,
    "adaptive-ipo": AdaptiveIPO,
    "forward-dpo": ForwardDPO,
    "soft-dpo": SoftDPO,
    "distilled-dpo": DistilledDPO,
    "cdpo": CDPO,
    "rdpo": RDPO,
    "ropo": ROPO,
    "dr-dpo": DrDPO,
    "holder-dpo": HolderDPO,
    "re-po": REPO,
    "mapo": MaPO,
    "ln-dpo": LengthNormalisedDPO,
    "rpo": RPO,
}


def objective_name(objective: Objective) -> str:
    """The name of an objective in `OBJECTIVES`, or of its class if it is not listed there."""
    names = {kind: name for name, kind in OBJECTIVES.items()}
    return names.get(type(objective), type(objective).__name__)


__all__ = [
    "CDPO",
    "DPO",
    "IPO",
    "OBJECTIVES",
    "RDPO",
    "REPO",
    "ROPO",
    "RPO",
    "AdaptiveDPO",
    "AdaptiveIPO",
    "DistilledDPO",
    "DrDPO",
    "ForwardDPO",
    "Hinge",
    "HolderDPO",
    "LengthNormalisedDPO",
    "MaPO",
    "Objective",
    "PairValues",
    "SoftDPO",
    "objective_name",
]
