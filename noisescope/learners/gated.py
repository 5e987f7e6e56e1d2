"""Gated MLPs (Llama's kind) whose products are computed again in the backward pass, not kept.

    restore = spare_products(model)    # values and gradients stay what they were
    ...
    restore()

Such an MLP is down(act(gate(x)) * up(x)). Of its four inner states autograd keeps all: gate, up,
act(gate) and the product that enters `down`. Here it keeps two and computes the others anew, two
elementwise operations: SmolLM2-135M then keeps 0.9 MB a token instead of 1.3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

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
