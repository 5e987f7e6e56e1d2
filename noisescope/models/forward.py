"""The forward pass of a transformers causal model: states, log-probabilities, features of tokens.

    logps = response_logps(model, batch)  # [P], differentiable

`Batch` holds packed rows as tensors; `run_batch` makes a `Trace`, from which `GROUPS` compute the
feature groups of each item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import ModelError
from noisescope.models.anatomy import (
    anatomy,
    head_states,
    hooked,
    padded,
    setting,
    states_of,
)
from noisescope.models.packing import Corpus, Packed

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

    blocks = anatomy(model).blocks
    layers = [blocks[max(0, round(depth * len(blocks)) - 1)] for depth in DEPTHS.values()]
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
    `shown` are pictures in the prompts of plain rows: what the model takes beside `ids`, by name.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None
    sources: torch.Tensor
    targets: torch.Tensor
    places: torch.Tensor
    owners: torch.Tensor
    items: Int
    runs: Sequence[tuple[slice, int]]
    shown: Mapping[str, torch.Tensor] = field(default_factory=dict)


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

    kept: dict[torch.nn.Module, list[torch.Tensor]] = {layer: [] for layer in layers}

    def keep(layer: torch.nn.Module, _inputs: object, output: Any) -> None:
        states = states_of(output)
        assert isinstance(states, torch.Tensor)
        kept[layer].append(states)

    with hooked(dict.fromkeys(layers, keep)):
        last = head_states(model, batch.runs, input_ids=batch.ids, **row_inputs(batch))
    inner = [padded(last_states(kept[layer], len(batch.runs))) for layer in layers]
    final, *others = (one.flatten(0, 1).to(batch.ids.device) for one in (last, *inner))
    return final, others  # layers may be spread over GPUs


def last_states(states: Sequence[torch.Tensor], runs: int) -> Sequence[torch.Tensor]:
    """The last states of each run of a block; ModelError unless it runs equally often in each."""
    times, rest = divmod(len(states), runs)
    if rest or not times:
        raise ModelError(f"a block of the model ran {len(states)} times in {runs} forwards")
    return states[times - 1 :: times]


def row_inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """Mask and positions of packed rows; plain rows need neither, and some models know neither:
    they have their pictures."""
    if batch.mask is None:
        return dict(batch.shown)
    return {"attention_mask": batch.mask, "position_ids": batch.positions}


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
    parts = anatomy(model)
    chunk = logits_at_once(model, states.device)
    for begin in range(0, len(targets), chunk):
        part = slice(begin, begin + chunk)
        yield parts.scale(parts.head(states[part]).to(states.device).float()), targets[part]


def logits_at_once(model: Any, device: torch.device) -> int:
    """Response positions whose logits exist at a time."""
    return max(1, LOGITS.get(device.type, 1 << 24) // anatomy(model).vocabulary)


def to_batch(corpus: Corpus, packed: Packed, device: torch.device, kind: torch.dtype) -> Batch:
    """Tensors of packed rows and their mask (`mask_of`)."""
    import torch

    flat = packed.slots.ravel()
    at = np.zeros(corpus.slots, np.int64)
    at[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
    starts = np.flatnonzero(np.diff(packed.owners, prepend=-1))
    offsets = np.arange(len(packed.owners)) - np.repeat(
        starts, np.diff(starts, append=len(packed.owners))
    )
    places = at[corpus.response_starts[packed.items[packed.owners]] + offsets]

    def tensor(array: Int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Batch(
        tensor(packed.ids),
        tensor(packed.positions),
        mask_of(packed, device, kind),
        tensor(packed.sources),
        tensor(packed.targets),
        tensor(places),
        tensor(packed.owners),
        packed.items,
        packed.runs,
    )


def mask_of(packed: Packed, device: torch.device, kind: torch.dtype) -> torch.Tensor | None:
    """Attention mask [R, 1, T, T] of a `mask_type`, None for plain rows: True where a token may
    look, or what is added to attention scores."""
    import torch

    if packed.segments is None:
        return None
    own, root = torch.from_numpy(packed.segments).to(device)
    seen: torch.Tensor = own[:, :, None] == own[:, None]
    seen |= root[:, :, None] == own[:, None]
    seen = seen.tril_()[:, None]
    if kind == torch.bool:
        return seen
    mask = torch.zeros(seen.shape, dtype=kind, device=device)
    return mask.masked_fill(~seen, torch.finfo(kind).min)


def mask_type(model: Any, dtype: torch.dtype) -> torch.dtype:
    """Type of the masks of a model that computes in `dtype`: torch's own attention takes booleans,
    whatever autocast makes of the scores."""
    import torch

    own = model.config.get_text_config()._attn_implementation
    return torch.bool if own == "sdpa" else dtype


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

    head = model.get_output_embeddings()
    tables = [one for one in model.modules() if isinstance(one, torch.nn.Embedding)]
    outside = {id(weight) for one in (*tables, head) for weight in one.parameters()}
    body = sum(weight.numel() for weight in model.parameters() if id(weight) not in outside)
    width = setting(model, "hidden_size") or 0
    heads = setting(model, "num_attention_heads") or 0
    if isinstance(heads, int) and heads:  # a list: they differ by layer, as wide as the states
        width = heads * (setting(model, "head_dim") or width // heads)
    blocks = len(anatomy(model).blocks)
    own = sum(weight.numel() for weight in head.parameters())
    return Dimensions(body, blocks * width, own)
