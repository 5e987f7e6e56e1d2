"""Find the parts of a transformers causal model by running it: blocks, head, scale of the logits.

    parts = anatomy(model)
    parts.blocks[2], parts.head, parts.scale(parts.head(states))

Architectures keep these parts in different places and rescale their logits in different ways, so
nothing is looked up by name: a short text is run once, and what it passes through is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final
from weakref import WeakKeyDictionary

from noisescope.errors import ModelError, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Scale = Callable[[Tensor], Tensor]

#: Tokens of the text that finds the parts.
PROBE = 6
#: Largest difference between rebuilt and own logits, of the largest logit; with quantised weights.
SAME, NEAR = 1e-4, 2e-2
REPORT = "Please report the architecture; use another model meanwhile."


@final
@dataclass(frozen=True)
class Anatomy:
    """Parts of a model: the stack of blocks a text passes through and its name, the output layer,
    the vocabulary its logits cover, and what is done to the output layer's result."""

    blocks: nn.ModuleList
    name: str
    head: nn.Module
    vocabulary: int
    scale: Scale
    scaled: bool


_KNOWN: WeakKeyDictionary[Any, Anatomy] = WeakKeyDictionary()


def anatomy(model: Any) -> Anatomy:
    """The parts of `model`, found at the first call. Raises ModelError naming what has none."""
    if model not in _KNOWN:
        _KNOWN[model] = _find(model)
    return _KNOWN[model]


def text_config(model: Any) -> dict[str, Any]:
    """Fields of the language model's configuration."""
    fields: dict[str, Any] = model.config.get_text_config().to_dict()
    return fields


def states_of(output: Any) -> Tensor | None:
    """Hidden states [B, T, D] of a block's output; the mean of several copies [C, B, T, D]."""
    import torch

    states = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(states, torch.Tensor):
        return None
    return states.mean(0) if states.ndim == 4 else states


@contextmanager
def hooked(hooks: Mapping[nn.Module, Callable[[nn.Module, Any, Any], None]]) -> Iterator[None]:
    """Call `hooks[module](module, inputs, output)` after each of its forwards."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def head_states(model: Any, runs: Sequence[tuple[slice, int]], **inputs: Tensor) -> Tensor:
    """Run `model` over some rows at a time (`Packed.runs`) and return what enters its output layer,
    [B, T, D], 0 beyond a run's tokens.

    The layer itself is run at a single position: its logits are computed where they are needed.
    """
    if len(runs) == 1:
        return _head_states(model, inputs)
    parts = [
        _head_states(model, {name: rows[some, :width] for name, rows in inputs.items()})
        for some, width in runs
    ]
    return padded(parts)


def padded(parts: Sequence[Tensor]) -> Tensor:
    """States [B_i, T_i, D] as one tensor, 0 beyond each T_i."""
    import torch

    width = max(part.shape[1] for part in parts)
    pad = torch.nn.functional.pad
    return torch.cat([pad(part, (0, 0, 0, width - part.shape[1])) for part in parts])


def _head_states(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """What enters the output layer in one forward, [B, T, D]."""

    seen: list[torch.Tensor] = []

    def keep(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0])
        return (args[0][..., :1, :], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        model(**inputs, use_cache=False)
    finally:
        handle.remove()
    return seen[-1]


def probe_tokens(model: Any, count: int) -> Tensor:
    """`count` token ids that differ from their neighbours, [1, count]."""
    import torch

    size = model.get_input_embeddings().weight.shape[0]
    ids = [(7 * i * i + 3 * i + 1) % size for i in range(count)]
    return torch.tensor([ids], device=model.device)


def _find(model: Any) -> Anatomy:
    """The parts of a model, from one run over a short text."""
    import torch

    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no output layer", hint=REPORT)
    stacks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module)
    }
    seen: dict[nn.Module, Any] = {}
    raw: list[Tensor] = []

    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        seen[module] = states_of(output)

    blocks = {block: note for stack in stacks.values() for block in stack}
    with torch.no_grad():
        try:
            with hooked(blocks):
                own = _logits(model, probe_tokens(model, PROBE))
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} does not run in {model.dtype}: {first_line(error)}",
                hint="Try --dtype float32, or another model.",
            ) from error
        if not bool(own.isfinite().all()):
            raise ModelError(
                f"{type(model).__name__} computes logits that are not finite in {model.dtype}",
                hint="Use --dtype float32 or bfloat16.",
            )
        name, stack = _stack(model, stacks, seen)
        with (
            float32(model, blocks=list(stack)),
            hooked({head: lambda _module, _inputs, output: raw.append(output)}),
        ):
            own = _logits(model, probe_tokens(model, PROBE))
    if len(raw) != 1:
        raise ModelError(f"{type(model).__name__} has an output layer of its own kind", hint=REPORT)
    scale, scaled = _scale(model, raw[0].reshape(-1, raw[0].shape[-1]), own)
    return Anatomy(stack, name, head, own.shape[-1], scale, scaled)


def _logits(model: Any, ids: Tensor) -> Tensor:
    """The model's own logits of one text, [T, V] float32."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0].float()
    return logits


