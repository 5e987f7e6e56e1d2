"""Captions as a pipeline's denoiser is told them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noisescope.policies.pipeline import Pipeline

if TYPE_CHECKING:
    from torch import Tensor


def embed(pipeline: Pipeline, prompt: str) -> tuple[Tensor, Tensor | None]:
    """Text embedding [L, D] and pooled embedding [P] or None, as the pipeline's class makes them.

    SD1.5 takes the encoder's last hidden states; SDXL joins both encoders' last but one and pools
    the second. SDXL's empty prompt is all zeros where its index says so.
    """
    import torch

    states: list[Tensor] = []
    pooled_text: Tensor | None = None
    for tokenizer, encoder in pipeline.text:
        tokens = tokenizer(
            [prompt],
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(encoder.device)
        answer = encoder(tokens, output_hidden_states=pipeline.is_xl)
        states.append(answer.hidden_states[-2] if pipeline.is_xl else answer.last_hidden_state)
        pooled_text = answer[0] if pipeline.is_xl else None
    text = torch.cat(states, dim=-1)[0]
    if pooled_text is None:
        return text, None
    if not prompt and pipeline.empty_is_zero:
        return torch.zeros_like(text), torch.zeros_like(pooled_text[0])
    return text, pooled_text[0]
