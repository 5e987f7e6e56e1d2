"""The only training loop: batches -> pair values -> objective -> step, resumable to the same bits.

A `Learner` says which tensors train, which micro-batches make up optimiser step `step` (a pure
function of the step, so data order needs no saved state) and what a micro-batch's pairs look
like to an objective. The loop owns gradients, clipping, AdamW, schedule, EMA copies,
checkpoints and several processes (accelerate):

    train(learner, OBJECTIVES["dpo"](beta=0.1), TrainConfig(steps=100), directory)

A checkpoint is one safetensors file, written whole or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, final

from noisescope.errors import EvidenceError
from noisescope.models.memory import out_of_memory
from noisescope.training.config import SCHEDULES, TrainConfig
from noisescope.training.objectives import Objective, PairValues
from noisescope.training.state import STATE_FILE, Progress, is_cut, load_state, save_state, whole

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


__all__ = [
    "SCHEDULES",
    "STATE_FILE",
    "Fitting",
    "Learner",
    "Piece",
    "Progress",
    "TrainConfig",
    "clip_norm",
    "train",
]


def train(
    learner: Learner[Batch],
    objective: Objective,
    config: TrainConfig,
    directory: Path | None = None,
    *,
    accelerator: Accelerator | None = None,
    after_step: Callable[[Progress], bool] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    fitting: Fitting[Batch] | None = None,
) -> Progress:
    """Train until `config.steps`, or until `after_step` returns True; the final `Progress`.

    With a `directory`, state is saved every `save_every` steps and a killed run continues
    there; `buffers` are tensors beside the trained ones that belong to that state. With
    `fitting`, micro-batches that memory has no room for are taken in smaller parts. Raises
    EvidenceError when the loss stops being a number, RunError when the saved state belongs to
    another configuration or cannot be written (the one before it is kept).
    """
    import torch
    from accelerate import Accelerator

    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
    accelerator.gradient_accumulation_steps = 1  # a launcher's would divide our shares again
    tensors = dict(learner.trainable())
    optimizer = torch.optim.AdamW(
        list(tensors.values()),
        lr=config.learning_rate,
        betas=config.adam_betas,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )
    progress = Progress(
        averages={d: {n: t.detach().clone() for n, t in tensors.items()} for d in config.ema}
    )
    if directory is not None and (directory / STATE_FILE).exists():
        load_state(
            directory / STATE_FILE,
            tensors,
            optimizer,
            progress,
            config,
            buffers or {},
            scaler=accelerator.scaler,
        )
    stopped = bool(progress.note.get("stopped"))
    while progress.step < config.steps and not stopped:
        record = take_step(
            learner, objective, config, accelerator, optimizer, progress.step, fitting
        )
        progress.step += 1
        progress.history.append(record)
        _update_averages(progress.averages, tensors)
        stopped = after_step is not None and after_step(progress)
        progress.note["stopped"] = stopped
        last = stopped or progress.step == config.steps
        if directory is not None and (last or progress.step % config.save_every == 0):
            save_state(
                directory / STATE_FILE,
                tensors,
                optimizer,
                progress,
                config,
                buffers or {},
                scaler=accelerator.scaler,
                writes=accelerator.is_main_process,
            )
            accelerator.wait_for_everyone()
    return progress


def _update_averages(averages: dict[float, dict[str, Tensor]], tensors: dict[str, Tensor]) -> None:
    """Exponential moving averages: a <- d a + (1 - d) theta."""
    for decay, copies in averages.items():
        for name, copy in copies.items():
            copy.lerp_(tensors[name].detach(), 1 - decay)
