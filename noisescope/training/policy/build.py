"""The policy that a training moves, made ready from its settings: adapters or all weights."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from noisescope.errors import RunError, UsageError
from noisescope.models import Policy
from noisescope.progress import Reporter
from noisescope.storage.files import read_sealed
from noisescope.training.pair_data import PairData
from noisescope.training.policy import Int, Trainee
from noisescope.training.policy.adaptive import MODES, Mode, OnlineConfig
from noisescope.training.policy.distributed import sharding
from noisescope.training.policy.learner import total_over
from noisescope.training.policy.output import Trained
from noisescope.training.policy.settings import TrainSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

    from noisescope.models.causal_lm import CausalLMPolicy
    from noisescope.training.policy.distributed import Shards

#: Stands beside one process's reference log-probabilities once all of them are there.
WHOLE = "whole"


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


def _cut(
    policy: CausalLMPolicy, settings: TrainSettings, accelerator: Accelerator
) -> Shards | None:
    """The policy's weights cut among processes, if the launcher asks for that."""
    if not sharding():
        return None
    from noisescope.training.policy.distributed import cut_weights

    return cut_weights(
        policy.model,
        accelerator.device,
        train=settings.full,
        mixed=str(accelerator.mixed_precision),
    )


def own_reference(directory: Path, accelerator: Accelerator) -> Path:
    """This process's own place for reference log-probabilities, empty unless every process has
    all of them: those that compute have to do so side by side."""
    import torch

    own = directory / f"process-{accelerator.process_index}"
    held = torch.tensor([(own / WHOLE).exists() and all(map(_reads, own.glob("*.safetensors")))])
    if int(total_over(held.long(), accelerator)) < accelerator.num_processes:
        shutil.rmtree(own, ignore_errors=True)
    return own


def _reads(path: Path) -> bool:
    """Whether a sealed file is as it was written."""
    try:
        read_sealed(path)
    except RunError:
        return False
    return True


def make_trainee(
    policy: Policy,
    data: PairData,
    settings: TrainSettings,
    trained: Trained,
    reporter: Reporter,
    accelerator: Accelerator,
) -> tuple[Trainee, Int]:
    """The policy ready to train, and the pairs whose sides it cannot tell apart."""
    from noisescope.models.causal_lm import CausalLMPolicy
    from noisescope.models.diffusion import DiffusionPolicy

    config = online_config(settings)
    adapters = 1 if config is None else config.adapters
    together = config is not None and config.mode == "ema"
    seeds = [settings.seed * 1000 + (0 if together else m) for m in range(adapters)]
    if isinstance(policy, CausalLMPolicy):
        from noisescope.training.lora.adapters import attach_adapters
        from noisescope.training.policy.memory import spare_products
        from noisescope.training.policy.text import TextAdapters, WholeText, alike, text_space

        corpus, same = alike(policy, data)
        layers = None if settings.full else settings.layers
        restore = None if settings.checkpointing else spare_products(policy.model)
        shards = _cut(policy, settings, accelerator)
        place = trained.reference
        if shards is not None:
            reporter.note(f"FSDP: weights cut among {accelerator.num_processes} processes")
            place = own_reference(place, accelerator)
        with (
            reporter.stage("reference log-probabilities") as advance,
            accelerator.main_process_first() if shards is None else nullcontext(),
            accelerator.autocast(),  # rounded as the policy is: l is then 0 before the first step
        ):
            space = text_space(
                policy,
                data,
                corpus,
                place,
                layers=layers,
                checkpointing=settings.checkpointing,
                report=lambda stage, done, total: advance(done, total, None),
                shards=shards,
                restore=restore,
            )
        if shards is not None:
            (place / WHOLE).touch()
        if settings.full:
            policy.model.requires_grad_(True)
            return WholeText(space), same
        first = space.trunk.cut.first
        made = attach_adapters(policy.model, adapters, settings.lora_r, first, settings.targets)
        made.initialise(seeds, settings.lora_alpha)
        return TextAdapters(space, made), same
    if isinstance(policy, DiffusionPolicy):
        from noisescope.training.policy.images import WholeUNet, image_adapters, image_space

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
