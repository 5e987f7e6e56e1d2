"""Complete diffusers text-to-image pipelines of a few million (or a few thousand) parameters.

`sd_components` and `sdxl_components` build randomly initialised parts of the very classes that
SD1.5 and SDXL directories name; `make_tiny_sd` trains the first, tests use both as they are.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

BOUNDARY = ("<|startoftext|>", "<|endoftext|>")


def tokenizer(captions: list[str], length: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary is the bytes and the words of `captions`."""
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, end_of_word_suffix="</w>", show_progress=False, min_frequency=1
    )
    learned.train_from_iterator(sorted(captions), trainer)
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += list(dict.fromkeys("".join(pair) for pair in merges))
    vocabulary = {word: index for index, word in enumerate([*dict.fromkeys(words), *BOUNDARY])}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        lines = [" ".join(pair) for pair in merges]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
        return CLIPTokenizer(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            model_max_length=length,
            bos_token=BOUNDARY[0],
            eos_token=BOUNDARY[1],
            pad_token=BOUNDARY[1],
            unk_token=BOUNDARY[1],
        )


def text_config(words: CLIPTokenizer, width: int, layers: int) -> CLIPTextConfig:
    """A CLIP text encoder's shape for a tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 16),
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def autoencoder(channels: tuple[int, ...], *, groups: int, side: int) -> AutoencoderKL:
    """A KL autoencoder that shrinks the side by 2^(levels - 1), four latent channels."""
    levels = len(channels)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=groups,
        sample_size=side,
        mid_block_add_attention=False,
    )


def denoiser(
    channels: tuple[int, ...], *, side: int, text_width: int, groups: int, **extra: Any
) -> UNet2DConditionModel:
    """A UNet with cross attention at every level."""
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=extra.pop("attention_head_dim", 4),
        norm_num_groups=groups,
        **extra,
    )


SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


SAMPLING = {"clip_sample": False, "steps_offset": 1}


def random_sd(captions: list[str], *, prediction: str = "epsilon") -> StableDiffusionPipeline:
    """SD1.5's layout with a few thousand random parameters, 16 px images."""
    torch.manual_seed(0)
    words = tokenizer(captions, 16)
    return StableDiffusionPipeline(
        vae=autoencoder((8, 8), groups=4, side=16),
        text_encoder=CLIPTextModel(text_config(words, 16, 1)),
        tokenizer=words,
        unet=denoiser((8, 16), side=8, text_width=16, groups=4),
        scheduler=DDIMScheduler(**SCHEDULE, **SAMPLING, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def random_sdxl(captions: list[str], *, prediction: str = "epsilon") -> StableDiffusionXLPipeline:
    """SDXL's layout (two text encoders, size and crop ids) with a few thousand parameters."""
    torch.manual_seed(0)
    words = tokenizer(captions, 16)
    first, second = text_config(words, 16, 2), text_config(words, 32, 2)
    time_width = 8
    unet = denoiser(
        (8, 16),
        side=8,
        text_width=48,
        groups=4,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=6 * time_width + 32,
    )
    return StableDiffusionXLPipeline(
        vae=autoencoder((8, 8), groups=4, side=16),
        text_encoder=CLIPTextModel(first),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SCHEDULE, prediction_type=prediction),
        add_watermarker=False,
    )
