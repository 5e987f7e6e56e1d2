"""Check that adapters beside frozen layers do what adapters merged into the weights would do.

A model may read a layer's weight without calling the layer, or call it with other shapes than rows
of tokens. Both are found by running the model, in float32, with adapters that are not zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noisescope.errors import ModelError
from noisescope.models.anatomy import float32, hooked, probe_tokens, quantised
from noisescope.models.verify import LEAST

if TYPE_CHECKING:
    from noisescope.training.lora.adapters import Adapters, PackedLinear, Segments

#: Rows of the text, and the largest error of merged adapters as a share of what they change.
ROWS, ERROR = 2, 1e-3


def check_adapters(adapters: Adapters) -> None:
    """Set `adapters.together`; detach layers that do not compute x W', and those whose weights the
    model reads without calling them.

    Raises ModelError if merged adapters on the others still give other logits. Quantised weights
    cannot be merged exactly and are not compared.
    """
    with torch.no_grad():
        _detach_others(adapters)
        _fill(adapters)
        try:
            error, unused = _error(adapters)
            if error > ERROR and unused:
                adapters.detach(unused)
                error, _ = _error(adapters)
        finally:
            for _, tensor in adapters.parameters():
                tensor.zero_()
    if error > ERROR:
        raise ModelError(
            f"{type(adapters.model).__name__} uses the weights of its linear layers in a way that "
            "adapters do not follow",
            hint="Name other layers with --targets, or use --kind head.",
        )


def _detach_others(adapters: Adapters) -> None:
    """Detach layers of a linear layer's class that return other shapes, as block-diagonal ones."""
    model = adapters.model
    own = {layer: name for name, layer in adapters.layers.items() if not layer.dense}
    others: set[str] = set()

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.shape != (*inputs[0].shape[:-1], layer.outputs):
            others.add(own[layer])

    if own:
        with hooked(dict.fromkeys(own, note)), float32(model):
            model(input_ids=probe_tokens(model, LEAST), use_cache=False)
    if others:
        adapters.detach(sorted(others))


def _error(adapters: Adapters) -> tuple[float, list[str]]:
    """(largest difference of logits between adapters beside and inside the weights, as a share of
    what they change; names of the layers that are not called)."""
    model, layers = adapters.model, adapters.layers
    ids = probe_tokens(model, LEAST).expand(ROWS, -1)
    shapes: dict[nn.Module, torch.Size] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Any) -> None:
        shapes[layer] = inputs[0].shape

    def logits(segments: Segments, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        with adapters.placement.of(segments), float32(model, change):
            found: Tensor = model(input_ids=ids, use_cache=False).logits
        return found

    deltas = {id(layer.weight): _delta(layer) for layer in layers.values() if layer.dense}

    def merged(weight: Tensor) -> Tensor:
        delta = deltas.get(id(weight))
        return weight.data if delta is None else weight.data.float() + delta

    with hooked(dict.fromkeys(layers.values(), note)):
        beside = logits(((0, 0, ROWS),))
    rows = [shapes.get(layer, torch.Size())[:-1] == ids.shape for layer in layers.values()]
    adapters.together = all(rows)
    unused = [name for name, layer in layers.items() if layer not in shapes]
    if quantised(model) or len(deltas) < len(layers):
        return 0.0, unused
    inside, plain = logits((), merged), logits(())
    return float((beside - inside).abs().max() / (inside - plain).abs().max()), unused


def _fill(adapters: Adapters) -> None:
    """Draw adapters that change the layers' outputs by about a tenth.

    Those of a weight that several layers share stay zero: merged, one would be in all of them.
    """
    own = [module._parameters.get("weight") for module in adapters.model.modules()]
    users = Counter(id(weight) for weight in own if weight is not None)
    generator = torch.Generator().manual_seed(0)
    for layer in adapters.layers.values():
        if users[id(layer.weight)] > 1:
            continue
        layer.a.copy_(torch.randn(layer.a.shape, generator=generator))
        size = 0.1 / (layer.inputs * layer.a.shape[1]) ** 0.5
        layer.b.copy_(torch.randn(layer.b.shape, generator=generator) * size)


def _delta(layer: PackedLinear) -> Tensor:
    """What merging the first adapter adds to the weight."""
    delta = layer.scales[0] * layer.b[0] @ layer.a[0]
    return delta.T if layer.transposed else delta
