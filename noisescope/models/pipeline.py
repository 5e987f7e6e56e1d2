"""Load a diffusers text-to-image pipeline, one part at a time.

    found = find_pipeline("stabilityai/stable-diffusion-3.5-medium")
    pipeline = load_pipeline(found, device, dtype)

Parts are loaded by the classes that `model_index.json` names, from those of `families` alone, never
by a pipeline's own code; safetensors only. Safety checkers and image encoders are not loaded.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import ModelError, UsageError, first_line
from noisescope.models.denoiser import Denoiser
from noisescope.models.families import Family, part_class
from noisescope.models.pipeline_files import Found, read_object
from noisescope.models.schedule import Schedule, schedule_of, scheduler_classes

if TYPE_CHECKING:
    import torch


@final
@dataclass(frozen=True)
class Pipeline:
    """A loaded diffusers pipeline, its parts in evaluation mode, and its denoiser.

    `image_size` is the side in pixels of the images it is used for. `encoders` fingerprints all but
    the denoiser: what latents and embeddings depend on.
    """

    pipe: Any
    denoiser: Denoiser
    image_size: int
    encoders: str

    @property
    def family(self) -> Family:
        """How pipelines of its class are used."""
        return self.denoiser.family

    @property
    def model(self) -> Any:
        """The module that denoises: a UNet or a transformer."""
        return self.denoiser.model

    @property
    def schedule(self) -> Schedule:
        """The forward process."""
        return self.denoiser.schedule

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of an image's latent."""
        side = self.image_size // int(self.pipe.vae_scale_factor)
        return _latent_channels(self.pipe.vae), side, side

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of a transformer's image tokens."""
        _, height, width = self.latent_shape
        tile = _tile(self.family, self.model)
        return height // tile, width // tile

    @property
    def is_xl(self) -> bool:
        """Whether the denoiser takes size ids, as SDXL's does."""
        return self.family.pipeline == "StableDiffusionXLPipeline"


