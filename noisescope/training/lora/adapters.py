"""Attach M low-rank adapters, one a replica, to one frozen model.

For replica m a targeted linear layer computes x W' + s_m (x A_m') B_m' (LoRA, 2106.09685); the
`Placement` maps rows of a batch to replicas, so one forward runs all of them and the base weights
are in memory once. Without a placement the layer is the base model's own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from noisescope.errors import ModelError
from noisescope.models.anatomy import anatomy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


#: Names that peft gives to tensors of experts: adapters on linear layers of the same names, such as
#: shared experts, would not be loaded by it.
EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
#: Share of 3-dimensional weights that small convolutions have; experts have more.
CONVOLUTIONS = 0.1

Segments = tuple[tuple[int, int, int], ...]


@final
@dataclass
class Placement:
    """Which rows of the current batch belong to which replica: (replica, first row, end row).

    Shared by all adapted layers of a model; empty means adapters off.
    """

    segments: Segments = ()

    @contextmanager
    def of(self, segments: Segments) -> Iterator[None]:
        """Run with these segments."""
        before, self.segments = self.segments, segments
        try:
            yield
        finally:
            self.segments = before


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


def is_dense(layer: nn.Module) -> bool:
    """Whether a layer is x W' + b of ordinary weights: not quantised, no forward of its own."""
    from transformers.pytorch_utils import Conv1D

    return type(layer) in (nn.Linear, Conv1D) and type(layer.weight) is nn.Parameter


@final
class PackedLinear(nn.Module):
    """A frozen linear layer (or GPT-2's Conv1D) with one low-rank adapter a replica.

    Rows of several replicas need an input [R, T, I]; a single replica takes any [..., I]. A layer
    that is quantised or has a forward of its own runs that, as in peft, with the adapter beside.
    """

    def __init__(self, base: nn.Module, replicas: int, rank: int, placement: Placement) -> None:
        super().__init__()
        self.base = base
        self.placement = placement
        self.inputs, self.outputs = layer_shape(base)
        self.dense = is_dense(base)
        self.transposed = self.dense and not isinstance(base, nn.Linear)  # Conv1D keeps [in, out]
        device = next(chain(base.parameters(), base.buffers())).device
        self.a = nn.Parameter(torch.zeros(replicas, rank, self.inputs, device=device))
        self.b = nn.Parameter(torch.zeros(replicas, self.outputs, rank, device=device))
        self.scales: tuple[float, ...] = (1.0,) * replicas

    @property
    def weight(self) -> Tensor:
        """The frozen weight, for models that ask a layer for its number type."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        bias: Tensor | None = self.base.bias  # type: ignore[assignment]
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """[R, T, I] -> [R, T, O]."""
        segments = self.placement.segments
        if not segments:
            result: Tensor = self.base(x)
            return result
        if len(segments) == 1:  # whatever the layer is given, all of it is this replica's
            segments = ((segments[0][0], 0, len(x)),)
        plain = x.ndim == 3 and self.dense and x.dtype == self.weight.dtype
        if not plain or torch.is_autocast_enabled(x.device.type):
            return torch.cat([self._one(x[first:end], m) for m, first, end in segments])
        adapted: Tensor = _PackedLora.apply(  # type: ignore[no-untyped-call]
            x,
            self.weight.T if self.transposed else self.weight,
            self.bias,
            self.a,
            self.b,
            self.scales,
            segments,
        )
        return adapted

    def _one(self, x: Tensor, m: int) -> Tensor:
        """[..., I] -> [..., O] under adapter `m`, in the number types that peft uses."""
        y: Tensor = self.base(x)
        low = nn.functional.linear(x.to(self.a.dtype), self.a[m])
        added = nn.functional.linear(low, self.b[m].to(low.dtype)) * self.scales[m]
        return y + added.to(y.dtype)


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer, also of one whose weights are stored in other shapes."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(layer, Conv1D):
        return int(layer.nx), int(layer.nf)
    return int(layer.in_features), int(layer.out_features)  # type: ignore[arg-type]


def linear_layers(model: PreTrainedModel, first: int) -> dict[str, nn.Module]:
    """Linear layers of blocks `first`.. by full name: torch's, GPT-2's, and quantised ones.

    Those that return more than a tensor (some routers of mixtures of experts) are no such layer; of
    mixtures, `EXPERTS` are left as they are.
    """
    from transformers.pytorch_utils import Conv1D

    parts = anatomy(model)
    skipped = EXPERTS if expert_share(model) else frozenset()
    found: dict[str, nn.Module] = {}
    known: set[nn.Module] = set()  # blocks may share layers
    for i, block in enumerate(parts.blocks):
        for name, module in block.named_modules(prefix=f"{parts.name}.{i}"):
            quantised = {"in_features", "out_features"} <= vars(module).keys()
            router = "Router" in type(module).__name__ or name.rpartition(".")[2] in skipped
            linear = quantised or isinstance(module, nn.Linear | Conv1D)
            if i >= first and linear and not router and module not in known:
                found[name] = module
                known.add(module)
    return found


def expert_share(model: PreTrainedModel) -> float:
    """Share of the blocks' weights in tensors [experts, O, I], which are no linear layers."""
    weights = [weight for block in anatomy(model).blocks for weight in block.parameters()]
    experts = sum(weight.numel() for weight in weights if weight.ndim == 3)
    share = experts / max(1, sum(weight.numel() for weight in weights))
    return share if share > CONVOLUTIONS else 0.0


def linear_names(model: PreTrainedModel, first: int, targets: Sequence[str]) -> list[str]:
    """Full names of the linear layers in blocks `first`.. whose last part is in `targets`
    (all of them when empty). Raises ModelError if a target names no layer."""
    found = list(linear_layers(model, first))
    ends = {name.rsplit(".", 1)[-1] for name in found}
    unknown = sorted(set(targets) - ends)
    if unknown or not found:
        raise ModelError(
            f"--targets {', '.join(unknown) or 'all'}: no such linear layer in "
            f"{anatomy(model).name}",
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
    together: bool = True  # whether rows of several replicas may share a forward

    def attach(self, names: Sequence[str]) -> None:
        """Wrap the named layers in place."""
        for name in names:
            layer = PackedLinear(
                self.model.get_submodule(name), self.replicas, self.rank, self.placement
            )
            self.model.set_submodule(name, layer)
            self.layers[name] = layer

    def detach(self, names: Sequence[str] = ()) -> None:
        """Give the model its own layers back: the named ones, or all."""
        for name in names or list(self.layers):
            self.model.set_submodule(name, self.layers.pop(name).base)

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
    """Freeze `model` and adapt the targeted layers of blocks `first`.. for `replicas`.

    Raises ModelError if the adapters would not do what merged ones do (`check_adapters`).
    """
    from noisescope.training.lora.check import check_adapters

    model.requires_grad_(False)
    model.eval()
    if (share := expert_share(model)) > 0:
        logging.getLogger("noisescope").warning(
            "%s: experts, %.0f %% of the blocks' weights, are not adapted, attention is",
            type(model).__name__,
            100 * share,
        )
    adapters = Adapters(model, replicas, rank, first)
    adapters.attach(linear_names(model, first, targets))
    try:
        check_adapters(adapters)
    except ModelError:
        adapters.detach()
        raise
    return adapters
