"""Settings of the optimiser: steps, AdamW's numbers, clipping, and the learning rate's schedule.

TrainConfig(steps=100, schedule="cosine").rate(3)   # of 0-based step 3
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from noisescope.errors import not_among, out_of_range, refuse

#: Share of the learning rate after warm-up, as a function of progress in [0, 1].
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
#: Decays of the two averaged copies in the released code of 2503.16921 (`u_released`).
EMA_DECAYS = (0.9999, 0.5)


@final
@dataclass(frozen=True)
class TrainConfig:
    """How to optimise: `steps` optimiser steps, `warmup` a share of them."""

    steps: int
    learning_rate: float = 1e-4
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    ema: tuple[float, ...] = ()
    save_every: int = 50
    evidence: str = ""  # fingerprint of the data, model and settings a saved state belongs to

    def __post_init__(self) -> None:
        refuse(
            [
                *out_of_range({"--steps": self.steps}, low=1),
                *out_of_range({"--learning-rate": self.learning_rate}, above=0),
                *not_among("--schedule", self.schedule, SCHEDULES),
                *out_of_range({"--warmup": self.warmup}, low=0, below=1),
            ],
            hint="Run the command with --help.",
        )

    def rate(self, step: int) -> float:
        """Learning rate of 0-based optimiser step `step`: linear warm-up, then the schedule."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        return self.learning_rate * SCHEDULES[self.schedule](
            (step - warm) / max(1, self.steps - warm)
        )