def load_pipeline(
    found: Found, device: torch.device, dtype: torch.dtype, image_size: int | None = None
) -> Pipeline:
    """Load every part. Raises ModelError naming the part that does not load or does not fit,
    UsageError for an `image_size` (None: the pipeline's own) that the denoiser cannot take."""
    family = found.family
    loaded = {role: _load(found, role, dtype) for role in found.roles}
    model, vae = loaded[family.denoiser], loaded["vae"]
    _check_fit(found, model, vae)
    for role, part in loaded.items():
        if not role.startswith("tokenizer"):
            part.to(device).eval().requires_grad_(False)
    pipe = _assemble(found, loaded)
    side, tile = _sides(found.name, family, pipe, model, image_size)
    config = read_object(found.directory / "scheduler" / "scheduler_config.json", "")
    schedule = schedule_of(
        found.index["scheduler"][1],
        config,
        density=family.density,
        tokens=None if family.lower else (side // (pipe.vae_scale_factor * tile)) ** 2,
    )
    empty_is_zero = bool(found.index.get("force_zeros_for_empty_prompt", False))
    settings: dict[str, object] = {"dtype": str(dtype), "empty_is_zero": empty_is_zero}
    encoders = found.fingerprint(settings, without=(family.denoiser, "scheduler"))
    return Pipeline(pipe, Denoiser(model, pipe, family, schedule), side, encoders)


def _assemble(found: Found, parts: dict[str, Any]) -> Any:
    """diffusers' pipeline of loaded parts, with its own scheduler."""
    import diffusers

    family = found.family
    settings = dict.fromkeys(family.optional) | dict(family.settings)
    if family.pipeline == "StableDiffusionXLPipeline":
        zeros = found.index.get("force_zeros_for_empty_prompt", False)
        settings["force_zeros_for_empty_prompt"] = bool(zeros)
    scheduler = scheduler_classes()[found.index["scheduler"][1]]
    diffusers.utils.logging.set_verbosity_error()  # it repeats a caption's truncated words
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # settings of old schedulers
        pipe = part_class("pipeline", family.pipeline)(
            **settings | parts, scheduler=scheduler.from_pretrained(found.directory / "scheduler")
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _check_fit(found: Found, model: Any, vae: Any) -> None:
    """Raise ModelError if the denoiser does not fit the other parts, or is of an unknown kind."""
    role, family = found.family.denoiser, found.family
    channels = int(model.config.in_channels) // family.packing**2
    if channels != _latent_channels(vae):
        raise ModelError(
            f"{found.name}: the {role} takes {channels} channels, the vae gives "
            f"{_latent_channels(vae)}",
            hint="Inpainting and editing pipelines cannot be audited.",
        )
    if family.lower:
        added = str(model.config.addition_embed_type)
        needed = {"text_time": 2, "None": 1}.get(added, 0)
        if needed != (given := 1 + ("text_encoder_2" in found.roles)):
            raise ModelError(
                f"{found.name}: the unet's addition_embed_type {added} does "
                f"not go with {given} text encoder{'s' * (given - 1)}",
                hint="Stable Diffusion has one text encoder, SDXL two (text_encoder_2).",
            )
        if model.config.time_cond_proj_dim is not None:
            raise ModelError(
                f"{found.name}: its unet takes a guidance embedding (time_cond_proj_dim), which is "
                "not supported",
                hint="Use the model that it was distilled from.",
            )
    unknown = ["zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"]
    unknown += ["guidance_embeds"] if family.pipeline == "QwenImagePipeline" else []
    for setting in unknown:
        if model.config.get(setting):
            raise ModelError(
                f"{found.name}: a {role} with {setting} is not supported",
                hint="Use the text-to-image model that it was made from.",
            )


def _sides(
    name: str, family: Family, pipe: Any, model: Any, image_size: int | None
) -> tuple[int, int]:
    """(side in pixels, latent positions along it to one token) of the images to denoise."""
    reduction, tile = int(pipe.vae_scale_factor), _tile(family, model)
    own = int(model.config.get("sample_size") or pipe.default_sample_size) * reduction
    side, step = image_size or own, reduction * tile
    if side < step or side % step:
        raise UsageError(
            f"--image-size {side}: {name} takes multiples of {step}", hint="Leave it out."
        )
    largest = model.config.get("pos_embed_max_size")
    if largest is not None and side > largest * step:
        raise UsageError(
            f"--image-size {side}: {name} takes {largest * step} at most", hint="Leave it out."
        )
    return side, tile


def _tile(family: Family, model: Any) -> int:
    """Latent positions along the side of one token, or of one position of a UNet's middle."""
    if family.lower:
        return int(2 ** (len(model.config.block_out_channels) - 1))
    return family.packing if family.packing > 1 else int(model.config.patch_size)


def _latent_channels(vae: Any) -> int:
    """Channels of an autoencoder's latent."""
    return int(vae.config.get("latent_channels") or vae.config["z_dim"])


def _load(found: Found, role: str, dtype: torch.dtype) -> Any:
    """One part by its allowed class."""
    import diffusers
    import torch
    import transformers

    name = found.index[role][1]
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    settings: dict[str, Any] = {}
    if role == "vae":
        config = read_object(found.directory / "vae" / "config.json", "")
        dtype = torch.float32 if config.get("force_upcast", True) else dtype
    if not role.startswith("tokenizer"):
        settings = {"use_safetensors": True, "variant": found.variant}
        settings["dtype" if role.startswith("text") else "torch_dtype"] = dtype
        settings["output_loading_info"] = True
    try:
        part = part_class(role, name).from_pretrained(found.directory / role, **settings)
    except Exception as error:  # the libraries raise many kinds; all mean "does not load"
        reason = first_line(error)
        raise ModelError(f"{found.name}: {role} does not load: {reason}", hint=None) from error
    if not settings:
        return part
    model, notes = part
    absent = sorted(notes["missing_keys"])
    if absent:
        raise ModelError(
            f"{found.name}: {len(absent)} tensors are missing in {role}, first {absent[0]}",
            hint="Its weights do not fit its config.json; download both again.",
        )
    return model
