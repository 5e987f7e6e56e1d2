"""Prompts about photos of noise for tiny vision-language models, and a plain forward of them."""

from __future__ import annotations

from typing import Any

import torch

from helpers.tiny_vision import photo, tiny_vision
from noisescope.datasets.images import StoredImages, decode, image_key
from noisescope.models import Item, ModelIdentity
from noisescope.models.causal_lm import CausalLMPolicy
from noisescope.models.forward import GROUPS
from noisescope.models.vision import VisionEncoder
from noisescope.pairs import PICTURE, Message

PHOTOS = {image_key(data): data for data in (photo(0), photo(1), photo(2, 40, 60))}
A, B, C = PHOTOS


def policy_of(family: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> CausalLMPolicy:
    model, processor = tiny_vision(family)
    encoder = VisionEncoder(processor, StoredImages(PHOTOS), options.pop("max_length", 1024))
    identity = ModelIdentity(family, None, family)
    return CausalLMPolicy(model.to(dtype), encoder, identity, tuple(GROUPS))


def asked(answer: str, *turns: tuple[str, str]) -> Item:
    messages = tuple(Message(role, text) for role, text in turns)
    return Item(f"{turns}{answer}", "\n\n".join(text for _, text in turns), messages, answer)


def plain(policy: CausalLMPolicy, item: Item, model: Any = None) -> torch.Tensor:
    """Log-probabilities of a response by the processor's rendering of the whole conversation,
    under the policy's model or another; differentiable."""
    processor = policy.encoder.processor
    turns = [*(item.turns or [Message("user", item.prompt)]), Message("assistant", item.response)]
    messages, pictures = [], []
    for turn in turns:
        parts: list[dict[str, str]] = []
        for at, piece in enumerate(PICTURE.split(turn.content)):
            if at % 2:
                parts.append({"type": "image"})
                pictures.append(decode(PHOTOS[piece]))
            elif text := piece.strip("\n"):
                parts.append({"type": "text", "text": text})
        messages.append({"role": turn.role, "content": parts})
    text = processor.apply_chat_template(messages, tokenize=False).rstrip()
    given = {"images": [pictures]} if pictures else {}
    inputs = processor(text=[text], return_tensors="pt", add_special_tokens=False, **given)
    size = len(processor.tokenizer(item.response)["input_ids"]) + 1
    logits = (model or policy.model)(**inputs).logits[0, -size - 1 : -1].log_softmax(1)
    return logits.gather(1, inputs["input_ids"][0, -size:, None])[:, 0]
