"""Names of an open_clip ViT checkpoint (HPS v2 ships one) as transformers' CLIPModel has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: open_clip's names outside the blocks; (name, whether the matrix is transposed).
WHOLE = {
    "visual.class_embedding": ("vision_model.embeddings.class_embedding", False),
    "visual.conv1.weight": ("vision_model.embeddings.patch_embedding.weight", False),
    "visual.positional_embedding": ("vision_model.embeddings.position_embedding.weight", False),
    "visual.ln_pre.weight": ("vision_model.pre_layrnorm.weight", False),
    "visual.ln_pre.bias": ("vision_model.pre_layrnorm.bias", False),
    "visual.ln_post.weight": ("vision_model.post_layernorm.weight", False),
    "visual.ln_post.bias": ("vision_model.post_layernorm.bias", False),
    "visual.proj": ("visual_projection.weight", True),
    "token_embedding.weight": ("text_model.embeddings.token_embedding.weight", False),
    "positional_embedding": ("text_model.embeddings.position_embedding.weight", False),
    "ln_final.weight": ("text_model.final_layer_norm.weight", False),
    "ln_final.bias": ("text_model.final_layer_norm.bias", False),
    "text_projection": ("text_projection.weight", True),
    "logit_scale": ("logit_scale", False),
}
#: Names inside a block.
INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by transformers' names; q, k and v apart, projections transposed."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in WHOLE:
            new, is_transposed = WHOLE[name]
            found[new] = tensor.T.contiguous() if is_transposed else tensor
        elif block := BLOCK.fullmatch(name):
            tower = "vision_model" if block[1] else "text_model"
            start = f"{tower}.encoder.layers.{block[2]}."
            if block[3] == "attn.in_proj":
                parts = zip("qkv", tensor.chunk(3), strict=True)
                found |= {f"{start}self_attn.{n}_proj.{block[4]}": p for n, p in parts}
            else:
                found[f"{start}{INSIDE[block[3]]}.{block[4]}"] = tensor
    return found
