"""Classes of diffusers pipelines: their parts, how they encode a caption, how they denoise.

Captions are encoded by the pipeline's own `encode_prompt`, and the denoiser gets the arguments that
the pipeline's `__call__` gives it. A new class of pipeline is an entry of FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from noisescope.models.denoising import Conditioning
from noisescope.models.schedule import Density

if TYPE_CHECKING:
    from torch import Tensor

#: Guidance embedded in distilled FLUX models: the default of the pipeline and of its training.
GUIDANCE = 3.5
#: Tokens of a Qwen-Image caption, padded: the pipeline's own bound.
QWEN_TOKENS = 512

CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
CLIP_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")
T5_TOKENIZER = ("T5Tokenizer", "T5TokenizerFast")

#: A caption's encoding by name, without a batch dimension: text [L, D]; pooled [P] or mask [L].
Encoded = dict[str, "Tensor"]


@final
@dataclass(frozen=True)
class Family:
    """One class of pipelines. `parts` maps a role to the classes that may fill it.

    `denoiser` is the role of the denoiser, `encode(pipe, prompt)` a caption's encoding and
    `forward(pipe, model, noisy, times, conditioning)` a prediction [B, C, h, w]. `lower` and
    `upper` are the lists of blocks in running order, of which `upper` may be adapted and recorded.
    `packing` is the side of the square of latent positions in one input of the denoiser, `guidance`
    the default when generating, `settings` what the pipeline's class takes beside its parts and
    `calling` what it takes when it generates; `loads_lora` is whether diffusers loads LoRA weights
    into it, `flow_only` whether all its models are flows.
    """

    pipeline: str
    denoiser: str
    parts: Mapping[str, tuple[str, ...]]
    encode: Callable[[Any, str], Encoded]
    forward: Callable[[Any, Any, Tensor, Tensor, Conditioning], Tensor]
    guidance: float
    lower: tuple[str, ...] = ()
    upper: tuple[str, ...] = ("transformer_blocks",)
    optional: tuple[str, ...] = ()
    packing: int = 1
    loads_lora: bool = True
    flow_only: bool = False
    density: Density = "uniform"
    caption_work: int = 512
    settings: Mapping[str, Any] = field(default_factory=dict)
    calling: Mapping[str, Any] = field(default_factory=dict)


def _encode_sd(pipe: Any, prompt: str) -> Encoded:
    text, _ = pipe.encode_prompt(prompt, pipe.unet.device, 1, False)
    return {"text": text[0]}


def _encode_sdxl(pipe: Any, prompt: str) -> Encoded:
    text, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    if not prompt and pipe.config.force_zeros_for_empty_prompt:
        text, pooled = text * 0, pooled * 0
    return {"text": text[0], "pooled": pooled[0]}


def _encode_sd3(pipe: Any, prompt: str) -> Encoded:
    text, _, pooled, _ = pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False)
    return {"text": text[0], "pooled": pooled[0]}


def _encode_flux(pipe: Any, prompt: str) -> Encoded:
    text, pooled, _ = pipe.encode_prompt(prompt)
    return {"text": text[0], "pooled": pooled[0]}


def _encode_qwen(pipe: Any, prompt: str) -> Encoded:
    from torch.nn.functional import pad

    text, _ = pipe.encode_prompt(prompt, max_sequence_length=QWEN_TOKENS)
    spare = QWEN_TOKENS - text.shape[1]
    mask = pad(text.new_ones(text.shape[1]), (0, spare))
    return {"text": pad(text[0], (0, 0, 0, spare)), "mask": mask}


def _encode_pixart(pipe: Any, prompt: str) -> Encoded:
    text, mask, _, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    return {"text": text[0], "mask": mask[0].to(text.dtype)}


def _forward_unet(
    pipe: Any, model: Any, noisy: Tensor, times: Tensor, conditioning: Conditioning
) -> Tensor:
    added = dict(conditioning.added) or None
    answer: Tensor = model(
        noisy, times, encoder_hidden_states=conditioning.text, added_cond_kwargs=added
    ).sample
    return answer


def _forward_sd3(
    pipe: Any, model: Any, noisy: Tensor, times: Tensor, conditioning: Conditioning
) -> Tensor:
    answer: Tensor = model(
        hidden_states=noisy,
        timestep=times,
        encoder_hidden_states=conditioning.text,
        pooled_projections=conditioning.added["pooled"],
    ).sample
    return answer


def _forward_flux(
    pipe: Any, model: Any, noisy: Tensor, times: Tensor, conditioning: Conditioning
) -> Tensor:
    _, _, height, width = noisy.shape
    ids = pipe._prepare_latent_image_ids(1, height // 2, width // 2, noisy.device, noisy.dtype)
    guided = model.config.guidance_embeds
    answer = model(
        hidden_states=_packed(pipe, noisy),
        timestep=times / 1000,
        guidance=times.new_full((len(times),), GUIDANCE) if guided else None,
        pooled_projections=conditioning.added["pooled"],
        encoder_hidden_states=conditioning.text,
        txt_ids=noisy.new_zeros(conditioning.text.shape[1], 3),
        img_ids=ids,
    ).sample
    return _unpacked(pipe, answer, height, width)


def _forward_qwen(
    pipe: Any, model: Any, noisy: Tensor, times: Tensor, conditioning: Conditioning
) -> Tensor:
    _, _, height, width = noisy.shape
    answer = model(
        hidden_states=_packed(pipe, noisy),
        timestep=times / 1000,
        encoder_hidden_states=conditioning.text,
        encoder_hidden_states_mask=conditioning.added["mask"].bool(),
        img_shapes=[[(1, height // 2, width // 2)]] * len(noisy),
    ).sample
    return _unpacked(pipe, answer, height, width)[:, :, 0]


def _forward_pixart(
    pipe: Any, model: Any, noisy: Tensor, times: Tensor, conditioning: Conditioning
) -> Tensor:
    rows, channels, height, width = noisy.shape
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if model.use_additional_conditions:
        side = [float(edge * pipe.vae_scale_factor) for edge in (height, width)]
        added["resolution"] = noisy.new_tensor([side] * rows)
        added["aspect_ratio"] = noisy.new_full((rows, 1), height / width)
    answer: Tensor = model(
        noisy,
        encoder_hidden_states=conditioning.text,
        encoder_attention_mask=conditioning.added["mask"],
        timestep=times,
        added_cond_kwargs=added,
    ).sample
    return answer[:, :channels]  # others are a learned variance


def _packed(pipe: Any, latents: Tensor) -> Tensor:
    """Tokens [B, h w / 4, 4 C] of latents [B, C, h, w]."""
    tokens: Tensor = pipe._pack_latents(latents.contiguous(), *latents.shape)
    return tokens


def _unpacked(pipe: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `_packed`, from the latents' sides."""
    factor = pipe.vae_scale_factor
    latents: Tensor = pipe._unpack_latents(tokens, height * factor, width * factor, factor)
    return latents


