"""Settings of LoRA replicas; errors name their flags. Imports nothing heavy.

LoraConfig(replicas=8, top_layers=6)
known_fields(LoraConfig, {"rank": 8}, "text")   # settings a user gave, checked by name
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, final

from noisescope.errors import UsageError, not_among, out_of_range, refuse
from noisescope.training.config import EMA_DECAYS, SCHEDULES, TrainConfig

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


@dataclass(frozen=True)
class ReplicaConfig:
    """Settings that text and image replicas share: M replicas of rank `rank`.

    From 2 on, every pair is held out by at least one of them. `batch` pairs an optimiser step;
    `steps` overrides `epochs`; `checkpoints` T times margins are written. `folds_by` is what a half
    holds out whole (`groups.held_out_groups`). Raises UsageError naming every impossible flag.
    """

    replicas: int = 8
    rank: int = 16
    beta: float = 0.1
    learning_rate: float = 1e-3
    schedule: str = "linear"
    epochs: float = 1.0
    steps: int | None = None
    warmup: float = 0.1
    batch: int = 16
    checkpoints: int = 1
    save_every: int = 20
    seed: int = 0
    folds_by: str = "pair"
    #: Fewest replicas.
    fewest: ClassVar[int] = 1

    def __post_init__(self) -> None:
        refuse(self.faults(), hint="Run `noisescope fine-tune --help`.")

    def counts(self) -> dict[str, int | None]:
        """Settings that must be at least 1, by flag."""
        return {
            "--lora-r": self.rank,
            "--batch-size": self.batch,
            "--checkpoints": self.checkpoints,
            "--steps": self.steps,
        }

    def faults(self) -> list[str]:
        """One message for each impossible setting, by its flag."""
        positive = {
            "--beta": self.beta,
            "--learning-rate": self.learning_rate,
            "--epochs": self.epochs,
        }
        return [
            *out_of_range({"--replicas": self.replicas}, low=self.fewest),
            *out_of_range(self.counts(), low=1),
            *out_of_range(positive, above=0),
            *not_among("--schedule", self.schedule, SCHEDULES),
            *out_of_range({"--warmup": self.warmup}, low=0, below=1),
        ]

    def train_config(self, largest: int, evidence: str) -> TrainConfig:
        """The loop's settings for replicas that train on at most `largest` pairs each."""
        steps = max(1, round(self.epochs * largest / min(self.batch, largest)))
        return TrainConfig(
            steps=self.steps or steps,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            warmup=self.warmup,
            save_every=self.save_every,
            evidence=evidence,
        )


@final
@dataclass(frozen=True)
class LoraConfig(ReplicaConfig):
    """Replicas of a causal language model.

    `top_layers` None adapts every block, `targets` () every linear layer of one. A batch is
    computed in `accumulation` parts. Training ends early after `patience` checkpoints without a
    better held-out loss (0: never). `ema` adds two averaged copies a replica (`u_released`).
    `cluster` pairs that share responses are drawn together. `tokens` bounds what one forward holds.
    """

    alpha: float = 32.0
    targets: tuple[str, ...] = ()
    top_layers: int | None = 4
    weight_decay: float = 0.0
    accumulation: int = 1
    max_grad_norm: float = 1.0
    patience: int = 0
    ema: bool = False
    cluster: int = 16
    row_tokens: int = 256
    tokens: int = 2048
    checkpointing: bool = False

    def counts(self) -> dict[str, int | None]:
        own = {"--accumulation": self.accumulation, "--layers": self.top_layers}
        return super().counts() | own

    def faults(self) -> list[str]:
        found = [
            *super().faults(),
            *out_of_range({"--lora-alpha": self.alpha}, above=0),
            *out_of_range({"--early-stopping": self.patience}, low=0),
        ]
        if self.patience and self.patience >= self.checkpoints:
            found.append(
                f"--early-stopping {self.patience} needs more than {self.patience} --checkpoints"
            )
        return found

    def train_config(self, largest: int, evidence: str) -> TrainConfig:
        return replace(
            super().train_config(largest, evidence),
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            ema=EMA_DECAYS if self.ema else (),
        )


@final
@dataclass(frozen=True)
class DiffusionLoraConfig(ReplicaConfig):
    """Replicas of a diffusion model; `beta` as in Eq. 6, without DiffusionDPO's extra 0.5.

    `draws` is K, the (t, eps) draws that measure a pair: the policy's own number (`--draws`) if
    None. In training, every epoch sees the next of them, beginning anywhere. `rows` bounds the
    latents of one forward.
    """

    rank: int = 8
    beta: float = 2500.0
    epochs: float = 2.0
    batch: int = 32
    draws: int | None = None
    rows: int = 64
    fewest: ClassVar[int] = 2

    def counts(self) -> dict[str, int | None]:
        return {"--draws": self.draws, **super().counts()}


def known_fields(config: type[Any], given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """`given` settings for `config`. Raises UsageError naming every flag it does not use."""
    known = {field.name for field in fields(config)}
    unused = [FLAGS[name] for name in given if name not in known]
    if unused:
        raise UsageError(
            f"{', '.join(unused)} cannot be used here: {what}",
            hint="Remove them. `noisescope fine-tune --help` lists the flags.",
        )
    return dict(given)
