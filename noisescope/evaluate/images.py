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
    from noisescope.models.families import Family

#: Images per batch by device type.
BATCH = {"cpu": 8, "cuda": 8}
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
        """The diffusers pipeline with its LoRA or denoiser applied."""
        return self._loaded[0]

    @cached_property
    def _loaded(self) -> tuple[Any, Family]:
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
        _, family = self._loaded
        scale = family.guidance if settings.guidance is None else settings.guidance
        guidance: dict[str, Any] = {"guidance_scale": scale}
        if family.pipeline == "QwenImagePipeline":  # guided only against a negative prompt
            guidance = {"true_cfg_scale": scale, "negative_prompt": [" "] * len(prompts)}
        with torch.inference_mode():
            done = self.pipeline(
                prompt=[prompt.text for prompt in prompts],
                num_inference_steps=settings.steps,
                **guidance,
                **family.calling,
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


def load_pipeline(spec: ModelSpec, device: str) -> tuple[Any, Family]:
    """Load the base pipeline and apply LoRA weights or denoiser. Raises ModelError."""
    from noisescope.models import pipeline as parts
    from noisescope.models.device import pick_device, pick_dtype
    from noisescope.models.pipeline_files import find_pipeline

    where = pick_device(device)
    found = find_pipeline(spec.base, prefer_half=where.type == "cuda")
    loaded = parts.load_pipeline(found, where, pick_dtype("auto", where))
    pipe = loaded.pipe
    pipe.vae.to(loaded.model.dtype)  # pipelines upcast it themselves if needed
    _apply(pipe, spec, loaded.family.denoiser)
    return pipe, loaded.family


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


def _apply(pipeline: Any, spec: ModelSpec, role: str) -> None:
    """Apply LoRA weights, or replace the denoiser in its `role`. Raises ModelError."""
    if spec.adapter is None:
        return
    try:
        if spec.kind == "lora":
            with _silent():  # it warns that the LoRA has no text encoder weights
                pipeline.load_lora_weights(
                    str(spec.adapter), weight_name=UNET_LORA_WEIGHTS, use_safetensors=True
                )
            return
        own = pipeline.components[role]
        model = type(own).from_pretrained(
            spec.adapter / role, use_safetensors=True, torch_dtype=own.dtype
        )
        pipeline.register_modules(**{role: model.to(own.device).eval().requires_grad_(False)})
    except Exception as error:  # diffusers and peft raise many kinds; all mean "does not fit"
        reason = first_line(error)
        raise ModelError(
            f"{spec.name} does not fit {spec.base}: {reason}",
            hint="Give the pipeline it was trained from: --base PATH_OR_NAME.",
        ) from error
