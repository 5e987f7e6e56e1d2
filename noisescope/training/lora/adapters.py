"""Attach M low-rank adapters, one a replica, to one frozen model.

For replica m a targeted linear layer computes x W' + s_m (x A_m') B_m' (LoRA, 2106.09685); the
`Placement` maps rows of a batch to replicas, so one forward runs all of them and the base weights
are in memory once. Without a placement the layer is the base model's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from noisescope.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@final
@dataclass
class Placement:
    """Which rows of the current batch belong to which replica: (replica, first row, end row).

    Shared by all adapted layers of a model; empty means adapters off.
    """

    segments: tuple[tuple[int, int, int], ...] = ()


class _PackedLora(torch.autograd.Function):
    """y = x W' + b + s (x A_m') B_m', rows of x grouped by replica m; W and b stay frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [R, T, I]
        weight: Tensor,  # [O, I]
        bias: Tensor | None,
        a: Tensor,  # [M, r, I]
        b: Tensor,  # [M, O, r]
        scales: tuple[float, ...],
        segments: tuple[tuple[int, int, int], ...],
    ) -> Tensor:
        y = nn.functional.linear(x, weight, bias)
        low = []
        for m, first, end in segments:
            z = x[first:end].flatten(0, 1) @ a[m].to(x.dtype).T
            y[first:end].flatten(0, 1).addmm_(z, b[m].to(x.dtype).T, alpha=scales[m])
            low.append(z)
        ctx.save_for_backward(x, weight, a, b, *low)
        ctx.scales, ctx.segments = scales, segments
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, *low = ctx.saved_tensors
        dy = grads[0].contiguous()
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        da, db = torch.zeros_like(a), torch.zeros_like(b)
        for (m, first, end), z in zip(ctx.segments, low, strict=True):
            dy_m = dy[first:end].flatten(0, 1)
            dz = (dy_m @ b[m].to(dy.dtype)).mul_(ctx.scales[m])
            db[m] += (dy_m.T @ z).to(db.dtype) * ctx.scales[m]
            da[m] += (dz.T @ x[first:end].flatten(0, 1)).to(da.dtype)
            if dx is not None:
                dx[first:end].flatten(0, 1).addmm_(dz, a[m].to(dy.dtype))
        return dx, None, None, da, db, None, None


@final
class PackedLinear(nn.Module):
    """A frozen linear layer (or GPT-2's Conv1D) with one low-rank adapter a replica."""

    def __init__(self, base: nn.Module, replicas: int, rank: int, placement: Placement) -> None:
        super().__init__()
        self.base = base
        self.placement = placement
        transposed = not isinstance(base, nn.Linear)  # Conv1D keeps [in, out]
        weight: Tensor = base.weight  # type: ignore[assignment]
        self.outputs, self.inputs = weight.shape[::-1] if transposed else weight.shape
        self.transposed = transposed
        self.a = nn.Parameter(torch.zeros(replicas, rank, self.inputs, device=weight.device))
        self.b = nn.Parameter(torch.zeros(replicas, self.outputs, rank, device=weight.device))
        self.scales: tuple[float, ...] = (1.0,) * replicas

    def forward(self, x: Tensor) -> Tensor:
        """[R, T, I] -> [R, T, O]."""
        if not self.placement.segments:
            result: Tensor = self.base(x)
            return result
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        bias: Tensor | None = self.base.bias  # type: ignore[assignment]
        adapted: Tensor = _PackedLora.apply(  # type: ignore[no-untyped-call]
            x,
            weight.T if self.transposed else weight,
            bias,
            self.a,
            self.b,
            self.scales,
            self.placement.segments,
        )
        return adapted


def block_list(model: PreTrainedModel) -> nn.ModuleList:
    """The model's transformer blocks; raises ModelError unless there is one stack of them."""
    depth = model.config.num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(lists) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(lists)} stacks of {depth} blocks; one is needed",
            hint="Use --kind head, which needs no adapters.",
        )
    return lists[0]


