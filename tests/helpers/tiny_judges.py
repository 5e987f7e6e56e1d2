"""Tiny random judge models on disk, in the layouts that the real ones have."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from helpers.tiny_diffusion import CAPTIONS, picture, sample_module
from helpers.tiny_models import LLAMA, tiny_tokenizer
from noisescope.evaluate import Comparison, Prompt

SIDE = 16
#: Of every tower: text of width 16, pictures of width 24.
TOWER = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = TOWER | {"hidden_size": 16}
VISION = TOWER | {"hidden_size": 24, "image_size": SIDE, "patch_size": 8}


def comparisons() -> list[Comparison]:
    """Three captions and two pictures for each."""
    return [
        Comparison(Prompt(text), picture(2 * n, 24), picture(2 * n + 1, 20))
        for n, text in enumerate(CAPTIONS)
    ]


def tiny_clip(folder: Path) -> tuple[Path, Any, Any]:
    """(directory as save_pretrained writes it, model, tokenizer)."""
    words = sample_module("tiny_pipelines").tokenizer(CAPTIONS, 24)
    torch.manual_seed(0)
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    text = TEXT | ends | {"vocab_size": len(words), "max_position_embeddings": 24}
    config = CLIPConfig(
        text_config=text | {"hidden_act": "gelu"},
        vision_config=VISION | {"hidden_act": "gelu"},
        projection_dim=12,
    )
    model = CLIPModel(config).eval()
    for parameter in model.parameters():  # biases start at zero: every tensor must matter
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]})
    )
    return folder, model, words


def as_open_clip(model: Any) -> dict[str, torch.Tensor]:
    """A CLIPModel's tensors under open_clip's names, written independently of the reader."""
    state = model.state_dict()
    out: dict[str, torch.Tensor] = {
        "logit_scale": state["logit_scale"],
        "text_projection": state["text_projection.weight"].T,
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "attn_mask": torch.zeros(2, 2),
    }
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = state[f"text_model.final_layer_norm.{kind}"]
        out[f"visual.ln_pre.{kind}"] = state[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = state[f"vision_model.post_layernorm.{kind}"]
    for tower, lead in (("text_model", ""), ("vision_model", "visual.")):
        for n in range(2):
            theirs = f"{tower}.encoder.layers.{n}"
            ours = f"{lead}transformer.resblocks.{n}"
            for kind in ("weight", "bias"):
                parts = [state[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                out[f"{ours}.attn.in_proj_{kind}"] = torch.cat(parts)
                out[f"{ours}.attn.out_proj.{kind}"] = state[f"{theirs}.self_attn.out_proj.{kind}"]
                out[f"{ours}.ln_1.{kind}"] = state[f"{theirs}.layer_norm1.{kind}"]
                out[f"{ours}.ln_2.{kind}"] = state[f"{theirs}.layer_norm2.{kind}"]
                out[f"{ours}.mlp.c_fc.{kind}"] = state[f"{theirs}.mlp.fc1.{kind}"]
                out[f"{ours}.mlp.c_proj.{kind}"] = state[f"{theirs}.mlp.fc2.{kind}"]
    return {name: tensor.contiguous().clone() for name, tensor in out.items()}


def tiny_image_reward(folder: Path) -> tuple[Path, Any, torch.nn.Sequential, Any]:
    """(directory, BLIP, head, tokenizer); the checkpoint has ImageReward's names."""
    words = sample_module("tiny_pipelines").tokenizer(CAPTIONS, 35)
    torch.manual_seed(1)
    text = TEXT | {"vocab_size": len(words), "encoder_hidden_size": 24, "bos_token_id": 0}
    text |= {"max_position_embeddings": 40, "pad_token_id": words.pad_token_id}
    config = BlipConfig(text_config=text, vision_config=VISION)
    blip = BlipForImageTextRetrieval(config).eval()
    head = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 1)).eval()
    tensors = {
        f"mlp.layers.{3 * n}.{k}": v for n in (0, 1) for k, v in head[n].state_dict().items()
    }
    renames = (
        ("vision_model.encoder.layers.", "blip.visual_encoder.blocks."),
        ("vision_model.post_layernorm", "blip.visual_encoder.norm"),
        ("vision_model.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
        ("vision_model.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
        ("vision_model.embeddings.patch_embedding", "blip.visual_encoder.patch_embed.proj"),
        (".self_attn.projection", ".attn.proj"),
        (".self_attn.qkv", ".attn.qkv"),
        (".layer_norm", ".norm"),
        ("text_encoder.", "blip.text_encoder."),
    )
    for name, tensor in blip.state_dict().items():
        if not name.startswith(("vision_model.", "text_encoder.")):
            continue
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        tensors[name] = tensor
    folder.mkdir(parents=True)
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, folder / "model.safetensors")
    config.vision_config.image_size = 2 * SIDE  # as blip-itm-large-coco's 384 is not its 224
    config.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder, blip, head, words


def tiny_reward_model(folder: Path, *, template: bool = True, labels: int = 1) -> Path:
    """A Llama with a classification head."""
    torch.manual_seed(2)
    shape = {"num_hidden_layers": 2, "max_position_embeddings": 128, "pad_token_id": 0}
    config = LlamaConfig(**LLAMA | shape, num_labels=labels)
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    words = tiny_tokenizer() if template else tiny_tokenizer(None)
    words.save_pretrained(folder)
    return folder


def png(image: Any) -> bytes:
    """A PIL picture as PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
