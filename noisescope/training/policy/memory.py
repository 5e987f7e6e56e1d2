"""How many tokens one training forward may hold, by what the backward pass keeps of each.

A block keeps about 8 states as wide as the model (residuals, normed inputs, query, key, value,
attention) and 4 as wide as its MLP (2 where `gated.spare_products` holds), a checkpointed one its
input alone. Small forwards cost no speed where a matrix has enough rows, and a fraction of the
memory: SmolLM2-135M in float32 keeps 0.9 MB a token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from noisescope.models.forward import setting

PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
#: What stands for a product that is not kept: gate, up, shape.
Recipe = tuple[Tensor, Tensor, torch.Size]


class _Product(torch.autograd.Function):
    """act(gate) * up, keeping gate and up alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return act(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            inner = gate.detach().requires_grad_()
            opened = ctx.act(inner)
        (slope,) = torch.autograd.grad(opened, inner, grads[0] * up)
        return slope, grads[0] * opened.detach(), None


def _forward(mlp: Any, x: Tensor) -> Tensor:
    """The MLP's own forward, with the product that `down` wants for its gradient left out."""
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    product = _Product.apply(gate, up, mlp.act_fn)  # type: ignore[no-untyped-call]
    gate, up, place = gate.detach(), up.detach(), product.data_ptr()

    def pack(tensor: Tensor) -> Tensor | Recipe:
        whole = tensor.data_ptr() == place and tensor.numel() == product.numel()
        return (gate, up, tensor.shape) if whole else tensor

    def unpack(kept: Tensor | Recipe) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        again: Tensor = mlp.act_fn(kept[0]) * kept[1]
        return again.view(kept[2])

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        result: Tensor = mlp.down_proj(product)
    return result


def spare_products(model: nn.Module) -> Callable[[], None] | None:
    """Let gated MLPs keep less, those alone that compute what is said above; what undoes it, or
    None where there are none."""
    found = [
        module
        for module in model.modules()
        if {name for name, _ in module.named_children()} == PARTS and _is_gated(module)
    ]
    for module in found:
        module.forward = partial(_forward, module)

    if not found:
        return None

    def restore() -> None:
        for module in found:
            module.__dict__.pop("forward", None)

    return restore


def _is_gated(module: Any) -> bool:
    """Whether the module's own forward gives the same numbers, to the last bit."""
    weight = module.gate_proj.weight
    probe = torch.linspace(-1, 1, weight.shape[-1], device=weight.device).to(weight.dtype)[
        None, None
    ]
    with torch.no_grad():
        try:
            return bool(torch.equal(module(probe), _forward(module, probe)))
        except (RuntimeError, TypeError):  # a forward of another kind
            return False


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
