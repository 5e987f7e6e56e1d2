"""Prepare a policy for training: adapters on it or all of its weights, and its reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from noisescope.errors import UsageError
from noisescope.models import Policy
from noisescope.pairs import Modality
from noisescope.progress import Reporter
from noisescope.training.pair_data import PairData
from noisescope.training.policy import Int, TrainablePolicy, images, text
from noisescope.training.policy.adaptive import MODES, Mode, OnlineConfig
from noisescope.training.policy.output import Trained
from noisescope.training.policy.settings import TrainSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

#: What prepares a policy of each modality.
BUILDERS: dict[Modality, Callable[..., tuple[TrainablePolicy, Int]]] = {
    "text": text.build,
    "vision": text.build,
    "image": images.build,
}


def online_config(settings: TrainSettings, modality: Modality = "text") -> OnlineConfig | None:
    """How W and Gamma are computed while training, if they are. Raises UsageError."""
    if settings.online is None:
        return None
    mode: Mode | None = next((mode for mode in MODES if mode == settings.online), None)
    if mode is None:
        raise UsageError(
            f"--online must be one of {', '.join(MODES)}, not {settings.online}",
            hint="Remove it to train with an audit's weights.",
        )
    constants = settings.constants
    return OnlineConfig(mode, settings.online_replicas, settings.rho, constants, modality)


def make_trainable(
    policy: Policy,
    data: PairData,
    settings: TrainSettings,
    trained: Trained,
    reporter: Reporter,
    accelerator: Accelerator,
) -> tuple[TrainablePolicy, Int]:
    """The policy ready to train, and the pairs whose two sides are the same to it."""
    config = online_config(settings, policy.modality)
    adapters = 1 if config is None else config.adapters
    averaged = config is not None and config.mode == "ema"
    seeds = [settings.seed * 1000 + (0 if averaged else m) for m in range(adapters)]
    build: Any = BUILDERS[policy.modality]
    made: tuple[TrainablePolicy, Int] = build(
        policy, data, settings, seeds, trained.reference, reporter, accelerator
    )
    return made
