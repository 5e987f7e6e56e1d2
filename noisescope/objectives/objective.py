"""What an objective is: from what a policy said about [B] pairs to [B] losses.

Notation (method.md): l = logratio, h = beta * l, p = sigma(h). Nothing here knows of models.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, final

from noisescope.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class PairValues:
    """What is known about B pairs; every tensor is [B], absent ones None.

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
    """Loss [B] of PairValues; `beta` scales l into the margin h."""

    beta: float = 0.1

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
            f"--parameter {name} must lie between {low:g} and {high:g}, not {value}",
            hint="docs/train.md lists each objective's own numbers.",
        )
