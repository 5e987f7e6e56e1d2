"""The policy that a training moves, made ready from its settings: adapters or all weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from noisescope.errors import UsageError
from noisescope.gathering import Reporter
from noisescope.learners import Int, Trainee
from noisescope.learners.online import MODES, Mode, OnlineConfig
from noisescope.learners.settings import TrainSettings
from noisescope.learners.trained import Trained
from noisescope.policies import Policy
from noisescope.replicas.packed import PairData

if TYPE_CHECKING:
    from accelerate import Accelerator


def online_config(settings: TrainSettings) -> OnlineConfig | None:
    """Who judges while training, if anybody. Raises UsageError."""
    if settings.online is None:
        return None
    mode: Mode | None = next((mode for mode in MODES if mode == settings.online), None)
    if mode is None:
        raise UsageError(
            f"--online must be one of {', '.join(MODES)}, not {settings.online}",
            hint="Leave it out to train with an audit's weights.",
        )
    return OnlineConfig(mode, settings.online_replicas, settings.rho, settings.constants)


def make_trainee(
    policy: Policy,
    data: PairData,
    settings: TrainSettings,
    trained: Trained,
    reporter: Reporter,
    accelerator: Accelerator,
) -> tuple[Trainee, Int]:
    """The policy ready to train, and the pairs whose sides it cannot tell apart."""
    from noisescope.policies.causal_lm import CausalLMPolicy
    from noisescope.policies.diffusion import DiffusionPolicy

    config = online_config(settings)
    adapters = 1 if config is None else config.adapters
    together = config is not None and config.mode == "ema"
    seeds = [settings.seed * 1000 + (0 if together else m) for m in range(adapters)]
    if isinstance(policy, CausalLMPolicy):
        from noisescope.learners.text import TextAdapters, WholeText, alike, text_space
        from noisescope.replicas.adapters import attach_adapters

        for remark in policy.remarks(data.items):
            reporter.note(remark)
        corpus, same = alike(policy, data)
        layers = None if settings.full else settings.layers
        with (
            reporter.stage("reference log-probabilities") as advance,
            accelerator.main_process_first(),
            accelerator.autocast(),  # rounded as the policy is: l is then 0 before the first step
        ):
            space = text_space(
                policy,
                data,
                corpus,
                trained.reference,
                layers=layers,
                checkpointing=settings.checkpointing,
                report=lambda stage, done, total: advance(done, total, None),
            )
        if settings.full:
            policy.model.requires_grad_(True)
            return WholeText(space), same
        first = space.trunk.cut.first
        made = attach_adapters(policy.model, adapters, settings.lora_r, first, settings.targets)
        made.initialise(seeds, settings.lora_alpha)
        return TextAdapters(space, made), same
    if isinstance(policy, DiffusionPolicy):
        from noisescope.learners.images import WholeUNet, image_adapters, image_space

        with reporter.stage("latents and embeddings") as advance, accelerator.main_process_first():
            place = trained.reference / "encodings"
            scene = image_space(policy, data, settings.seed, place, advance)
        if settings.full:
            return WholeUNet(scene, settings.checkpointing), np.zeros(0, np.int64)
        return image_adapters(
            scene,
            replicas=adapters,
            rank=settings.lora_r,
            alpha=settings.lora_alpha,
            seeds=seeds,
            layers=settings.layers,
            checkpointing=settings.checkpointing,
        ), np.zeros(0, np.int64)
    raise UsageError(f"{policy.identity.id} cannot be trained")
