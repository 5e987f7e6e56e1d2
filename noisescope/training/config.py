"""How to optimise: steps, AdamW's numbers, clipping, and the schedule of the learning rate.

TrainConfig(steps=100, schedule="cosine").rate(3)   # of 0-based step 3
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from noisescope.errors import UsageError

#: Share of the learning rate after warm-up, as a function of progress in [0, 1].
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


@final
@dataclass(frozen=True)
class TrainConfig:
    """How to optimise. `steps` are optimiser steps; `warmup` a share of them."""

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
        faults = [
            *([f"--steps must be at least 1, not {self.steps}"] if self.steps < 1 else []),
            *(
                [f"--learning-rate must be above 0, not {self.learning_rate}"]
                if not self.learning_rate > 0
                else []
            ),
            *(
                [f"--schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule}"]
                if self.schedule not in SCHEDULES
                else []
            ),
            *(
                [f"--warmup must be a share in [0, 1), not {self.warmup}"]
                if not 0 <= self.warmup < 1
                else []
            ),
        ]
        if faults:
            raise UsageError("; ".join(faults), hint="Run the command with --help.")

    def rate(self, step: int) -> float:
        """Learning rate of 0-based optimiser step `step`: linear warm-up, then the schedule."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        return self.learning_rate * SCHEDULES[self.schedule](
            (step - warm) / max(1, self.steps - warm)
        )
