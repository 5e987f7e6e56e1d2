"""One optimiser step: micro-batches -> gradients -> clipping -> AdamW, over all processes.

A micro-batch that does not fit into memory is taken again in smaller parts where the learner
is `Fitting`: a step is a sum over its pairs, so its loss and gradient stay what they were.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, final

from noisescope.errors import EvidenceError
from noisescope.objectives import Objective, PairValues
from noisescope.policies.memory import out_of_memory
from noisescope.train_config import TrainConfig
from noisescope.training_pieces import is_cut, whole

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from torch.optim import Optimizer

Batch = TypeVar("Batch")

#: What a step sums over its pairs; `light` counts weights below one half.
TOTALS = ("loss", "margin", "right", "weight", "light", "pairs", "share")
#: Margins no further from 0 are a tie: before the first step all are, but for rounding.
TIE = 1e-5
#: Loss scale of float16 below which an overflow is no accident.
LEAST_SCALE = 1.0


@final
@dataclass(frozen=True)
class Piece:
    """Pairs whose losses are averaged together, and the share of the step's loss they carry."""

    values: PairValues
    share: float


class Learner(Protocol[Batch]):
    """What the loop needs to know of a model in training."""

    def trainable(self) -> Mapping[str, Tensor]:
        """Named tensors to optimise, in a fixed order."""

    def batches(self, step: int) -> Sequence[Batch]:
        """Micro-batches of 0-based optimiser step `step`: a pure function of the step."""

    def pieces(self, batch: Batch) -> Iterable[Piece]:
        """Pair values of a micro-batch, with gradient. Shares sum to 1 over a step's batches
        (to M for M independent replicas)."""

    def clip(self, max_norm: float | None) -> float:
        """Clip the gradients in place; returns their norm before that."""


class Fitting(Protocol[Batch]):
    """How micro-batches are held to memory, and to the pace of other processes."""

    @property
    def together(self) -> bool:
        """Whether every process has to run as many forwards as the others."""

    def parts(self, batch: Batch) -> Sequence[Batch]:
        """`batch` in parts that are known to fit; their shares sum to its own."""

    def halve(self, batch: Batch) -> None:
        """Go on in smaller parts: `batch` did not fit. What it left behind of this step is
        forgotten. Raises ModelError where there are none."""

    def idle(self, batch: Batch) -> Tensor:
        """A loss of 0 with the forward and backward pass of `batch`, and no other trace."""


def clip_norm(tensors: Iterable[Tensor], max_norm: float | None) -> float:
    """Scale the gradients of `tensors` to a joint L2 norm of at most `max_norm`; their norm."""
    import torch

    most = math.inf if max_norm is None else max_norm
    return float(whole(torch.nn.utils.clip_grad_norm_(list(tensors), most)))


