"""Tiny random pipelines with a transformer on disk: SD3, FLUX.1, Qwen-Image, PixArt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from helpers.tiny_diffusion import CAPTIONS, sample_module

WIDTH, LAYERS = 32, 2
#: Of every denoiser with joint attention: two heads of 16.
JOINT: dict[str, Any] = {
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
}

#: Scheduler settings of each kind, as in the published pipelines.
SCHEDULES: dict[str, dict[str, Any]] = {
    "sd3": {"shift": 3.0},
    "flux": {"use_dynamic_shifting": True},
    "qwen": {"use_dynamic_shifting": True, "shift_terminal": 0.02},
    "pixart": {
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
        "flow_shift": 2.0,
    },
}


def transformer_pipeline(kind: str, folder: Path) -> Path:
    """Save a random pipeline of 16 px images, of a kind among SCHEDULES."""
    torch.manual_seed(0)
    solver = DPMSolverMultistepScheduler if kind == "pixart" else FlowMatchEulerDiscreteScheduler
    made = BUILDERS[kind](solver(**SCHEDULES[kind]))
    model = made.transformer
    with torch.no_grad():  # zero-initialised layers would hide what they multiply
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    return folder


def clip_parts() -> tuple[Any, Any]:
    """A CLIP tokenizer and the configuration of its encoder."""
    module = sample_module("tiny_pipelines")
    words = module.tokenizer(CAPTIONS, 16)
    return words, module.text_config(words, 16, 2)


def t5_parts() -> tuple[Any, Any]:
    """A T5 tokenizer of letters and words, and its encoder."""
    pieces = ["<pad>", "</s>", "<unk>", "▁"]
    pieces += sorted({f"▁{word}" for caption in CAPTIONS for word in caption.split()})
    pieces += [chr(code) for code in range(97, 123)]
    words = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)
    config = T5Config(
        vocab_size=len(words),
        d_model=WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return words, T5EncoderModel(config)


def autoencoder() -> Any:
    """A KL autoencoder of 16 channels that halves the side, with SD3's kind of scale and shift."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def _sd3(scheduler: Any) -> Any:
    words, config = clip_parts()
    t5, encoder = t5_parts()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            num_layers=LAYERS,
            **JOINT,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=32,
            out_channels=16,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=scheduler,
        vae=autoencoder(),
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=words,
        text_encoder_3=encoder,
        tokenizer_3=t5,
    )


def _flux(scheduler: Any) -> Any:
    words, config = clip_parts()
    t5, encoder = t5_parts()
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=LAYERS,
            **JOINT,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=scheduler,
        vae=autoencoder(),
        text_encoder=CLIPTextModel(config),
        tokenizer=words,
        text_encoder_2=encoder,
        tokenizer_2=t5,
    )


def _qwen(scheduler: Any) -> Any:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, *specials])}
    words = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=specials[1:])
    text = {
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "max_position_embeddings": 2048,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=LAYERS,
            **JOINT,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=scheduler,
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=16,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1 * number for number in range(16)],
            latents_std=[1.0 + 0.1 * number for number in range(16)],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=words,
    )


def _pixart(scheduler: Any) -> Any:
    words, encoder = t5_parts()
    return PixArtSigmaPipeline(
        tokenizer=words,
        text_encoder=encoder,
        vae=autoencoder(),
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=WIDTH,
            num_layers=LAYERS,
            in_channels=16,
            out_channels=32,
            sample_size=8,
            patch_size=2,
            caption_channels=WIDTH,
        ),
        scheduler=scheduler,
    )


BUILDERS: dict[str, Callable[[Any], Any]] = {
    "sd3": _sd3,
    "flux": _flux,
    "qwen": _qwen,
    "pixart": _pixart,
}