def _stack(
    model: Any, stacks: Mapping[str, nn.ModuleList], seen: Mapping[nn.Module, Any]
) -> tuple[str, nn.ModuleList]:
    """The list whose every module a text passed through: as long as the configuration names, or
    the longest, the outermost first."""
    passed = {
        name: stack
        for name, stack in stacks.items()
        if all(seen.get(block) is not None and seen[block].ndim == 3 for block in stack)
    }
    if not passed:
        raise ModelError(
            f"{type(model).__name__} does not keep its blocks in one list", hint=REPORT
        )
    depth = setting(model, "num_hidden_layers")
    name = max(passed, key=lambda name: (len(passed[name]) == depth, len(passed[name])))
    return name, passed[name]


def setting(model: Any, name: str) -> Any:
    """A field of the language model's config under its usual name; None if it has none."""
    config = model.config.get_text_config()
    return config.to_dict().get(config.attribute_map.get(name, name))


def _scale(model: Any, raw: Tensor, own: Tensor) -> tuple[Scale, bool]:
    """What turns the output layer's result `raw` [n, V] into the model's logits `own`, and whether
    that is anything: a factor, a cap c tanh(z / c) or both, of numbers in the configuration."""
    size = own.shape[-1]
    near = (NEAR if quantised(model) else SAME) * float(own.abs().max())
    raw = raw.float()
    if raw.shape == own.shape and float((raw - own).abs().max()) <= near:
        return lambda logits: logits, False
    numbers = {
        float(value)
        for key, value in text_config(model).items()
        if isinstance(value, int | float) and value and ("log" in key or "mult" in key)
    }
    factors = sorted({1.0, *numbers, *(1 / value for value in numbers)})
    caps: list[float | None] = [None, *sorted(abs(value) for value in numbers)]
    found = [
        (float((_rescale(factor, cap, size)(raw) - own).abs().max()), factor, cap)
        for factor in factors
        for cap in caps
    ]
    error, factor, cap = min(found, key=lambda one: (one[0], one[1], one[2] or 0.0))
    if error > near:
        raise ModelError(
            f"{type(model).__name__} changes its logits in a way noisescope does not support",
            hint=REPORT,
        )
    return _rescale(factor, cap, size), True


def _rescale(factor: float, cap: float | None, size: int) -> Scale:
    """c tanh(f z / c), or f z without a cap, of the first `size` logits."""

    def rescaled(logits: Tensor) -> Tensor:
        logits = logits[..., :size] * factor
        return logits if cap is None else cap * (logits / cap).tanh()

    return rescaled


@contextmanager
def float32(
    model: Any,
    change: Callable[[Tensor], Tensor] | None = None,
    blocks: Sequence[nn.Module] = (),
) -> Iterator[None]:
    """Run `model` in float32: a block's weights are converted just before it and put back after.

    `change` may replace a converted weight. Quantised models run as they are, and so do those whose
    weights are loaded when they are needed.
    """
    import torch

    if quantised(model):
        yield
        return
    blocks = list(blocks or anatomy(model).blocks)
    inside = {id(weight) for block in blocks for weight in _tensors(block)}
    held: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def convert(weights: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        kept = []
        for weight in weights:
            data = weight.data
            if type(data) is not torch.Tensor:  # a quantised one
                continue
            if data.dtype in (torch.bfloat16, torch.float16):
                weight.data = data.float()
            if change is not None:
                weight.data = change(weight)
            if weight.data is not data:
                kept.append((weight, data))
        return kept

    def put_back(kept: list[tuple[Tensor, Tensor]]) -> None:
        for weight, data in kept:
            weight.data = data

    def before(block: nn.Module, _inputs: Any) -> None:
        held[id(block)] = convert(_tensors(block))

    def after(block: nn.Module, _inputs: Any, _output: Any) -> None:
        put_back(held.pop(id(block), []))

    handles = [block.register_forward_pre_hook(before) for block in blocks]
    handles += [block.register_forward_hook(after, always_call=True) for block in blocks]
    outer = convert([weight for weight in _tensors(model) if id(weight) not in inside])
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for kept in held.values():
            put_back(kept)
        put_back(outer)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module, each once."""
    return list({id(one): one for one in (*module.parameters(), *module.buffers())}.values())


def quantised(model: Any) -> bool:
    """Whether the weights of a model are quantised, or not in memory."""
    if any(weight.is_meta for weight in model.parameters()):
        return True
    return model.config.to_dict().get("quantization_config") is not None
