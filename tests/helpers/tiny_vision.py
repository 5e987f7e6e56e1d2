"""Tiny random vision-language models with processors made here, one a family.

model, processor = tiny_vision("llava")
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END = "<|im_end|>"
BASE = ["<|endoftext|>", "<|im_start|>", END]
#: Content as parts, as in the published models' templates; {0} is the place of a picture.
TEMPLATE = (
    "{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n{{% for c in m['content'] %}}"
    "{{% if c['type'] == 'image' %}}{0}{{% else %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}"
    "<|im_end|>\n{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}


def words(*specials: str, **more: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and special tokens."""
    names = [*BASE, *specials, *more.values()]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *names]
    found = Tokenizer(models.BPE(vocab={one: at for at, one in enumerate(pieces)}, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=found,
        eos_token=END,
        pad_token=BASE[0],
        extra_special_tokens=more or [BASE[1], *specials],
    )


def _llava() -> tuple[Any, Any]:
    tokenizer = words("<image>")
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "projection_dim": 16, **TOWER},
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **TEXT},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.format("<image>"),
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _smolvlm() -> tuple[Any, Any]:
    """SmolVLM behind the processor of Idefics 3, its own without films."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    marks = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer = words("<image>", *marks, *tiles)
    config = transformers.SmolVLMConfig(
        vision_config=TOWER,
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            **TEXT,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    processor = transformers.Idefics3Processor(
        transformers.Idefics3ImageProcessorPil(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
        ),
        tokenizer,
        image_seq_len=4,
        chat_template=TEMPLATE.format("<image>"),
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


class _QwenProcessor(transformers.Qwen2VLProcessor):
    """The processor without films, whose part needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        return type(argument)


def _qwen() -> tuple[Any, Any]:
    marks = ("vision_start", "vision_end", "image_pad", "video_pad")
    tokenizer = words(*(f"<|{mark}|>" for mark in marks))
    ids = {mark: tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for mark in marks}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": None,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            **TEXT,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "window_size": 28,
            "patch_size": 7,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    processor = _QwenProcessor(
        transformers.Qwen2VLImageProcessorPil(
            patch_size=7, size={"shortest_edge": 14 * 14, "longest_edge": 56 * 56}
        ),
        tokenizer,
        chat_template=TEMPLATE.format("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    """Tokens of a picture see one another, in both directions; every other layer has a window."""
    tokenizer = words(
        image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"
    )
    config = transformers.Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "head_dim": 16,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            **TEXT,
        },
        vision_config=TOWER,
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer,
        chat_template=TEMPLATE.format("<start_of_image>"),
        image_seq_length=4,
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": _llava,
    "smolvlm": _smolvlm,
    "qwen2_5_vl": _qwen,
    "gemma3": _gemma3,
}


def tiny_vision(family: str) -> tuple[Any, Any]:
    """A random model in evaluation mode, its pictures of the size of its words, and a processor."""
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    with torch.no_grad():  # untrained, nothing would depend on what is said or shown
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval(), processor


def save_vision(family: str, folder: Path) -> Path:
    """A checkpoint on disk, as `save_pretrained` writes it."""
    model, processor = tiny_vision(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def photo(seed: int, width: int = 60, height: int = 40) -> bytes:
    """A PNG of coarse noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(sink, "PNG")
    return sink.getvalue()
