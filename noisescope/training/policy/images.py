"""Train a diffusion model: packed LoRA adapters on its attention layers, or the whole denoiser.

l is Eq. 6 of 2503.16921 (Diffusion-DPO, 2311.12908): both sides, the policy and its reference
see the same timestep and noise, a function of (seed, pair_id, draw), one draw a step. Latents and
text embeddings are cached; the reference is the denoiser with its adapters off.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from noisescope.training.lora.unet import attention_layers, save_unet_adapter
from noisescope.training.noisy_pairs import Noised, NoisedPairs
from noisescope.training.pair_data import PairData
from noisescope.training.policy import Int, PairLogps, TrainablePolicy
from noisescope.training.policy.models import AdaptedModel, WholeModel, publish

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from noisescope.models.denoiser import Denoiser, Half
    from noisescope.models.diffusion import DiffusionPolicy
    from noisescope.progress import Progress, Reporter
    from noisescope.training.policy.settings import TrainSettings

#: Latent positions of one forward, by device type.
FORWARD_POSITIONS = {"cpu": 16384, "cuda": 131072}


@final
@dataclass(frozen=True)
class ImageSpace:
    """The pairs of a diffusion policy, noised when needed, by one independent draw each."""

    policy: DiffusionPolicy
    data: PairData
    seed: int

    @cached_property
    def work(self) -> Int:
        """Latent positions of a pair's two sides, [N]."""
        _, height, width = self.policy.latent_shape
        return np.full(len(self.data.pair_ids), 2 * height * width, np.int64)

    @property
    def budget(self) -> int:
        return FORWARD_POSITIONS.get(self.policy.device.type, 16384)

    @property
    def denoiser(self) -> Denoiser:
        return self.policy.pipeline.denoiser

    def noised(self, pairs: Int, draw: int) -> Noised:
        """Rows of some pairs under `draw`: all chosen, then all rejected."""
        return NoisedPairs(self.policy, self.data, self.seed).noised(pairs, [(draw,)] * len(pairs))

    def pair_logps(self, errors: Tensor, reference: Tensor) -> PairLogps:
        """Log-likelihoods (-e) from errors e [K, 2B] and those of the reference [2B]."""
        import torch

        middle = len(reference) // 2
        ones = torch.ones(middle, device=reference.device)
        return PairLogps(
            -errors[:, :middle],
            -errors[:, middle:],
            -reference[:middle],
            -reference[middle:],
            ones,
            ones,
        )


@final
@dataclass
class ImageAdapters(AdaptedModel[ImageSpace]):
    """LoRA on a denoiser's attention layers (`TrainablePolicy`); `split` blocks carry no adapters
    and run once for the policy and its reference."""

    split: int = 0
    checkpointing: bool = False

    def pair_logps(
        self, pairs: Int, draw: int, trained: Sequence[int] = (0,), watched: Sequence[int] = ()
    ) -> PairLogps:
        import torch

        rows = self.space.noised(pairs, draw)
        inputs = (rows.latents, rows.t, rows.conditioning)
        with torch.no_grad():
            half = self.space.denoiser.below(*inputs, self.split) if self.split else None
            reference = self._errors(rows, half, ())[0]
            seen = [self._errors(rows, half, watched)] if watched else []
        errors = torch.cat([self._errors(rows, half, trained), *seen])
        return self.space.pair_logps(errors, reference)

    def _errors(self, rows: Noised, half: Half | None, replicas: Sequence[int]) -> Tensor:
        """e of Eq. 6 under some adapters, [K, 2B]; none: adapters off, [1, 2B]."""
        import torch

        count, size = max(1, len(replicas)), len(rows.t)
        index = torch.arange(size, device=rows.t.device).repeat(count)
        placement = self.adapters.placement
        placement.segments = tuple((m, k * size, (k + 1) * size) for k, m in enumerate(replicas))
        try:
            if half is not None:
                guess = self.space.denoiser.above(half.rows(index))
            else:
                conditioning = rows.conditioning.rows(index)
                guess = self.space.denoiser(rows.latents[index], rows.t[index], conditioning)
        finally:
            if not (self.checkpointing and replicas):  # recomputed blocks need it again
                placement.segments = ()
        wrong = (guess.float() - rows.target[index]).square().mean(dim=(1, 2, 3))
        return wrong.view(count, size)

    def save(self, directory: Path) -> list[str]:
        """What `pipeline.load_lora_weights(directory)` reads."""
        role = self.space.denoiser.family.denoiser
        return save_unet_adapter(self.adapters, 0, directory, self.trainable(), role)

    def detach(self) -> None:
        if self.checkpointing:
            self.space.denoiser.model.disable_gradient_checkpointing()
        super().detach()


