"""Generate images with a diffusers pipeline: both models get the same prompts and noise.

The pipeline runs with its own scheduler. Each image has its own generator, seeded by
(seed, prompt), for its initial latents and for schedulers that add noise at each step.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import ModelError, first_line
from noisescope.evaluate.comparison import Output, Prompt
from noisescope.evaluate.models import ModelSpec
from noisescope.evaluate.text import noise_seed
from noisescope.models.checkpoint import UNET_LORA_WEIGHTS

if TYPE_CHECKING:
    from noisescope.evaluate.generate import GenerationSettings

#: Images per batch by device type.
BATCH = {"cpu": 8, "cuda": 8}
#: Default guidance of SD1.5 and SDXL (arXiv 2311.12908 evaluates with these).
GUIDANCE = {False: 7.5, True: 5.0}
#: Denoising steps run to estimate the time of more.
PROBED = 3


@final
@dataclass(frozen=True)
class ImageGenerator:
    """Generator of images; the pipeline is loaded at first use."""

    spec: ModelSpec
    settings: GenerationSettings
    device: str
    fingerprint: str

    @cached_property
    def pipeline(self) -> Any:
        """The diffusers pipeline with its LoRA or UNet applied."""
        return load_pipeline(self.spec, self.device)

    @property
    def batch(self) -> int:
        from noisescope.models.device import pick_device

        return self.settings.batch or BATCH.get(pick_device(self.device).type, 8)

    def refused(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        return {}

    def notes(self, prompts: Sequence[Prompt]) -> list[str]:
        return []

    def outputs(self, prompts: Sequence[Prompt]) -> list[Output]:
        return [_png(image) for image in self._generate(prompts, self.settings)]

    def probe(self, prompts: Sequence[Prompt]) -> float:
        began = time.perf_counter()
        self._generate(prompts, replace(self.settings, steps=1))
        first = time.perf_counter() - began
        began = time.perf_counter()
        self._generate(prompts, replace(self.settings, steps=1 + PROBED))
        more = max(0.0, time.perf_counter() - began - first)
        return first + more / PROBED * (self.settings.steps - 1)

    def _generate(self, prompts: Sequence[Prompt], settings: GenerationSettings) -> list[Any]:
        import torch

        noise = [torch.Generator().manual_seed(noise_seed(settings.seed, p)) for p in prompts]
        scale = settings.guidance
        if scale is None:
            scale = GUIDANCE["text_encoder_2" in self.pipeline.components]
        with torch.inference_mode():
            done = self.pipeline(
                prompt=[prompt.text for prompt in prompts],
                num_inference_steps=settings.steps,
                guidance_scale=scale,
                generator=noise,
                height=settings.size,
                width=settings.size,
                output_type="pil",
            )
        return list(done.images)


def _png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "PNG", optimize=True)
    return stream.getvalue()


def load_pipeline(spec: ModelSpec, device: str) -> Any:
    """Load the base pipeline and apply LoRA weights or UNet. Raises ModelError."""
    import diffusers

    from noisescope.models import pipeline as parts
    from noisescope.models.device import pick_device, pick_dtype

    where = pick_device(device)
    found = parts.find_pipeline(spec.base, prefer_half=where.type == "cuda")
    loaded = parts.load_pipeline(found, where, pick_dtype("auto", where))
    scheduler = _scheduler(found)
    text = {
        f"{name}{suffix}": part
        for suffix, pair in zip(("", "_2"), loaded.text, strict=False)
        for name, part in zip(("tokenizer", "text_encoder"), pair, strict=True)
    }
    vae, kind = loaded.vae, loaded.unet.dtype
    vae = vae if vae.dtype == kind else vae.to(kind)  # pipelines upcast it themselves if needed
    own = {"vae": vae, "unet": loaded.unet, "scheduler": scheduler, **text}
    if loaded.is_xl:
        pipeline = diffusers.StableDiffusionXLPipeline(
            **own, force_zeros_for_empty_prompt=loaded.empty_is_zero, add_watermarker=False
        )
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            **own, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.set_progress_bar_config(disable=True)
    _apply(pipeline, spec)
    return pipeline


@contextmanager
def _silent() -> Iterator[None]:
    """Show only errors of diffusers' log."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _scheduler(found: Any) -> Any:
    """Load the pipeline's scheduler, one of a fixed list of diffusers' classes."""
    import diffusers

    known: dict[str, Any] = {
        "DDIMScheduler": diffusers.DDIMScheduler,
        "DDPMScheduler": diffusers.DDPMScheduler,
        "DPMSolverMultistepScheduler": diffusers.DPMSolverMultistepScheduler,
        "EulerAncestralDiscreteScheduler": diffusers.EulerAncestralDiscreteScheduler,
        "EulerDiscreteScheduler": diffusers.EulerDiscreteScheduler,
        "HeunDiscreteScheduler": diffusers.HeunDiscreteScheduler,
        "LCMScheduler": diffusers.LCMScheduler,
        "LMSDiscreteScheduler": diffusers.LMSDiscreteScheduler,
        "PNDMScheduler": diffusers.PNDMScheduler,
        "UniPCMultistepScheduler": diffusers.UniPCMultistepScheduler,
    }
    name = str((found.index.get("scheduler") or ["", ""])[1])
    if name not in known:
        raise ModelError(
            f"{found.name}: cannot generate with the scheduler {name}",
            hint=f"Supported schedulers: {', '.join(known)}.",
        )
    return known[name].from_pretrained(found.directory / "scheduler")


def _apply(pipeline: Any, spec: ModelSpec) -> None:
    """Apply LoRA weights, or replace the UNet. Raises ModelError."""
    if spec.adapter is None:
        return
    try:
        if spec.kind == "lora":
            with _silent():  # it warns that the LoRA has no text encoder weights
                pipeline.load_lora_weights(
                    str(spec.adapter), weight_name=UNET_LORA_WEIGHTS, use_safetensors=True
                )
            return
        unet = pipeline.unet
        pipeline.unet = type(unet).from_pretrained(
            spec.adapter / "unet", use_safetensors=True, torch_dtype=unet.dtype
        )
        pipeline.unet.to(unet.device).eval().requires_grad_(False)
    except Exception as error:  # diffusers and peft raise many kinds; all mean "does not fit"
        reason = first_line(error)
        raise ModelError(
            f"{spec.name} does not fit {spec.base}: {reason}",
            hint="Give the pipeline it was trained from: --base PATH_OR_NAME.",
        ) from error
