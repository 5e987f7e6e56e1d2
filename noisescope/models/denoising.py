"""Diffusion arithmetic: shared noise, a UNet in two halves, prediction errors, the log-ratio.

Eq. 6 of arXiv 2503.16921 (Diffusion-DPO, 2311.12908), with e the mean squared error:

    l = -[(e_w - e_w_ref) - (e_l - e_l_ref)]

where w, l, policy, reference and every replica see the SAME timestep t and noise eps.
Convention of beta: `margin = beta * l` as here. DiffusionDPO's train.py and diffusers' SDXL script
multiply by another 0.5, so their beta_dpo 5000 is our beta 2500; diffusers' SD script has no 0.5.

Noise comes from a counter-based generator keyed by (seed, name, draw): never by batch position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class DrawConfig:
    """The (t, eps) draws shared by the dataset: timesteps as shares of the schedule.

    Draws are in the order of `times`; each is measured with the caption, and the `empty` ones
    (indices) also with the empty caption. Activations are kept of the `activations` ones; where
    the dataset gives reference images, distances to them are taken at the `references` ones.
    """

    times: tuple[float, ...] = (0.03, 0.25, 0.45, 0.65)
    empty: tuple[int, ...] = (1, 2, 3)
    activations: tuple[int, ...] = (0,)
    references: tuple[int, ...] = (0, 1)
    seed: int = 0

    def __post_init__(self) -> None:
        indices = range(len(self.times))
        if not self.times or not all(0 <= share < 1 for share in self.times):
            raise UsageError(f"draw times {self.times}: shares of the schedule, 0 to below 1")
        used = (self.empty, self.activations, self.references)
        if not set().union(*used) <= set(indices):
            raise UsageError(f"draws {used}: not all among {self.times}")

    @classmethod
    def spread(cls, count: int, seed: int = 0) -> Self:
        """`count` draws: an early one for flaws, the others from .25 to .65 for the caption."""
        if count < 1:
            raise UsageError(
                f"--draws must be at least 1, not {count}", hint="Leave it out for the default, 4."
            )
        if count == 1:
            return cls((0.45,), (0,), (0,), (0,), seed)
        middle = [0.45] if count == 2 else np.linspace(0.25, 0.65, count - 1).round(4).tolist()
        return cls((0.03, *middle), tuple(range(1, count)), (0,), (0, 1), seed)

    @property
    def calls(self) -> int:
        """Denoiser calls an item takes."""
        return len(self.times) + len(self.empty)


@final
@dataclass(frozen=True)
class Half:
    """Outputs of the down blocks that the rest of the UNet needs; rows B first in every tensor."""

    sample: Tensor
    residuals: tuple[Tensor, ...]
    time: Tensor  # [B, E]
    text: Tensor  # [B, L, D]

    def rows(self, index: Tensor) -> Half:
        """Some of the rows."""
        residuals = tuple(residual[index] for residual in self.residuals)
        return Half(self.sample[index], residuals, self.time[index], self.text[index])


def encode(unet: Any, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Half:
    """Time embedding, first convolution and down blocks."""
    noisy = noisy.to(unet.dtype)
    time = unet.time_embedding(unet.get_time_embed(sample=noisy, timestep=t), None)
    added = dict(conditioning.added) or None
    augmented = unet.get_aug_embed(
        emb=time, encoder_hidden_states=conditioning.text, added_cond_kwargs=added
    )
    time = time if augmented is None else time + augmented
    text = unet.process_encoder_hidden_states(
        encoder_hidden_states=conditioning.text, added_cond_kwargs=added
    )
    sample = unet.conv_in(noisy)
    residuals = (sample,)
    for block in unet.down_blocks:
        sample, left = block(**_inputs(block, sample, time, text))
        residuals += tuple(left)
    return Half(sample, residuals, time, text)


def decode(unet: Any, half: Half) -> Tensor:
    """Middle block, up blocks and last convolution: the prediction [B, C, h, w]."""
    sample, residuals = half.sample, half.residuals
    if unet.mid_block is not None:
        sample = unet.mid_block(**_inputs(unet.mid_block, sample, half.time, half.text))
    for block in unet.up_blocks:
        count = len(block.resnets)
        sample = block(
            **_inputs(block, sample, half.time, half.text),
            res_hidden_states_tuple=residuals[-count:],
        )
        residuals = residuals[:-count]
    if unet.conv_norm_out is not None:
        sample = unet.conv_act(unet.conv_norm_out(sample))
    guess: Tensor = unet.conv_out(sample)
    return guess


def _inputs(block: Any, sample: Tensor, time: Tensor, text: Tensor) -> dict[str, Tensor]:
    """A block's arguments: text only where it attends to it."""
    inputs = {"hidden_states": sample, "temb": time}
    if any(type(part).__name__ == "Transformer2DModel" for part in block.modules()):
        inputs["encoder_hidden_states"] = text
    return inputs


