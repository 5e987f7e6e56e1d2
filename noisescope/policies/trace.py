"""What a causal model leaves at the tokens of a response, and the feature groups made of it.

    trace = run_batch(model, batch)
    GROUPS["final_mean"](trace)  # [n, D]

The groups are those that held-out likelihood kept on real preference data: pooled states of
three depths, the state of the last token at two, and nine statistics of the token
log-probabilities. Adding a group is a line of GROUPS (and a new FEATURES_VERSION).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

from noisescope.policies.forward import Batch, hidden_states, layer_at, token_surprise

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
    told apart from the others, the body; a response of one token is its own body.
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