UNET: dict[str, Any] = {
    "denoiser": "unet",
    "forward": _forward_unet,
    "lower": ("down_blocks",),
    "upper": ("up_blocks",),
    "caption_work": 16,
}
UNET_PARTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": CLIP,
    "tokenizer": CLIP_TOKENIZER,
}
SECOND_PARTS = {"text_encoder_2": CLIP, "tokenizer_2": CLIP_TOKENIZER}
T5 = ("T5EncoderModel",)

#: Pipeline class -> how its pipelines are used.
FAMILIES: dict[str, Family] = {
    family.pipeline: family
    for family in (
        Family(
            "StableDiffusionPipeline",
            parts=UNET_PARTS,
            encode=_encode_sd,
            guidance=7.5,  # arXiv 2311.12908 evaluates with it, and SDXL's
            settings={
                "safety_checker": None,
                "feature_extractor": None,
                "requires_safety_checker": False,
            },
            **UNET,
        ),
        Family(
            "StableDiffusionXLPipeline",
            parts=UNET_PARTS | SECOND_PARTS,
            encode=_encode_sdxl,
            guidance=5.0,
            settings={"add_watermarker": False},
            **UNET,
        ),
        Family(
            "StableDiffusion3Pipeline",
            denoiser="transformer",
            parts={
                "transformer": ("SD3Transformer2DModel",),
                "vae": ("AutoencoderKL",),
                "text_encoder": CLIP[1:],
                "tokenizer": CLIP_TOKENIZER,
                "text_encoder_2": CLIP[1:],
                "tokenizer_2": CLIP_TOKENIZER,
                "text_encoder_3": T5,
                "tokenizer_3": T5_TOKENIZER,
            },
            optional=("text_encoder_3", "tokenizer_3"),
            encode=_encode_sd3,
            forward=_forward_sd3,
            guidance=7.0,
            density="logit_normal",
            flow_only=True,
        ),
        Family(
            "FluxPipeline",
            denoiser="transformer",
            parts={
                "transformer": ("FluxTransformer2DModel",),
                "vae": ("AutoencoderKL",),
                "text_encoder": CLIP[:1],
                "tokenizer": CLIP_TOKENIZER,
                "text_encoder_2": T5,
                "tokenizer_2": T5_TOKENIZER,
            },
            encode=_encode_flux,
            forward=_forward_flux,
            upper=("transformer_blocks", "single_transformer_blocks"),
            packing=2,
            flow_only=True,
            guidance=GUIDANCE,
        ),
        Family(
            "QwenImagePipeline",
            denoiser="transformer",
            parts={
                "transformer": ("QwenImageTransformer2DModel",),
                "vae": ("AutoencoderKLQwenImage",),
                "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
                "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
            },
            encode=_encode_qwen,
            forward=_forward_qwen,
            packing=2,
            flow_only=True,
            guidance=4.0,
        ),
        *(
            Family(
                f"PixArt{version}Pipeline",
                denoiser="transformer",
                parts={
                    "transformer": ("PixArtTransformer2DModel",),
                    "vae": ("AutoencoderKL",),
                    "text_encoder": T5,
                    "tokenizer": T5_TOKENIZER,
                },
                encode=_encode_pixart,
                forward=_forward_pixart,
                guidance=4.5,
                calling={"use_resolution_binning": False},
                loads_lora=False,
            )
            for version in ("Alpha", "Sigma")
        ),
    )
}


def part_class(role: str, name: str) -> Any:
    """The class of a part, or of a "pipeline", by a name that FAMILIES contains."""
    import diffusers
    import transformers

    transformers.utils.logging.set_verbosity_error()  # imports warn of unused image processors
    library = transformers if role.startswith(("text_encoder", "tokenizer")) else diffusers
    return getattr(library, name)