@final
@dataclass
class WholeDenoiser(WholeModel[ImageSpace]):
    """Full fine-tuning of a denoiser (`TrainablePolicy`); the reference is a frozen copy."""

    checkpointing: bool = False
    reference: Denoiser = field(init=False)

    def __post_init__(self) -> None:
        self.reference = replace(self.space.denoiser, model=copy.deepcopy(self.model))
        self.model.requires_grad_(True)
        if self.checkpointing:
            self.model.enable_gradient_checkpointing()

    @property
    def model(self) -> Any:
        return self.space.denoiser.model

    def pair_logps(
        self, pairs: Int, draw: int, trained: Sequence[int] = (0,), watched: Sequence[int] = ()
    ) -> PairLogps:
        import torch

        rows = self.space.noised(pairs, draw)
        errors = []
        policy = self.space.denoiser
        for denoiser, scope in ((self.reference, torch.no_grad()), (policy, nullcontext())):
            with scope:
                guess = denoiser(rows.latents, rows.t, rows.conditioning).float()
                errors.append((guess - rows.target).square().mean(dim=(1, 2, 3)))
        return self.space.pair_logps(errors[1][None], errors[0])

    def save(self, directory: Path) -> list[str]:
        """A diffusers model in `unet/` or `transformer/`, which replaces the pipeline's own."""
        role = self.space.denoiser.family.denoiser
        names = publish(directory / role, self.model.save_pretrained)
        return [f"{role}/{name}" for name in names]

    def detach(self) -> None:
        if self.checkpointing:
            self.model.disable_gradient_checkpointing()
        super().detach()


def build(
    policy: DiffusionPolicy,
    data: PairData,
    settings: TrainSettings,
    seeds: Sequence[int],
    directory: Path,
    reporter: Reporter,
    accelerator: Accelerator,
) -> tuple[TrainablePolicy, Int]:
    """Adapters, one from each of `seeds`, or the whole denoiser. Latents and embeddings are kept in
    `directory`. No two images count as the same."""
    nothing = np.zeros(0, np.int64)
    with reporter.stage("latents and embeddings") as advance, accelerator.main_process_first():
        space = image_space(policy, data, settings.seed, directory / "encodings", advance)
    if settings.full:
        return WholeDenoiser(space, settings.checkpointing), nothing
    adapters = image_adapters(
        space,
        replicas=len(seeds),
        rank=settings.lora_r,
        alpha=settings.lora_alpha,
        seeds=seeds,
        layers=settings.layers,
        checkpointing=settings.checkpointing,
    )
    return adapters, nothing


def image_space(
    policy: DiffusionPolicy, data: PairData, seed: int, directory: Path, report: Progress
) -> ImageSpace:
    """The pairs with every latent and embedding computed once and kept in `directory`."""
    policy.encodings.open(directory)
    policy.encodings.keep(data.items, report)
    return ImageSpace(policy, data, seed)


def image_adapters(
    space: ImageSpace,
    *,
    replicas: int,
    rank: int,
    alpha: float,
    seeds: Sequence[int],
    layers: int | None,
    checkpointing: bool,
) -> ImageAdapters:
    """Adapters on the policy's denoiser, each drawn from its own seed."""
    from noisescope.training.lora.adapters import Adapters

    denoiser = space.denoiser
    adapters = Adapters(denoiser.model, replicas, rank, 0)
    adapters.attach(
        attention_layers(denoiser, None if layers is None else denoiser.upper_names(layers))
    )
    adapters.initialise(seeds, alpha)
    if checkpointing:
        denoiser.model.enable_gradient_checkpointing()
    split = 0 if layers is None else denoiser.split(layers)
    return ImageAdapters(space, adapters, split, checkpointing)
