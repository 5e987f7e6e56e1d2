"""Diffusion models in training: packed LoRA adapters on a UNet's attention, or the whole UNet.

l is Eq. 6 of 2503.16921 (Diffusion-DPO, 2311.12908): both sides, the policy and its reference
see the same timestep and noise, a function of (seed, pair_id, draw), one draw a step. Latents and
text embeddings are cached; the reference is the UNet with its adapters off.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from noisescope.errors import ModelError
from noisescope.models.denoising import Conditioning, Half, decode, encode, generator
from noisescope.storage.files import write_tensors
from noisescope.training.pair_data import PairData
from noisescope.training.policy import Int, Sides
from noisescope.training.policy.models import AdaptedModel, WholeModel, publish

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.models.diffusion import DiffusionPolicy
    from noisescope.progress import Progress

#: Linear layers that carry adapters, as in the released code of 2503.16921.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
LORA_FILE = "pytorch_lora_weights.safetensors"
#: Latent positions of one forward, by device type.
FORWARD_POSITIONS = {"cpu": 16384, "cuda": 131072}


@final
@dataclass(frozen=True)
class Noised:
    """Both sides of B pairs under one draw each: rows of all chosen, then of all rejected."""

    latents: Tensor  # [2B, C, h, w], noised
    t: Tensor  # [2B]
    told: Conditioning
    target: Tensor  # [2B, C, h, w]


@final
@dataclass(frozen=True)
class ImageSpace:
    """The pairs of a diffusion policy, noised on demand."""

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
    def together(self) -> bool:
        return False  # no UNet is cut: `launching.check_launch`

    def release(self) -> None:
        """Nothing in the UNet's layers was changed."""

    def noised(self, pairs: Int, draw: int) -> Noised:
        """Rows of some pairs under `draw`."""
        import torch

        policy, items = self.policy, self.data.items
        schedule, device = policy.pipeline.schedule, policy.device
        times, noises = [], []
        for pair in pairs.tolist():
            source = generator(self.seed, self.data.pair_ids[pair], draw)
            times.append(int(source.random() * len(schedule.alphas)))
            noises.append(source.standard_normal(policy.latent_shape, np.float32))
        t = torch.tensor(times, device=device).repeat(2)
        eps = torch.from_numpy(np.stack(noises)).to(device).repeat(2, 1, 1, 1)
        rows = [items[i] for side in (self.data.chosen, self.data.rejected) for i in side[pairs]]
        with torch.no_grad():
            latents, framings = policy.latents([item.response for item in rows])
            told = policy.conditioning([item.prompt for item in rows], framings)
            told = told.rows(torch.arange(len(rows), device=device))
            latents = latents.clone()  # cached ones are inference tensors
            target = schedule.target(latents, t, eps).float()
            return Noised(schedule.noisy(latents, t, eps), t, told, target)

    def sides(self, errors: Tensor, reference: Tensor) -> Sides:
        """Sides from errors e [K, 2B] and those of the reference [2B]."""
        import torch

        middle = len(reference) // 2
        ones = torch.ones(middle, device=reference.device)
        return Sides(
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
    """LoRA on a UNet's attention layers (`learners.Trainee`); `shared` when only up blocks carry
    adapters, so that the down blocks run once for the policy and its reference."""

    shared: bool = False
    checkpointing: bool = False

    def sides(
        self, pairs: Int, draw: int, trained: Sequence[int] = (0,), watched: Sequence[int] = ()
    ) -> Sides:
        import torch

        rows = self.space.noised(pairs, draw)
        unet = self.space.policy.pipeline.unet
        with torch.no_grad():
            half = encode(unet, rows.latents, rows.t, rows.told) if self.shared else None
            reference = self._errors(rows, half, ())[0]
            seen = [self._errors(rows, half, watched)] if watched else []
        errors = torch.cat([self._errors(rows, half, trained), *seen])
        return self.space.sides(errors, reference)

    def _errors(self, rows: Noised, half: Half | None, replicas: Sequence[int]) -> Tensor:
        """e of Eq. 6 under some adapters, [K, 2B]; none: adapters off, [1, 2B]."""
        import torch

        count, size = max(1, len(replicas)), len(rows.t)
        index = torch.arange(size, device=rows.t.device).repeat(count)
        placement = self.adapters.placement
        placement.segments = tuple((m, k * size, (k + 1) * size) for k, m in enumerate(replicas))
        try:
            if half is not None:
                guess = decode(self.space.policy.pipeline.unet, half.rows(index))
            else:
                told = rows.told.rows(index)
                guess = self.space.policy.denoise(rows.latents[index], rows.t[index], told)
        finally:
            if not (self.checkpointing and replicas):  # recomputed blocks need it again
                placement.segments = ()
        wrong = (guess.float() - rows.target[index]).square().mean(dim=(1, 2, 3))
        return wrong.view(count, size)

    def save(self, directory: Path, *, writes: bool = True) -> list[str]:
        """What `pipeline.load_lora_weights(directory)` reads."""
        if not writes:
            return []
        tensors = {}
        for name, layer in self.adapters.layers.items():
            tensors[f"unet.{name}.lora_A.weight"] = layer.a[0]
            tensors[f"unet.{name}.lora_B.weight"] = layer.b[0] * layer.scales[0]
        write_tensors(directory / LORA_FILE, tensors)
        return [LORA_FILE]

    def detach(self) -> None:
        if self.checkpointing:
            self.space.policy.pipeline.unet.disable_gradient_checkpointing()
        super().detach()


@final
@dataclass
class WholeUNet(WholeModel[ImageSpace]):
    """Full fine-tuning of a UNet (`learners.Trainee`); the reference is a frozen copy."""

    checkpointing: bool = False
    reference: Any = field(init=False)

    def __post_init__(self) -> None:
        self.reference = copy.deepcopy(self.model)
        self.model.requires_grad_(True)
        if self.checkpointing:
            self.model.enable_gradient_checkpointing()

    @property
    def model(self) -> Any:
        return self.space.policy.pipeline.unet

    def sides(
        self, pairs: Int, draw: int, trained: Sequence[int] = (0,), watched: Sequence[int] = ()
    ) -> Sides:
        import torch

        rows = self.space.noised(pairs, draw)
        errors = []
        for unet, scope in ((self.reference, torch.no_grad()), (self.model, nullcontext())):
            with scope:
                half = encode(unet, rows.latents, rows.t, rows.told)
                guess = decode(unet, half).float()
                errors.append((guess - rows.target).square().mean(dim=(1, 2, 3)))
        return self.space.sides(errors[1][None], errors[0])

    def save(self, directory: Path, *, writes: bool = True) -> list[str]:
        """A diffusers UNet in `unet/`, to take the place of the pipeline's own."""
        if not writes:
            return []
        names = publish(directory / "unet", self.model.save_pretrained)
        return [f"unet/{name}" for name in names]

    def detach(self) -> None:
        if self.checkpointing:
            self.model.disable_gradient_checkpointing()
        super().detach()


def image_space(
    policy: DiffusionPolicy, data: PairData, seed: int, directory: Path, report: Progress
) -> ImageSpace:
    """The pairs with every latent and embedding computed once and kept in `directory`."""
    policy.encodings.open(directory)
    policy.encodings.keep(data.items, report)
    return ImageSpace(policy, data, seed)


def attention_layers(unet: Any, layers: int | None) -> tuple[list[str], bool]:
    """Names of the adapted layers, and whether the down blocks carry none of them.

    `layers` K: the last K up blocks; None: every block. Raises ModelError where there are none.
    """
    ends = tuple(f".{end}" for end in TARGETS)
    prefixes: tuple[str, ...] = ("",)
    if layers is not None:
        count = len(unet.up_blocks)
        prefixes = tuple(f"up_blocks.{i}." for i in range(max(0, count - layers), count))
    names = [
        name
        for name, _ in unet.named_modules()
        if name.endswith(ends) and name.startswith(prefixes)
    ]
    if not names:
        raise ModelError(
            f"no attention layer ({', '.join(TARGETS)}) stands in "
            + ("this UNet" if layers is None else f"its last {layers} up blocks"),
            hint="Leave --layers out, or use --full.",
        )
    return names, layers is not None


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
    """Adapters on the policy's UNet, each drawn from its own seed."""
    from noisescope.training.lora.adapters import Adapters

    unet = space.policy.pipeline.unet
    names, shared = attention_layers(unet, layers)
    adapters = Adapters(unet, replicas, rank, 0)
    adapters.attach(names)
    adapters.initialise(seeds, alpha)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    return ImageAdapters(space, adapters, shared, checkpointing)
