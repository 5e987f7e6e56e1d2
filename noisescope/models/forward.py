"""The forward pass of a transformers causal model: states, log-probabilities, features of tokens.

    logps = response_logps(model, batch)  # [P], differentiable

`Batch` holds packed rows as tensors; `run_batch` makes a `Trace`, from which `GROUPS` compute the
feature groups of each item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import ModelError
from noisescope.models.packing import Corpus, Packed, corpus_of, pack, stack

if TYPE_CHECKING:
    import torch

#: Bumped whenever the same model would give other features.
FEATURES_VERSION = 1
#: Depths, as shares of all layers, whose states are kept beside the normed last one's.
DEPTHS = {"early": 1 / 3, "middle": 2 / 3}
#: Tokens that make the beginning of a response.
BEGINNING = 8


@final
@dataclass(frozen=True)
class Trace:
    """The P response tokens of n items, those of one item side by side and in order.

    `states` maps a depth to [P, D]; `logps` and `entropies` [P] are of the model's prediction of
    each token; `own` [n, P] is True at an item's tokens. The last token, which ends the turn, is
    not part of the body; a response of one token is its own body.
    """

    states: Mapping[str, torch.Tensor]
    logps: torch.Tensor
    entropies: torch.Tensor
    own: torch.Tensor

    @cached_property
    def last(self) -> torch.Tensor:
        """Index of each item's last token, [n]."""
        import torch

        return (torch.arange(self.own.shape[1], device=self.own.device) * self.own).argmax(1)

    @cached_property
    def offsets(self) -> torch.Tensor:
        """Number of each token in its response, from 0; meaningful where `own`, [n, P]."""
        return self.own.cumsum(1) - 1

    @cached_property
    def body(self) -> torch.Tensor:
        """True at an item's tokens but the last, [n, P]."""
        size = self.own.sum(1, keepdim=True)
        return self.own & ((self.offsets < size - 1) | (size == 1))

    def mean(self, values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Mean of `values` [P, ...] over each item's tokens in `where` [n, P]: [n, ...]."""
        return (where.float() / where.sum(1, keepdim=True)) @ values.float()

    def deviation(self, values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Standard deviation of `values` [P] over each item's tokens in `where`, [n]."""
        centred = (values - self.mean(values, where)[:, None]) ** 2 * where
        return (centred.sum(1) / where.sum(1)).sqrt()


def statistics(trace: Trace) -> torch.Tensor:
    """Log length and its square; token log-probabilities: mean, deviation, least, that of ending
    here, mean of the beginning; entropies: mean and deviation. [n, 9]"""
    import torch

    body, logps, entropies = trace.body, trace.logps, trace.entropies
    length = body.sum(1).float().log()
    columns = [
        length,
        length**2,
        trace.mean(logps, body),
        trace.deviation(logps, body),
        logps.masked_fill(~body, torch.inf).amin(1),
        logps[trace.last],
        trace.mean(logps, body & (trace.offsets < BEGINNING)),
        trace.mean(entropies, body),
        trace.deviation(entropies, body),
    ]
    return torch.stack(columns, dim=1)


#: Feature groups: name -> function of a Trace, giving [n, D_g].
GROUPS: dict[str, Callable[[Trace], torch.Tensor]] = {
    "early_mean": lambda trace: trace.mean(trace.states["early"], trace.body),
    "middle_mean": lambda trace: trace.mean(trace.states["middle"], trace.body),
    "final_mean": lambda trace: trace.mean(trace.states["final"], trace.body),
    "middle_last": lambda trace: trace.states["middle"][trace.last],
    "final_last": lambda trace: trace.states["final"][trace.last],
    "statistics": statistics,
}


def run_batch(model: Any, batch: Batch) -> Trace:
    """One forward pass over a batch."""
    import torch

    layers = [layer_at(model, depth) for depth in DEPTHS.values()]
    final, inner = hidden_states(model, batch, layers)
    logps, entropies = token_surprise(model, final[batch.sources], batch.targets)
    states = zip((*DEPTHS, "final"), (*inner, final), strict=True)
    numbers = torch.arange(len(batch.items), device=batch.owners.device)
    return Trace(
        {name: values[batch.places] for name, values in states},
        logps,
        entropies,
        numbers[:, None] == batch.owners[None, :],
    )


Int = NDArray[np.int64]

#: Most logits held at once, response positions x vocabulary: the head's weights are read again for
#: each such chunk.
LOGITS = {"cpu": 1 << 23, "cuda": 1 << 28}
#: Logits of a chunk worked on at once where a cache is near: they stay in it between sweeps.
NEAR = {"cpu": 1 << 18}


@final
@dataclass(frozen=True)
class Batch:
    """B rows of T tokens on the model's device, and where their P response tokens are.

    `mask` [B, 1, T, T] is 0 where a token may look and very negative elsewhere; None means
    causal. `sources` [P] are flat positions (row * T + column) whose state predicts `targets`
    [P]; `places` [P] are the flat positions of those tokens; `owners` [P] index `items` [n].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None
    sources: torch.Tensor
    targets: torch.Tensor
    places: torch.Tensor
    owners: torch.Tensor
    items: Int


def response_logps(model: Any, batch: Batch) -> torch.Tensor:
    """Log-probability of every response token of a batch, [P]; differentiable.

    Sum over an item's tokens: `torch.zeros(n).index_add(0, batch.owners, logps)`.
    """
    states, _ = hidden_states(model, batch)
    return token_logps(model, states[batch.sources], batch.targets)


def hidden_states(
    model: Any, batch: Batch, layers: Sequence[torch.nn.Module] = ()
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Flat states [B T, D] of the normed last layer, and of each of `layers`; no others kept."""
    import torch

    kept: dict[torch.nn.Module, torch.Tensor] = {}

    def keep(layer: torch.nn.Module, _inputs: object, output: Any) -> None:
        states = output if isinstance(output, torch.Tensor) else output[0]
        kept[layer] = states.flatten(0, 1)

    hooks = [layer.register_forward_hook(keep) for layer in set(layers)]
    # A model that shares no prompts may not know these arguments.
    extra = {} if batch.mask is None else {"position_ids": batch.positions}
    try:
        output = model.base_model(
            input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, **extra
        )
    finally:
        for hook in hooks:
            hook.remove()
    states = [output.last_hidden_state.flatten(0, 1), *(kept[layer] for layer in layers)]
    final, *inner = (one.to(batch.ids.device) for one in states)  # layers may be spread over GPUs
    return final, inner


def token_logps(model: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log softmax(head(states))[targets] in float32, [P]; differentiable."""
    import torch

    parts = []
    for logits, goals in _logits(model, states, targets):
        parts.append(logits.gather(1, goals[:, None])[:, 0] - logits.logsumexp(1))
    return torch.cat(parts)


def token_surprise(
    model: Any, states: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target and entropy of its distribution in nats, [P] each.

    With z the logits of a position: lse z = log sum exp z, log p(t) = z_t - lse z and
    H = lse z - sum p z, all from one exp of z - max z.
    """
    import torch

    logps, entropies = [], []
    for logits, goals in _logits(model, states, targets):
        near = max(1, NEAR.get(logits.device.type, logits.numel()) // logits.shape[1])
        for part, chosen in zip(torch.split(logits, near), torch.split(goals, near), strict=True):
            top = part.amax(1, keepdim=True)
            weights = (part - top).exp_()
            sums = weights.sum(1)
            total = top[:, 0] + sums.log()
            logps.append(part.gather(1, chosen[:, None])[:, 0] - total)
            entropies.append(total - torch.linalg.vecdot(weights, part) / sums)
    return torch.cat(logps), torch.cat(entropies)


def _logits(
    model: Any, states: torch.Tensor, targets: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(float32 logits [k, V], targets [k]) of a few positions at a time."""
    head = model.get_output_embeddings()
    scale = logit_scaling(model)
    chunk = max(1, LOGITS.get(states.device.type, 1 << 24) // head.weight.shape[0])
    for begin in range(0, len(targets), chunk):
        part = slice(begin, begin + chunk)
        yield scale(head(states[part]).to(states.device).float()), targets[part]


def setting(model: Any, name: str) -> Any:
    """A field of the language model's config under its usual name; None if it has none."""
    config = model.config.get_text_config()
    return config.to_dict().get(config.attribute_map.get(name, name))


def logit_scaling(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The scaling that an architecture applies to its logits: Cohere, Granite, Gemma 2."""
    import torch

    factor = (setting(model, "logit_scale") or 1.0) / (setting(model, "logits_scaling") or 1.0)
    cap = setting(model, "final_logit_softcapping")
    if cap:
        return lambda logits: cap * torch.tanh(logits / cap)
    return (lambda logits: logits * factor) if factor != 1.0 else (lambda logits: logits)


def to_batch(
    corpus: Corpus, packed: Packed, device: torch.device, mask_type: torch.dtype | None
) -> Batch:
    """Tensors of packed rows; without a `mask_type`, rows hold one item each and need no mask."""
    import torch

    flat = packed.slots.ravel()
    at = np.zeros(corpus.slots, np.int64)
    at[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
    starts = np.flatnonzero(np.diff(packed.owners, prepend=-1))
    offsets = np.arange(len(packed.owners)) - np.repeat(
        starts, np.diff(starts, append=len(packed.owners))
    )
    places = at[corpus.response_starts[packed.items[packed.owners]] + offsets]
    mask = None
    if mask_type is not None:
        seen = torch.from_numpy(packed.mask).to(device)[:, None]
        mask = torch.zeros(seen.shape, dtype=mask_type, device=device)
        mask = mask.masked_fill(~seen, torch.finfo(mask_type).min)

    def tensor(array: Int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Batch(
        tensor(packed.ids),
        tensor(packed.positions),
        mask,
        tensor(packed.sources),
        tensor(packed.targets),
        tensor(places),
        tensor(packed.owners),
        packed.items,
    )


@final
@dataclass(frozen=True)
class Dimensions:
    """Weights a token meets in the body, layers x heads x head size, weights of the head."""

    body: int
    attention: int
    head: int


def measure(model: Any) -> Dimensions:
    """Dimensions of a transformers causal model, from its modules and config."""
    import torch

    weights = sum(weight.numel() for weight in model.base_model.parameters())
    embeddings = sum(
        module.weight.numel()
        for module in model.base_model.modules()
        if isinstance(module, torch.nn.Embedding)
    )
    head = model.get_output_embeddings().weight.numel()
    heads = setting(model, "num_attention_heads") or 0
    width = heads * (setting(model, "head_dim") or setting(model, "hidden_size") // max(heads, 1))
    return Dimensions(weights - embeddings, setting(model, "num_hidden_layers") * width, head)


def layer_at(model: Any, depth: float) -> torch.nn.Module:
    """The layer after which `depth` of all layers have run. Raises ModelError without layers."""
    import torch

    count = setting(model, "num_hidden_layers")
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            layer: torch.nn.Module = module[max(0, round(depth * count) - 1)]
            return layer
    raise ModelError(
        f"{type(model).__name__} does not keep its {count} layers in one list",
        hint="Please report the architecture; use another model meanwhile.",
    )


def check_model(model: Any) -> bool:
    """Whether packed rows read as separate ones do, tried on one small prompt with two responses.

    Raises ModelError if even a plain row's log-probabilities differ from the model's own: its head
    then does something noisescope does not support.
    """
    import torch

    tolerance = 2e-3 if model.dtype == torch.float32 else 0.15
    size = int(model.get_output_embeddings().weight.shape[0])
    token = [(7 * i * i + 3 * i + 1) % size for i in range(12)]
    corpus = corpus_of([(token[:4], token[4:7]), (token[:4], token[7:12])])
    rows, _ = stack([pack(corpus, [item], 1) for item in (0, 1)])
    with torch.inference_mode():
        plain = to_batch(corpus, rows, model.device, None)
        logits = model(input_ids=plain.ids, use_cache=False).logits.flatten(0, 1)
        own = logits[plain.sources].float().log_softmax(1)
        truth = own.gather(1, plain.targets[:, None])[:, 0]
        if float((response_logps(model, plain) - truth).abs().max()) > tolerance:
            raise ModelError(
                f"{type(model).__name__} changes its logits in a way noisescope does not support",
                hint="Please report the architecture; use another model meanwhile.",
            )
        try:
            packed = to_batch(corpus, pack(corpus, [0, 1], 16), model.device, model.dtype)
            found = response_logps(model, packed)
        except (TypeError, ValueError, RuntimeError, IndexError):
            return False
    return bool((found - truth).abs().max() <= tolerance)