Prediction = Literal["epsilon", "v_prediction"]
#: Settings of a scheduler's config that define the forward process.
SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
#: A denoiser: noisy latents [B, C, H, W], timesteps [B], conditioning -> prediction [B, C, H, W].
Denoiser = Callable[["Tensor", "Tensor", "Conditioning"], "Tensor"]


@final
@dataclass(frozen=True)
class Conditioning:
    """Further inputs of the denoiser: text [B, L, D]; SDXL's pooled text and size ids."""

    text: Tensor
    added: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, index: Tensor) -> Conditioning:
        """Conditioning of some rows, repeats allowed."""
        return Conditioning(self.text[index], {k: v[index] for k, v in self.added.items()})


@final
@dataclass(frozen=True)
class Schedule:
    """The forward process z_t = sqrt(a_t) z + sqrt(1 - a_t) eps and what the model predicts."""

    alphas: Tensor  # [T], cumulative products
    prediction: Prediction

    def noisy(self, latents: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """z_t of latents [B, C, H, W] at timesteps t [B]."""
        keep = self._keep(latents, t)
        noisy: Tensor = keep.sqrt() * latents + (1 - keep).sqrt() * eps
        return noisy

    def target(self, latents: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The target of the prediction: eps, or v = sqrt(a) eps - sqrt(1 - a) z (2202.00512)."""
        if self.prediction == "epsilon":
            return eps
        keep = self._keep(latents, t)
        velocity: Tensor = keep.sqrt() * eps - (1 - keep).sqrt() * latents
        return velocity

    def _keep(self, latents: Tensor, t: Tensor) -> Tensor:
        """a_t as [B, 1, 1, 1] beside the latents."""
        keep: Tensor = self.alphas.to(latents.device)[t].to(latents.dtype).view(-1, 1, 1, 1)
        return keep


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """The schedule a `scheduler_config.json` states, whatever sampler it names.

    Raises ModelError for a prediction type other than epsilon and v_prediction.
    """
    from diffusers import DDPMScheduler

    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"scheduler: prediction_type {prediction} is not supported",
            hint="Pipelines that predict epsilon or v_prediction can be audited.",
        )
    known = {name: config[name] for name in SCHEDULE_KEYS if config.get(name) is not None}
    return Schedule(DDPMScheduler(**known).alphas_cumprod, prediction)


def generator(seed: int, name: str, draw: int) -> np.random.Generator:
    """A counter-based generator (Philox) that is a function of its arguments alone."""
    text = f"{seed}\0{name}\0{draw}".encode("utf-8", "surrogatepass")
    return np.random.Generator(np.random.Philox(key=_key(text)))


def _key(text: bytes) -> int:
    """A 128-bit Philox key."""
    return int.from_bytes(hashlib.sha256(text).digest()[:16], "little")


def draw_noise(
    seed: int, name: str, draws: int, shape: Sequence[int], steps: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`draws` timesteps [K] in 0 .. steps - 1 and noises [K, *shape] for one pair (or dataset).

    Draws 2j and 2j + 1 share t and use +eps and -eps (antithetic); t of the j-th couple is
    uniform in the j-th of ceil(K / 2) equal parts of the schedule (stratified).
    """
    couples = (draws + 1) // 2
    times = np.empty(draws, np.int64)
    noises = np.empty((draws, *shape), np.float32)
    for couple in range(couples):
        source = generator(seed, name, couple)
        t = int((couple + source.random()) / couples * steps)
        eps = source.standard_normal(tuple(shape), np.float32)
        for offset, sign in enumerate((1, -1)):
            if (draw := 2 * couple + offset) < draws:
                times[draw], noises[draw] = t, sign * eps
    return times, noises


def predict(
    unet: Denoiser,
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    t: Tensor,
    eps: Tensor,
) -> tuple[Tensor, Tensor]:
    """(prediction, target), both [B, C, H, W] float32, for latents noised to t [B] with eps."""
    guess = unet(schedule.noisy(latents, t, eps), t, conditioning)
    return guess.float(), schedule.target(latents, t, eps).float()


def denoising_errors(
    unet: Denoiser,
    schedule: Schedule,
    latents: Tensor,
    conditioning: Conditioning,
    t: Tensor,
    eps: Tensor,
) -> Tensor:
    """e of Eq. 6, [B]: squared error of the prediction, mean over the latent's dimensions."""
    guess, target = predict(unet, schedule, latents, conditioning, t, eps)
    return (guess - target).square().mean(dim=(1, 2, 3))


def logratio(chosen: Tensor, chosen_ref: Tensor, rejected: Tensor, rejected_ref: Tensor) -> Tensor:
    """l of Eq. 6 from errors of any one shape: -[(e_w - e_w_ref) - (e_l - e_l_ref)]."""
    return -((chosen - chosen_ref) - (rejected - rejected_ref))
