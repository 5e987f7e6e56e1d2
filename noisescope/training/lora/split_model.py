"""Split a causal LM at its first adapted block; log-probabilities at response tokens only.

The blocks below the split run once per distinct prompt and response without gradient; the blocks
above it run for every replica. `InjectStates` replaces the blocks below, so any transformers model
runs its own forward code, with its own masks, positions and norms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from noisescope.errors import ModelError
from noisescope.models.packing import Packed
from noisescope.training.lora.adapters import block_list

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS, COLUMNS = 1024, 4096  # response tokens x vocabulary entries whose logits exist at a time


class _TokenLogps(torch.autograd.Function):
    """log softmax(h W' + b)[target] of each row, and its slope W[target] - p W in the same pass.

    Tiles of the vocabulary are folded with a running maximum (2205.14135, section 3.1), so a
    tile's logits feed both the normaliser and p W while they are in cache, and are then gone.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        logps = hidden.new_empty(len(hidden), dtype=torch.float32)
        for start in range(0, len(hidden), ROWS):
            rows = slice(start, start + ROWS)
            top, total, mean = _fold_vocabulary(hidden[rows], weight, bias, slope is not None)
            goal = weight[targets[rows]]
            chosen = (hidden[rows].float() * goal.float()).sum(1)
            chosen = chosen if bias is None else chosen + bias[targets[rows]].float()
            logps[rows] = chosen - top - total.log()
            if slope is not None and mean is not None:
                slope[rows] = (goal - mean / total[:, None]).to(slope.dtype)
        if slope is not None:
            ctx.save_for_backward(slope)
        return logps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0][:, None].to(slope.dtype), None, None, None


def _fold_vocabulary(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, with_mean: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(max logit [n], sum exp(logit - max) [n], sum exp(logit - max) W [n, D] if asked)."""
    top = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
    total = torch.zeros_like(top)
    mean = torch.zeros(hidden.shape, device=hidden.device) if with_mean else None
    for start in range(0, len(weight), COLUMNS):
        tile = weight[start : start + COLUMNS]
        part = None if bias is None else bias[start : start + COLUMNS]
        logits = nn.functional.linear(hidden, tile, part).float()  # [n, COLUMNS]
        higher = torch.maximum(top, logits.amax(1))
        shrink = (top - higher).exp_()
        logits.sub_(higher[:, None]).exp_()
        total.mul_(shrink).add_(logits.sum(1))
        if mean is not None:
            mean.mul_(shrink[:, None])
            if tile.dtype == torch.float32:
                mean.addmm_(logits, tile)
            else:
                mean.add_(logits.to(tile.dtype) @ tile)
        top = higher
    return top, total, mean


def frozen_head_logps(hidden: Tensor, head: nn.Linear, targets: Tensor) -> Tensor:
    """log pi(target | state) for states [n, D] and targets [n]: [n] float32.

    The head gets no gradient. `models.forward.token_logps` is the one with a gradient for the head,
    and with an architecture's scaling of its logits.
    """
    logps: Tensor = _TokenLogps.apply(hidden, head.weight, head.bias, targets)  # type: ignore[no-untyped-call]
    return logps


@final
class InjectStates(nn.Module):
    """Replaces the blocks below the split: returns the states it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None
        self.as_tuple = False

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Any:
        result = hidden if self.hidden is None else self.hidden
        return (result,) if self.as_tuple else result


@final
class Recomputed(nn.Module):
    """A block whose activations are not kept but computed again in the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> Any:
        return checkpoint(partial(self.block, **kwargs), hidden, *args, use_reentrant=False)


@final
class SplitModel:
    """`model` in two halves: the blocks below `first`, and the others."""

    def __init__(self, model: PreTrainedModel, first: int, *, checkpointing: bool = False) -> None:
        self.model = model
        self.first = first
        self.blocks = block_list(model)
        self.own = list(self.blocks)
        self.inject = InjectStates()
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ModelError(
                f"{type(model).__name__} has no linear output layer",
                hint="Use --kind head, which needs no log-probabilities.",
            )
        self.head = head
        self.checkpointing = checkpointing
        self._check_head()

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.head.weight.device

    def _check_head(self) -> None:
        """Raise ModelError if the model changes its head's output (scaling, soft cap)."""
        ids = torch.arange(4, device=self.device)[None] % self.head.weight.shape[0]
        with torch.inference_mode():
            own = self.model(input_ids=ids, use_cache=False).logits[0].float()
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            ours = nn.functional.linear(hidden, self.head.weight, self.head.bias).float()
        if not torch.allclose(own, ours, rtol=1e-2, atol=1e-2 * float(own.abs().max())):
            raise ModelError(
                f"{type(self.model).__name__} rescales its logits, unknown to LoRA replicas",
                hint="Use --kind head.",
            )

    @contextmanager
    def _top_only(self, hidden: Tensor | None) -> Iterator[None]:
        """Blocks below the split replaced by `hidden` [R, T, D]; the others recomputed in the
        backward pass if `checkpointing`."""
        self.inject.hidden = hidden
        for i, block in enumerate(self.own):
            if i < self.first:
                self.blocks[i] = self.inject
            elif self.checkpointing and torch.is_grad_enabled():
                self.blocks[i] = Recomputed(block)
        try:
            yield
        finally:
            self.inject.hidden = None
            for i, block in enumerate(self.own):
                self.blocks[i] = block

    def _run(self, packed: Packed, **inputs: Tensor) -> Tensor:
        """Last hidden states [R, T, D] under the packed rows' masks and positions."""
        mask = torch.from_numpy(packed.mask)[:, None].to(self.device)
        if self.model.config._attn_implementation != "sdpa":
            low = torch.finfo(self.head.weight.dtype).min
            mask = torch.zeros(mask.shape, device=self.device).masked_fill(~mask, low)
            mask = mask.to(self.head.weight.dtype)
        output = self.model.base_model(
            attention_mask=mask,
            position_ids=torch.from_numpy(packed.positions).to(self.device),
            use_cache=False,
            **inputs,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def reference_pass(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """(states entering block `first`, last states), both [R, T, D], with adapters off."""
        seen: list[Tensor] = []
        outputs: list[Any] = []
        hooks = [
            self.own[self.first].register_forward_pre_hook(lambda _, args: seen.append(args[0])),
            self.own[0].register_forward_hook(lambda _, args, output: outputs.append(output)),
        ]
        try:
            last = self._run(packed, input_ids=torch.from_numpy(packed.ids).to(self.device))
        finally:
            for hook in hooks:
                hook.remove()
        self.inject.as_tuple = isinstance(outputs[0], tuple)
        return seen[0], last

    def top(self, packed: Packed, hidden: Tensor | None) -> Tensor:
        """Last states [R, T, D] from the states entering block `first` (None: from the tokens)."""
        with self._top_only(hidden):
            if hidden is None:
                return self._run(packed, input_ids=torch.from_numpy(packed.ids).to(self.device))
            return self._run(packed, inputs_embeds=hidden)

    def item_logps(self, packed: Packed, last: Tensor) -> Tensor:
        """log pi(response | prompt) of each packed item, summed over its tokens: [k]."""
        states = last.flatten(0, 1)[torch.from_numpy(packed.sources).to(self.device)]
        logps = frozen_head_logps(
            states, self.head, torch.from_numpy(packed.targets).to(self.device)
        )
        owners = torch.from_numpy(packed.owners).to(self.device)
        total = torch.zeros(len(packed.items), device=self.device)
        return total.index_add(0, owners, logps)
