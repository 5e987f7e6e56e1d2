"""Algorithm 1 on the fly (2503.16921): W and Gamma of a micro-batch from the replicas' own l.

`replicas`, as the paper writes it: M adapters train together on the same pairs; u is Eq. 13 of
their M log-ratios. `ema`, as its code was released: the replicas are the live adapter and two
averaged copies of it (decays 0.9999 and 0.5); each copy's l is divided by its root mean square
and u is `u_released`. Two faults of the release are not repeated: the root mean square runs over
earlier steps, never over a pair's batch-mates, and nothing is changed in place that a gradient
needs. W and Gamma carry no gradient in either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, final

import numpy as np
from numpy.typing import NDArray

from noisescope.detectors import u, u_released
from noisescope.errors import UsageError
from noisescope.weights import WeightConfig, adaptive_weights

if TYPE_CHECKING:
    from torch import Tensor

Float = NDArray[np.float64]
Mode = Literal["replicas", "ema"]

MODES: tuple[Mode, ...] = ("replicas", "ema")
#: Decays of the released code's two averaged copies.
EMA_DECAYS = (0.9999, 0.5)
#: Decay of the running mean square that scales a copy's l.
SCALE_DECAY = 0.99


@final
@dataclass(frozen=True)
class OnlineConfig:
    """Which replicas judge, and the constants of Eq. 11, 14 and 15."""

    mode: Mode
    replicas: int = 4
    rho: float = 1.0
    weights: WeightConfig = field(default_factory=WeightConfig)

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
        """How many adapters stand side by side."""
        return self.replicas if self.mode == "replicas" else 1 + len(EMA_DECAYS)


@final
class Online:
    """The judge of one training run; `buffers` is its state."""

    def __init__(self, config: OnlineConfig) -> None:
        import torch

        self.config = config
        together = config.mode == "replicas"
        self.trained = tuple(range(config.adapters)) if together else (0,)
        self.watched = () if together else tuple(range(1, config.adapters))
        self.square = torch.zeros(config.adapters + 1, dtype=torch.float64)  # sums, then weight
        self._fresh = torch.zeros(config.adapters + 1, dtype=torch.float64)
        self.buffers = {"online": self.square}

    def judge(self, logratios: Float) -> Float:
        """u [B] of l [K, B]."""
        if self.config.mode == "replicas":
            return u(logratios, self.config.rho)
        return u_released(logratios, self.config.rho, self._scale())

    def weigh(self, logratios: Tensor) -> tuple[Tensor, Tensor]:
        """W and Gamma [B] of l [K, B], without gradient."""
        import torch

        found = logratios.double().cpu()
        self._fresh[:-1] += found.square().sum(1)
        self._fresh[-1] += found.shape[1]
        made = adaptive_weights(self.judge(found.numpy()), self.config.weights)
        weight, gamma = (torch.from_numpy(part).float().to(logratios.device) for part in made)
        return weight, gamma

    def forget(self) -> None:
        """Drop what this step has noted so far: it is taken again."""
        self._fresh.zero_()

    def finish(self, total: Callable[[Tensor], Tensor]) -> None:
        """Take the step's squares into the running mean."""
        self.square.mul_(SCALE_DECAY).add_(total(self._fresh))
        self._fresh.zero_()

    def _scale(self) -> Float:
        """Root mean square of each replica's l over earlier steps, [K, 1]; 1 where none."""
        held = self.square.numpy()
        scale = np.sqrt(held[:-1] / max(float(held[-1]), 1.0))
        return np.where(scale > 0, scale, 1.0)[:, None]
