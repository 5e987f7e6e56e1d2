"""How many tokens one training forward may hold, by what the backward pass keeps of each.

A block keeps about 8 states as wide as the model (residuals, normed inputs, query, key, value,
attention) and 4 as wide as its MLP (2 where `gated.spare_products` holds), a checkpointed one its
input alone. Small forwards cost no speed where a matrix has enough rows, and a fraction of the
memory: SmolLM2-135M in float32 keeps 0.9 MB a token.
"""

from __future__ import annotations

from typing import Any

from noisescope.policies.forward import setting

WIDE, DEEP, SPARED = 8, 4, 2
#: Bytes of activations one forward may keep on a CPU; on a GPU, a share of its memory.
CPU_BYTES, GPU_SHARE = 192 << 20, 0.35
#: Fewest and most tokens of one forward, by device type.
FEWEST = 128
MOST = {"cpu": 4096, "cuda": 16384}


def bytes_per_token(model: Any, blocks: int, *, checkpointing: bool, spared: bool = False) -> int:
    """What the backward pass through the top `blocks` of a causal language model keeps a token."""
    width = int(setting(model, "hidden_size"))
    inner = int(setting(model, "intermediate_size") or 4 * width)
    kept = WIDE * width + (SPARED if spared else DEEP) * inner
    floats = blocks * width + kept if checkpointing else blocks * kept
    return floats * int(model.dtype.itemsize)


def forward_tokens(model: Any, blocks: int, *, checkpointing: bool, spared: bool = False) -> int:
    """Tokens of one forward on the model's device."""
    device = model.device
    room = CPU_BYTES
    if device.type == "cuda":
        import torch

        room = int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory)
    most = MOST.get(device.type, MOST["cpu"])
    cost = bytes_per_token(model, blocks, checkpointing=checkpointing, spared=spared)
    return max(FEWEST, min(most, room // cost))