def linear_names(model: PreTrainedModel, first: int, targets: Sequence[str]) -> list[str]:
    """Full names of the linear layers in blocks `first`.. whose last part is in `targets`
    (all of them when empty). Raises ModelError if a target names no layer."""
    from transformers.pytorch_utils import Conv1D

    prefix = next(name for name, m in model.named_modules() if m is block_list(model))
    found = [
        name
        for name, module in model.named_modules()
        if name.startswith(prefix + ".")
        and isinstance(module, nn.Linear | Conv1D)
        and int(name[len(prefix) + 1 :].split(".")[0]) >= first
    ]
    ends = {name.rsplit(".", 1)[-1] for name in found}
    unknown = sorted(set(targets) - ends)
    if unknown or not found:
        raise ModelError(
            f"--targets {', '.join(unknown) or 'all'}: no such linear layer in {prefix}",
            hint=f"This model has {', '.join(sorted(ends)) or 'none'}.",
        )
    return [name for name in found if not targets or name.rsplit(".", 1)[-1] in targets]


@final
@dataclass
class Adapters:
    """The adapted layers of a model by full name; `M` replicas each."""

    model: PreTrainedModel
    replicas: int
    rank: int
    first: int  # first adapted block
    placement: Placement = field(default_factory=Placement)
    layers: dict[str, PackedLinear] = field(default_factory=dict)

    def attach(self, names: Sequence[str]) -> None:
        """Wrap the named layers in place."""
        for name in names:
            layer = PackedLinear(
                self.model.get_submodule(name), self.replicas, self.rank, self.placement
            )
            self.model.set_submodule(name, layer)
            self.layers[name] = layer

    def detach(self) -> None:
        """Give the model its own layers back."""
        for name, layer in self.layers.items():
            self.model.set_submodule(name, layer.base)
        self.layers.clear()

    def initialise(self, seeds: Sequence[int], alpha: float) -> None:
        """A ~ Kaiming uniform as PEFT draws it, from each replica's own seed; B = 0."""
        for m, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            for layer in self.layers.values():
                bound = 1 / math.sqrt(layer.inputs)  # kaiming_uniform_ with a = sqrt(5)
                drawn = torch.rand(layer.a.shape[1:], generator=generator) * (2 * bound) - bound
                with torch.no_grad():
                    layer.a[m] = drawn.to(layer.a.device)
                    layer.b[m] = 0
        for layer in self.layers.values():
            layer.scales = (alpha / self.rank,) * self.replicas

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, stacked tensor) pairs in a fixed order."""
        for name, layer in self.layers.items():
            yield f"{name}.a", layer.a
            yield f"{name}.b", layer.b

    def clip(self, max_norm: float | None) -> float:
        """Clip each replica's gradient on its own, so replicas never touch; their mean norm.

        Summed replica by replica: how sums are rounded depends on what is summed beside them.
        """
        grads = [p.grad for _, p in self.parameters() if p.grad is not None]
        if not grads:
            return 0.0
        squares = [[grad[m].pow(2).sum() for grad in grads] for m in range(self.replicas)]
        norms = torch.stack([torch.stack(mine).sum() for mine in squares]).sqrt()  # [M]
        if max_norm is not None:
            factor = (max_norm / (norms + 1e-6)).clamp(max=1.0)
            for grad in grads:
                grad.mul_(factor[:, None, None])
        return float(norms.mean())


def attach_adapters(
    model: PreTrainedModel, replicas: int, rank: int, first: int, targets: Sequence[str] = ()
) -> Adapters:
    """Freeze `model` and adapt the targeted layers of blocks `first`.. for `replicas`."""
    model.requires_grad_(False)
    model.eval()
    adapters = Adapters(model, replicas, rank, first)
    adapters.attach(linear_names(model, first, targets))
    return adapters
