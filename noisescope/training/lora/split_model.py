"""Split a causal LM at its first adapted block; log-probabilities at response tokens only.

The blocks below the split run once per distinct prompt and response without gradient; the blocks
above it run for every replica. The model always runs its own forward code, with its own masks,
positions and norms: blocks below the split are made to return what they returned before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from noisescope.models.anatomy import anatomy, float32, head_states
from noisescope.models.forward import logits_at_once, mask_of, mask_type, token_logps
from noisescope.models.packing import Packed, Rows, pack, stack
from noisescope.models.verify import probe_corpus, probe_length
from noisescope.training.lora.adapters import is_dense

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from noisescope.training.lora.activations import Activations
    from noisescope.training.lora.adapters import Adapters, Placement

#: Largest difference of a cut run's last states, of the largest state.
CUT = 1e-5
#: Tokens of the longest text, if it is not given.
LONGEST = 1024
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


@contextmanager
def _forwards(changed: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Run other functions in place of some modules' forwards; the modules stay where they are."""
    for module, forward in changed.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _recomputed(block: nn.Module, placement: Placement | None) -> Callable[..., Any]:
    """A block's forward whose activations are not kept but computed again in the backward pass,
    by the same adapters."""
    segments = () if placement is None else placement.segments
    own = block.forward

    def run(*args: Any, **inputs: Any) -> Any:
        with nullcontext() if placement is None else placement.of(segments):
            return own(*args, **inputs)

    return lambda *args, **inputs: checkpoint(run, *args, use_reentrant=False, **inputs)


