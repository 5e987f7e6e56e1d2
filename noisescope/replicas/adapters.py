"""M low-rank adapters side by side on one frozen model, and their PEFT directories.

For replica m a targeted linear layer computes x W' + s_m (x A_m') B_m' (LoRA, 2106.09685); the
rows of a batch say which replica they belong to, so one forward serves all replicas and the
base weights stand in memory once. Without a placement the layer is the base model's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from noisescope.errors import ModelError
from noisescope.storage import write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."


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
    """The model's transformer blocks; raises ModelError when they cannot be told apart."""
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
    (all of them when empty). Raises ModelError when a target names nothing."""
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
        """Clip each replica's gradient on its own, so replicas never touch; their mean norm."""
        grads = [p.grad for _, p in self.parameters() if p.grad is not None]
        if not grads:
            return 0.0
        squares = torch.stack([g.flatten(1).pow(2).sum(1) for g in grads]).sum(0)  # [M]
        norms = squares.sqrt()
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


def save_peft(
    adapters: Adapters, replica: int, directory: Path, *, base: str, weights: Mapping[str, Tensor]
) -> None:
    """Write one replica as a directory that `peft.PeftModel.from_pretrained` loads.

    `weights` are stacked tensors by the names of `Adapters.parameters` (live ones or averages).
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    layers = adapters.layers
    one = next(iter(layers.values()))
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=adapters.rank,
        lora_alpha=one.scales[replica] * adapters.rank,
        target_modules=sorted(layers),
        fan_in_fan_out=one.transposed,
        inference_mode=True,
    ).to_dict()
    settings["target_modules"] = sorted(layers)
    tensors = {}
    for name in layers:
        for part in "ab":
            key = f"{PEFT_PREFIX}{name}.lora_{part.upper()}.weight"
            tensors[key] = weights[f"{name}.{part}"][replica].detach().cpu().contiguous().clone()
    write_atomic(
        directory / ADAPTER_WEIGHTS,
        lambda path: save_file(tensors, path, metadata={"format": "pt"}),
    )
    text = json.dumps(settings, indent=2, sort_keys=True, default=_jsonable) + "\n"
    write_atomic(directory / ADAPTER_CONFIG, text)


def _jsonable(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def read_peft(directory: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], float, str | None]:
    """((A, B) by layer name, scale, base model) of a PEFT LoRA directory.

    Raises ModelError for what is no plain safetensors LoRA (pickle, DoRA, full modules).
    """
    from safetensors.torch import load_file

    weights, settings = directory / ADAPTER_WEIGHTS, directory / ADAPTER_CONFIG
    if not weights.is_file() or not settings.is_file():
        raise ModelError(
            f"{directory} holds no {ADAPTER_WEIGHTS} with its {ADAPTER_CONFIG}",
            hint="Save it with model.save_pretrained(DIR, safe_serialization=True).",
        )
    facts = json.loads(settings.read_text(encoding="utf-8"))
    special = [k for k in ("use_dora", "modules_to_save", "alpha_pattern") if facts.get(k)]
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(weights).items():
        name, found, part = key.removeprefix(PEFT_PREFIX).rpartition(".lora_")
        part = part.removesuffix(".weight").removesuffix(".default")
        if not found or part not in ("A", "B"):
            special.append(key)
            continue
        halves.setdefault(name, {})[part] = tensor.float()
    if special or facts.get("peft_type") != "LORA" or any(len(h) != 2 for h in halves.values()):
        raise ModelError(
            f"{directory} is no plain LoRA adapter ({', '.join(special[:5]) or 'peft_type'})",
            hint="Only LoRA A and B matrices on linear layers can be scored.",
        )
    rank = float(facts["r"])
    scale = facts["lora_alpha"] / (math.sqrt(rank) if facts.get("use_rslora") else rank)
    return (
        {name: (h["A"], h["B"]) for name, h in halves.items()},
        scale,
        facts.get("base_model_name_or_path"),
    )


def attach_peft(model: PreTrainedModel, directories: Sequence[Path]) -> Adapters:
    """Adapters holding somebody else's LoRA directories, one a replica, ranks padded by zeros."""
    read = [read_peft(directory) for directory in directories]
    names = sorted({name for layers, _, _ in read for name in layers})
    prefix = next(name for name, m in model.named_modules() if m is block_list(model)) + "."
    foreign = [name for name in names if not name.startswith(prefix)]
    known = set(linear_names(model, 0, ()))
    if foreign or set(names) - known:
        unknown = foreign or sorted(set(names) - known)
        raise ModelError(
            f"the adapters adapt layers this model lacks: {', '.join(unknown[:5])}",
            hint="Give --model the base the adapters were trained on.",
        )
    rank = max(int(a.shape[0]) for layers, _, _ in read for a, _ in layers.values())
    first = min(int(name[len(prefix) :].split(".")[0]) for name in names)
    model.requires_grad_(False)
    model.eval()
    adapters = Adapters(model, len(read), rank, first)
    adapters.attach(names)
    for m, (layers, _, _) in enumerate(read):
        for name, (a, b) in layers.items():
            layer = adapters.layers[name]
            if a.shape[1] != layer.inputs or b.shape[0] != layer.outputs:
                raise ModelError(
                    f"{directories[m]}: {name} has another shape than this model's layer",
                    hint="Give --model the base the adapters were trained on.",
                )
            with torch.no_grad():
                layer.a[m, : a.shape[0]] = a.to(layer.a.device)
                layer.b[m, :, : b.shape[1]] = b.to(layer.b.device)
    for name, layer in adapters.layers.items():
        layer.scales = tuple(scale if name in layers else 0.0 for layers, scale, _ in read)
    return adapters
