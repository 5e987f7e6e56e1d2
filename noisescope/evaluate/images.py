"""Pictures of a diffusers pipeline: the same prompts, the same noise for both models.

The pipeline runs with its own scheduler. Initial latents, and the noise of schedulers that add
some at each step, come from a generator for each picture, seeded by (seed, prompt).
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import ModelError
from noisescope.evaluate.models import LORA_WEIGHTS, Contender
from noisescope.evaluate.results import Output, Prompt
from noisescope.evaluate.text import noise_seed

if TYPE_CHECKING:
    from noisescope.evaluate.generate import GenerationSettings

#: Pictures generated together by device type.
BATCH = {"cpu": 8, "cuda": 8}
#: Guidance where none is asked: SD1.5's and SDXL's own defaults (2311.12908 evaluates with them).
GUIDANCE = {False: 7.5, True: 5.0}
PROBED = 3


@final
@dataclass(frozen=True)
class PictureGenerator:
    """`generating.Generator` of images; the pipeline is loaded when first asked."""

    contender: Contender
    settings: GenerationSettings
    device: str
    fingerprint: str

    @cached_property
    def pipeline(self) -> Any:
        """The diffusers pipeline with its LoRA or UNet in place."""
        return load_pipeline(self.contender, self.device)

    @property
    def batch(self) -> int:
        from noisescope.models.device import pick_device

        return self.settings.batch or BATCH.get(pick_device(self.device).type, 8)

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


def load_pipeline(contender: Contender, device: str) -> Any:
    """The contender's base pipeline with its LoRA weights or UNet. Raises ModelError."""
    import diffusers

    from noisescope.models import pipeline as parts
    from noisescope.models.device import pick_device, pick_dtype

    where = pick_device(device)
    found = parts.find_pipeline(contender.base, prefer_half=where.type == "cuda")
    loaded = parts.load_pipeline(found, where, pick_dtype("auto", where))
    scheduler = _scheduler(found)
    text = {
        f"{name}{suffix}": part
        for suffix, pair in zip(("", "_2"), loaded.text, strict=False)
        for name, part in zip(("tokenizer", "text_encoder"), pair, strict=True)
    }
    vae, kind = loaded.vae, loaded.unet.dtype
    vae = vae if vae.dtype == kind else vae.to(kind)  # pipelines raise it where it must be
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
    _put_on(pipeline, contender)
    return pipeline


@contextmanager
def _silent() -> Iterator[None]:
    """Errors alone from diffusers' own log."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _scheduler(found: Any) -> Any:
    """The pipeline's own scheduler, by a class name that diffusers itself has."""
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
            hint=f"Use a pipeline with one of: {', '.join(known)}.",
        )
    return known[name].from_pretrained(found.directory / "scheduler")


def _put_on(pipeline: Any, contender: Contender) -> None:
    """LoRA weights, or a whole UNet, in place of the base's."""
    if contender.place is None:
        return
    try:
        if contender.kind == "lora":
            with _silent():  # it says that our LoRA leaves the text encoder alone
                pipeline.load_lora_weights(
                    str(contender.place), weight_name=LORA_WEIGHTS, use_safetensors=True
                )
            return
        unet = pipeline.unet
        pipeline.unet = type(unet).from_pretrained(
            contender.place / "unet", use_safetensors=True, torch_dtype=unet.dtype
        )
        pipeline.unet.to(unet.device).eval().requires_grad_(False)
    except Exception as error:  # diffusers and peft raise many kinds; all mean "does not fit"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{contender.name} does not fit {contender.base}: {reason}",
            hint="Name the pipeline it was trained from: --base PATH_OR_NAME.",
        ) from error