@final
class SplitModel:
    """`model`, whose blocks from `first` on are adapted, run over packed rows.

    `cut` is the number of blocks below whose output may be stored: `first`, or 0 if a run that
    begins with stored states differs from a whole one (checked in float32 on texts of up to
    `longest` tokens): some architectures read the tokens, or earlier blocks, again further up.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        first: int,
        *,
        checkpointing: bool = False,
        rows: Rows = "packed",
        longest: int = LONGEST,
    ) -> None:
        self.model = model
        self.first = self.cut = first
        self.parts = anatomy(model)
        self.checkpointing = checkpointing
        self.outputs = 0  # of a block: 0 for a tensor, else the length of a tuple
        if first and (rows == "alone" or not self._cuts(longest, rows)):
            self.cut = 0

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        device: torch.device = self.model.device
        return device

    def _cuts(self, longest: int, rows: Rows) -> bool:
        """Whether the blocks below `first` may be replaced by their stored output."""
        length = probe_length(self.model, longest)
        corpus = probe_corpus(self.model, length, rows)
        packed = pack(corpus, list(range(len(corpus.responses))), 2 * length)
        try:
            with torch.no_grad(), float32(self.model):
                entering, last = self.reference_pass(packed, torch.float32)
                if entering is None or entering.ndim != 3:
                    return False
                again = self.top(packed, entering, kind=torch.float32)
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError):
            return False
        return bool((last - again).abs().max() <= CUT * last.abs().max())

    @contextmanager
    def _top_only(self, hidden: Tensor | None, placement: Placement | None) -> Iterator[None]:
        """Blocks below the cut replaced by `hidden` [R, T, D]; the others recomputed in the
        backward pass if `checkpointing`."""
        result = hidden if not self.outputs else (hidden, *[None] * (self.outputs - 1))
        blocks = list(self.parts.blocks)
        changed: dict[nn.Module, Callable[..., Any]] = {}
        for block in blocks[: 0 if hidden is None else self.cut]:
            changed[block] = lambda *_args, **_inputs: result
        if self.checkpointing and torch.is_grad_enabled():
            for block in blocks[0 if hidden is None else self.cut :]:
                changed[block] = _recomputed(block, placement)
        with _forwards(changed):
            yield

    def _run(self, packed: Packed, kind: torch.dtype | None, **inputs: Tensor) -> Tensor:
        """Last hidden states [R, T, D] under the packed rows' masks and positions."""
        if packed.pictures is not None:
            return packed.pictures.states(self.model, packed)
        kind = mask_type(self.model, kind or self.model.dtype)
        mask = mask_of(packed, self.device, kind)
        if mask is not None:
            positions = torch.from_numpy(packed.positions).to(self.device)
            inputs |= {"attention_mask": mask, "position_ids": positions}
        return head_states(self.model, packed.runs, **inputs)

    def reference_pass(
        self, packed: Packed, kind: torch.dtype | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """(states entering block `cut`, None without a cut; last states), both [R, T, D], with
        adapters off."""
        seen: list[Tensor] = []

        def entering(_block: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
            seen.append(args[0] if args else inputs["hidden_states"])

        def leaving(_block: nn.Module, _args: Any, output: Any) -> None:
            self.outputs = len(output) if isinstance(output, tuple) else 0

        blocks = self.parts.blocks
        handles = [blocks[0].register_forward_hook(leaving)]
        if self.cut:
            handles += [blocks[self.cut].register_forward_pre_hook(entering, with_kwargs=True)]
        try:
            last = self._run(packed, kind, input_ids=torch.from_numpy(packed.ids).to(self.device))
        finally:
            for handle in handles:
                handle.remove()
        return (seen[0] if self.cut else None), last

    def top(
        self,
        packed: Packed,
        hidden: Tensor | None,
        placement: Placement | None = None,
        kind: torch.dtype | None = None,
    ) -> Tensor:
        """Last states [R, T, D] from the states entering block `cut` (None: from the tokens)."""
        ids = torch.from_numpy(packed.ids).to(self.device)
        with self._top_only(hidden, placement):
            if hidden is None:
                return self._run(packed, kind, input_ids=ids)
            return self._run(packed, kind, inputs_embeds=hidden)

    def item_logps(self, packed: Packed, last: Tensor) -> Tensor:
        """log pi(response | prompt) of each packed item, summed over its tokens: [k]."""
        states = last.flatten(0, 1)[torch.from_numpy(packed.sources).to(self.device)]
        targets = torch.from_numpy(packed.targets).to(self.device)
        owners = torch.from_numpy(packed.owners).to(self.device)
        total = torch.zeros(len(packed.items), device=self.device)
        return total.index_add(0, owners, self._token_logps(states, targets))

    def _token_logps(self, states: Tensor, targets: Tensor) -> Tensor:
        """log pi(target | state), [n] float32, with gradient to the head if that is trained.

        Logits are computed again in the backward pass, so one chunk of them exists at a time.
        """
        head = self.parts.head
        frozen = not any(weight.requires_grad for weight in head.parameters())
        if frozen and not self.parts.scaled and is_dense(head) and isinstance(head, nn.Linear):
            return frozen_head_logps(states, head, targets)
        at_once = logits_at_once(self.model, self.device)
        parts = [
            checkpoint(token_logps, self.model, some, goals, use_reentrant=False)
            for some, goals in zip(
                torch.split(states, at_once), torch.split(targets, at_once), strict=True
            )
        ]
        return torch.cat(parts)


def adapted_logps(
    activations: Activations, adapters: Adapters, packs: Sequence[Packed], replicas: Sequence[int]
) -> Tensor:
    """log pi_m(response | prompt) of every item of `packs`, one a replica m, concatenated.

    All replicas run in one forward if the adapted layers see rows, else one after the other.
    """
    together = adapters.together and not packs[0].alone
    if not together and len(packs) > 1:
        alone = zip(packs, replicas, strict=True)
        return torch.cat([adapted_logps(activations, adapters, [one], [m]) for one, m in alone])
    split = activations.split
    whole, rows = stack(packs)
    ends = np.cumsum(rows).tolist()
    segments = tuple(
        (m, end - size, end) for m, size, end in zip(replicas, rows, ends, strict=True)
    )
    with adapters.placement.of(segments):
        last = split.top(whole, activations.states(whole), adapters.placement)
    return split.item_logps(whole, last)