def take_step(
    learner: Learner[Batch],
    objective: Objective,
    config: TrainConfig,
    accelerator: Accelerator,
    optimizer: Optimizer,
    step: int,
    fitting: Fitting[Batch] | None = None,
) -> dict[str, float]:
    """One optimiser step over this process's share of the micro-batches; its record."""
    totals = _own_totals(learner, objective, accelerator, optimizer, step, fitting)
    if accelerator.num_processes > 1:
        totals = accelerator.reduce(totals.to(accelerator.device), "sum").cpu()
        _add_gradients(learner.trainable().values(), accelerator)
    found = dict(zip(TOTALS, totals.tolist(), strict=True))
    _check_finite("loss", found["loss"], step)
    rate = config.rate(step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    norm = _update(learner, config, accelerator, optimizer, step)
    pairs = max(found["pairs"], 1.0)
    return {
        "step": step + 1,
        "loss": found["loss"] / max(found["share"], 1.0),
        "margin": found["margin"] / pairs,
        "accuracy": found["right"] / pairs,
        "weight": found["weight"] / pairs,
        "light": found["light"] / pairs,
        "grad_norm": norm,
        "learning_rate": rate,
        "pairs": found["pairs"],
    }


def _own_totals(
    learner: Learner[Batch],
    objective: Objective,
    accelerator: Accelerator,
    optimizer: Optimizer,
    step: int,
    fitting: Fitting[Batch] | None,
) -> Tensor:
    """`TOTALS` of this process's micro-batches, whose gradients are added up."""
    import torch

    batches = learner.batches(step)
    rank, processes = accelerator.process_index, accelerator.num_processes
    mine = batches[rank::processes]
    while True:
        if fitting is not None:
            mine = [part for batch in mine for part in fitting.parts(batch)]
        totals = torch.zeros(len(TOTALS), dtype=torch.float64)
        failed = _add_up(learner, objective, accelerator, mine, totals, fitting is not None)
        if failed is None:
            break
        assert fitting is not None
        optimizer.zero_grad(set_to_none=True)
        fitting.halve(mine[failed])
    if fitting is not None and fitting.together and len(mine) < -(-len(batches) // processes):
        with accelerator.autocast():
            nothing = fitting.idle(batches[0])
        accelerator.backward(nothing)
    return totals


def _add_up(
    learner: Learner[Batch],
    objective: Objective,
    accelerator: Accelerator,
    batches: Sequence[Batch],
    totals: Tensor,
    may_fail: bool,
) -> int | None:
    """Add gradients and `TOTALS`; the number of the batch that memory had no room for, if any.

    A traceback holds tensors, so none outlives this function.
    """
    for number, batch in enumerate(batches):
        try:
            _run(learner, objective, accelerator, batch, totals)
        except (RuntimeError, MemoryError) as error:
            if not (may_fail and out_of_memory(error)):
                raise
            return number
    return None


def _run(
    learner: Learner[Batch],
    objective: Objective,
    accelerator: Accelerator,
    batch: Batch,
    totals: Tensor,
) -> None:
    """Forward and backward of one micro-batch."""
    loss = None
    with accelerator.autocast():
        for piece in learner.pieces(batch):
            part = piece.share * objective(piece.values).mean()
            loss = part if loss is None else loss + part
            totals += _tally(objective, piece)
    if loss is not None:
        totals[0] += float(loss.detach())
        accelerator.backward(loss)


def _add_gradients(tensors: Iterable[Tensor], accelerator: Accelerator) -> None:
    """Sum every tensor's gradient over processes; pieces were averaged as they were cut."""
    import torch

    for tensor in tensors:
        if is_cut(tensor):
            if tensor.grad is not None:
                tensor.grad.mul_(accelerator.num_processes)
            continue
        held = tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
        tensor.grad = accelerator.reduce(held, "sum")


def _update(
    learner: Learner[Batch],
    config: TrainConfig,
    accelerator: Accelerator,
    optimizer: Optimizer,
    step: int,
) -> float:
    """Clip and apply the gradients; their norm before that.

    float16's scaled gradients overflow now and then: such a step changes no weight, and the scale
    is halved, until there is nothing left to halve.
    """
    scaler = accelerator.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = learner.clip(config.max_grad_norm)
    if scaler is None or scaler.get_scale() <= LEAST_SCALE:
        _check_finite("gradient", norm, step)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _tally(objective: Objective, piece: Piece) -> Tensor:
    """What a piece adds to a step's `TOTALS`, all but the loss."""
    import torch

    margin = objective.margin(piece.values).detach()
    weight = piece.values.weight
    heavy = torch.ones_like(margin) if weight is None else weight.detach()
    sums = (margin.sum(), right(margin), heavy.sum(), (heavy < 0.5).sum())
    return torch.tensor([0.0, *map(float, sums), len(margin), piece.share], dtype=torch.float64)


def right(margin: Tensor) -> Tensor:
    """How many pairs of margin [B] are told right; a tie counts one half."""
    return (margin > TIE).sum() + 0.5 * (margin.abs() <= TIE).sum()


def _check_finite(what: str, value: float, step: int) -> None:
    """Raise EvidenceError before a step that is not a number reaches the weights."""
    if not math.isfinite(value):
        raise EvidenceError(
            f"the {what} is not a number at step {step + 1}; the last saved state is kept",
            hint="Lower --learning-rate or --beta, or use --dtype float32.",
        )
