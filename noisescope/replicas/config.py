"""Settings of LoRA replicas, in the words of their flags. Loads nothing heavy.

LoraConfig(replicas=8, top_layers=6)
known_fields(LoraConfig, {"rank": 8}, "text")   # what a user gave, checked by name
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, final

from noisescope.errors import UsageError

#: Field of a LoRA config -> its flag.
FLAGS: dict[str, str] = {
    "rank": "--lora-r",
    "alpha": "--lora-alpha",
    "targets": "--targets",
    "top_layers": "--layers",
    "learning_rate": "--learning-rate",
    "schedule": "--schedule",
    "epochs": "--epochs",
    "steps": "--steps",
    "warmup": "--warmup",
    "batch": "--batch-size",
    "accumulation": "--accumulation",
    "checkpoints": "--checkpoints",
    "patience": "--early-stopping",
    "ema": "--ema",
    "checkpointing": "--gradient-checkpointing",
}


@final
@dataclass(frozen=True)
class LoraConfig:
    """M replicas: from 2 on, every pair is held out by one of them at least.

    `top_layers` None adapts every block, `targets` () every linear layer of one.
    `batch` pairs an optimiser step, in `accumulation` parts; `steps` overrides `epochs`;
    `checkpoints` T times margins are written; training ends early after `patience` checkpoints
    without a better held-out loss (0: never). `ema` adds two averaged copies a replica
    (`u_released`). `cluster` pairs that share responses are drawn together. `tokens` bounds what
    one forward holds. Raises UsageError naming every impossible flag.
    """

    replicas: int = 8
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()
    top_layers: int | None = 4
    beta: float = 0.1
    learning_rate: float = 1e-3
    schedule: str = "linear"
    epochs: float = 1.0
    steps: int | None = None
    warmup: float = 0.1
    weight_decay: float = 0.0
    batch: int = 16
    accumulation: int = 1
    max_grad_norm: float = 1.0
    checkpoints: int = 1
    patience: int = 0
    ema: bool = False
    cluster: int = 16
    row_tokens: int = 256
    tokens: int = 2048
    checkpointing: bool = False
    save_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        from noisescope.training.loop import SCHEDULES

        given = {
            "--replicas": self.replicas,
            "--lora-r": self.rank,
            "--batch-size": self.batch,
            "--accumulation": self.accumulation,
            "--checkpoints": self.checkpoints,
            "--layers": 1 if self.top_layers is None else self.top_layers,
            "--steps": 1 if self.steps is None else self.steps,
        }
        faults = [
            f"{flag} must be at least 1, not {value}" for flag, value in given.items() if value < 1
        ]
        above = {
            "--lora-alpha": self.alpha,
            "--beta": self.beta,
            "--learning-rate": self.learning_rate,
            "--epochs": self.epochs,
        }
        faults += [
            f"{flag} must be above 0 and finite, not {value:g}"
            for flag, value in above.items()
            if not (value > 0 and isfinite(value))
        ]
        if self.schedule not in SCHEDULES:
            faults.append(f"--schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule}")
        if not 0 <= self.warmup < 1:
            faults.append(f"--warmup must be a share in [0, 1), not {self.warmup:g}")
        if self.patience < 0:
            faults.append(f"--early-stopping must be 0 or more, not {self.patience}")
        elif self.patience and self.patience >= self.checkpoints:
            faults.append(
                f"--early-stopping {self.patience} needs more than {self.patience} --checkpoints"
            )
        if faults:
            raise UsageError("; ".join(faults), hint="Run `noisescope fine-tune --help`.")


def known_fields(config: type[Any], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """`given` settings for `config`. Raises UsageError naming every flag it has no use for."""
    known = {field.name for field in fields(config)}
    foreign = [FLAGS[name] for name in given if name not in known]
    if foreign:
        raise UsageError(
            f"{', '.join(foreign)} cannot be used here: {what}",
            hint="Leave them out. `noisescope fine-tune --help` lists the flags.",
        )
    return dict(given)
