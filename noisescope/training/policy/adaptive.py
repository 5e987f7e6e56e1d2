"""Compute W and Gamma while training (Algorithm 1 of 2503.16921), and reliabilities of annotators.

`replicas`, as the paper writes it: M adapters train together on the same pairs; u is Eq. 13 of
their M log-ratios. `ema`, as its code was released: the replicas are the live adapter and two
averaged copies of it (decays 0.9999 and 0.5); each copy's l is divided by its expected batch norm
and u is `u_released`. Two faults of the release are not repeated: the norm's mean square is over
earlier steps, never over a pair's batch-mates, and nothing that a gradient needs is changed in
place. W and Gamma carry no gradient in either mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import UsageError
from noisescope.scoring.detectors import batch_norm, u, u_released
from noisescope.scoring.weights import WeightConfig, adaptive_weights
from noisescope.training.config import EMA_DECAYS

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.training.policy import Int


@final
class Reliability:
    """n of every annotator: (n0 + sum of w) / (1 + pairs met), w the latest posterior of a pair.

    `annotators` [N] names; pairs without one share an n. n0 counts as one pair, so that an
    annotator of few pairs is not believed to be perfect or hopeless.
    """

    def __init__(self, annotators: Sequence[str | None], n0: float) -> None:
        import torch

        names = sorted({name for name in annotators if name is not None})
        index = {name: code for code, name in enumerate(names)}
        codes = [len(names) if name is None else index[name] for name in annotators]
        self.codes = torch.tensor(codes, dtype=torch.long)  # [N]
        self.n0 = n0
        self.posterior = torch.full((len(codes),), torch.nan, dtype=torch.float64)
        self._fresh = torch.zeros(2, len(codes), dtype=torch.float64)  # sum of w, times met
        self.buffers = {"reliability": self.posterior}

    def of(self, pairs: Int) -> Tensor:
        """n of the annotators of some pairs, [B]."""
        import torch

        met = ~torch.isnan(self.posterior)
        count = int(self.codes.max()) + 1
        sums = torch.zeros(2, count, dtype=torch.float64)
        sums[0].index_add_(0, self.codes[met], self.posterior[met])
        sums[1].index_add_(0, self.codes[met], torch.ones_like(self.posterior[met]))
        n = (self.n0 + sums[0]) / (1 + sums[1])
        return n[self.codes[torch.from_numpy(np.asarray(pairs))]]

    def note(self, pairs: Int, posterior: Tensor) -> None:
        """Remember w [B] of some pairs until the step ends."""
        import torch

        where = torch.from_numpy(np.asarray(pairs))
        self._fresh[0, where] = posterior.detach().cpu().double()
        self._fresh[1, where] = 1

    def forget(self) -> None:
        """Drop what this step has recorded so far, because it is repeated."""
        self._fresh.zero_()

    def finish(self, total: Callable[[Tensor], Tensor]) -> None:
        """Add what all processes recorded in this step."""
        fresh = total(self._fresh)
        met = fresh[1] > 0
        self.posterior[met] = fresh[0, met] / fresh[1, met]
        self._fresh.zero_()


Float = NDArray[np.float64]
Mode = Literal["replicas", "ema"]

MODES: tuple[Mode, ...] = ("replicas", "ema")
#: Decay of the running mean square that scales a copy's l.
SCALE_DECAY = 0.99


@final
@dataclass(frozen=True)
class OnlineConfig:
    """Which replicas are compared, and the constants of Eq. 11, 14 and 15.

    `modality` decides the batch of the released code, whose norm `ema` divides by.
    """

    mode: Mode
    replicas: int = 4
    rho: float = 1.0
    weights: WeightConfig = field(default_factory=WeightConfig)
    modality: str = "text"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(
                f"--online must be one of {', '.join(MODES)}, not {self.mode}",
                hint="Leave it out to train with an audit's weights.",
            )
        if self.replicas < 2:
            raise UsageError(
                f"--online-replicas must be at least 2, not {self.replicas}: u needs a variance",
                hint="Try --online-replicas 4.",
            )

    @property
    def adapters(self) -> int:
        """How many adapters are trained or averaged."""
        return self.replicas if self.mode == "replicas" else 1 + len(EMA_DECAYS)


@final
class Online:
    """W and Gamma of one training; `buffers` is its state."""

    def __init__(self, config: OnlineConfig) -> None:
        import torch

        self.config = config
        together = config.mode == "replicas"
        self.trained = tuple(range(config.adapters)) if together else (0,)
        self.watched = () if together else tuple(range(1, config.adapters))
        self.square = torch.zeros(config.adapters + 1, dtype=torch.float64)  # sums, then weight
        self._fresh = torch.zeros(config.adapters + 1, dtype=torch.float64)
        self.buffers = {"online": self.square}

    def u(self, logratios: Float) -> Float:
        """u [B] of l [K, B]."""
        if self.config.mode == "replicas":
            return u(logratios, self.config.rho)
        return u_released(logratios, self.config.rho, self._scale())

    def weigh(self, logratios: Tensor) -> tuple[Tensor, Tensor]:
        """W and Gamma [B] of l [K, B], without gradient."""
        import torch

        found = logratios.cpu().double()
        self._fresh[:-1] += found.square().sum(1)
        self._fresh[-1] += found.shape[1]
        made = adaptive_weights(self.u(found.numpy()), self.config.weights)
        weight, gamma = (torch.from_numpy(part).float().to(logratios.device) for part in made)
        return weight, gamma

    def forget(self) -> None:
        """Drop what this step has recorded so far, because it is repeated."""
        self._fresh.zero_()

    def finish(self, total: Callable[[Tensor], Tensor]) -> None:
        """Take the step's squares into the running mean."""
        self.square.mul_(SCALE_DECAY).add_(total(self._fresh))
        self._fresh.zero_()

    def _scale(self) -> Float:
        """Batch norm of each replica's l from its earlier root mean square, [K, 1]; 1 if none."""
        held = self.square.numpy()
        scale = np.sqrt(held[:-1] / max(float(held[-1]), 1.0))
        return np.where(scale > 0, batch_norm(scale, self.config.modality), 1.0)[:, None]
