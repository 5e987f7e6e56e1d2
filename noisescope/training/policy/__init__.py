"""Train a policy on weighted preference pairs: the engine of `noisescope train`.

A `TrainablePolicy` (text.py, images.py) computes the log-likelihoods of both sides of pairs under
itself and its reference; `learner.PreferenceLearner` turns them into pair values for the loop, and
run.py is the whole training. Nothing outside `training` and `cli` needs this folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final

import numpy as np
from numpy.typing import NDArray

from noisescope.training.objectives import PairValues

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.training.pair_data import PairData

Int = NDArray[np.int64]


@final
@dataclass(frozen=True)
class PairLogps:
    """Log-likelihoods of B pairs under K replicas and the reference.

    Text: log pi(y|c) summed over tokens. Images: minus e, the error of Eq. 6, and one "token".
    """

    chosen: Tensor  # [K, B]
    rejected: Tensor  # [K, B]
    chosen_reference: Tensor  # [B]
    rejected_reference: Tensor  # [B]
    chosen_tokens: Tensor  # [B]
    rejected_tokens: Tensor  # [B]

    @property
    def logratios(self) -> Tensor:
        """l of every pair under every replica, [K, B]."""
        return (self.chosen - self.chosen_reference) - (self.rejected - self.rejected_reference)

    def values(
        self,
        replica: int,
        *,
        weight: Tensor | None = None,
        gamma: Tensor | None = None,
        reliability: Tensor | None = None,
    ) -> PairValues:
        """Pair values for objectives, under one replica."""
        chosen, rejected = self.chosen[replica], self.rejected[replica]
        chosen_ratio = chosen - self.chosen_reference
        rejected_ratio = rejected - self.rejected_reference
        return PairValues(
            chosen_ratio - rejected_ratio,
            weight=weight,
            gamma=gamma,
            chosen_logps=chosen,
            rejected_logps=rejected,
            chosen_ratio=chosen_ratio,
            rejected_ratio=rejected_ratio,
            chosen_tokens=self.chosen_tokens,
            rejected_tokens=self.rejected_tokens,
            reliability=reliability,
        )


class TrainablePolicy(Protocol):
    """A policy in training over the N pairs of `data`."""

    @property
    def data(self) -> PairData: ...

    @property
    def work(self) -> Int:
        """Cost of each pair in a forward, [N]: tokens, or latents."""

    @property
    def budget(self) -> int:
        """Most work one forward should hold."""

    def trainable(self) -> Mapping[str, Tensor]:
        """Named tensors to optimise, in a fixed order."""

    def clip(self, max_norm: float | None) -> float:
        """Clip the gradients in place; their norm before that."""

    def pair_logps(
        self, pairs: Int, draw: int, trained: Sequence[int] = (0,), watched: Sequence[int] = ()
    ) -> PairLogps:
        """Log-likelihoods of `pairs` under the `trained` replicas, with gradient, then the
        `watched` ones. `draw` chooses the noise of images: a function of (seed, pair, draw)."""

    def average(self, replica: int, copies: Mapping[str, Tensor]) -> None:
        """Make `replica` what `copies` (averages of `trainable`) hold of the first one."""

    def save(self, directory: Path) -> list[str]:
        """Write the trained policy in its library's own format; the files' names."""

    def detach(self) -> None:
        """Give the policy its own layers back."""
