"""Train tensors by a preference objective: the only training loop of the package.

A `Learner` names the tensors to optimise, the micro-batches of optimiser step `step` (a function
of the step alone, so the order of the data needs no saved state) and the pair values of one
micro-batch. The loop owns everything else: gradients, clipping, AdamW, the schedule, averaged
copies, checkpoints and several processes (accelerate).

    train(learner, OBJECTIVES["dpo"](beta=0.1), TrainConfig(steps=100), directory)

A checkpoint is one safetensors file, written completely or not at all; a killed training
continues from it to the same bits. A micro-batch that runs out of memory is split, and the step
repeated: a step is a sum over its pairs, so it stays the same but for rounding. (Dr. DPO is not
such a sum and is refused.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import EvidenceError, ModelError
from noisescope.models.memory import OomRetry, attempt
from noisescope.training.config import TrainConfig
from noisescope.training.objectives import Objective, PairValues, objective_name
from noisescope.training.state import STATE_FILE, Progress, load_state, save_state

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from torch.optim import Optimizer

#: What a step sums over its pairs; `light` counts weights below one half.
TOTALS = ("loss", "margin", "right", "weight", "light", "pairs", "share")
#: Gradients summed over processes in one message: 25 MB in float32, as torch's own does.
BUCKET = 25 * (1 << 20) // 4
#: Margins at most this far from 0 are ties. Before the first step all are, but for rounding.
TIE = 1e-5
#: Loss scale of float16 at which an overflow is an error: there is nothing left to halve.
LEAST_SCALE = 1.0


@final
@dataclass(frozen=True)
class PairBatch:
    """Pairs that one replica meets in optimiser step `step`, and their share of its loss."""

    replica: int
    pairs: NDArray[np.int64]
    share: float
    step: int = 0


#: The pairs of one forward and backward pass.
MicroBatch = list[PairBatch]


@final
@dataclass(frozen=True)
class Piece:
    """Pairs whose losses are averaged together, and the share of the step's loss they carry."""

    values: PairValues
    share: float


class Learner(Protocol):
    """A model in training."""

    def trainable(self) -> Mapping[str, Tensor]:
        """Named tensors to optimise, in a fixed order."""

    def batches(self, step: int) -> Sequence[MicroBatch]:
        """Micro-batches of 0-based optimiser step `step`: a pure function of the step."""

    def pieces(self, batch: MicroBatch) -> Iterable[Piece]:
        """Pair values of a micro-batch, with gradient. Shares sum to 1 over a step's batches
        (to M for M independent replicas)."""

    def clip(self, max_norm: float | None) -> float:
        """Clip the gradients in place; returns their norm before that."""


def train(
    learner: Learner,
    objective: Objective,
    config: TrainConfig,
    directory: Path | None = None,
    *,
    accelerator: Accelerator | None = None,
    after_step: Callable[[Progress], bool] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    retry: OomRetry[int] | None = None,
    before_retry: Callable[[], None] | None = None,
) -> Progress:
    """Train until `config.steps`, or until `after_step` returns True; the final `Progress`.

    With a `directory`, state is saved every `save_every` steps and a killed run continues
    there; `buffers` are tensors beside the trained ones that belong to that state. With `retry`,
    a step that runs out of memory is repeated in smaller micro-batches, after `before_retry` has
    dropped what the failed attempt recorded. Raises EvidenceError if the loss stops being a
    number, ModelError if a pair does not fit into memory alone, RunError if the saved state
    belongs to another configuration or cannot be written (the one before it is kept).
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
    state = (tensors, optimizer, progress, config, buffers or {}, accelerator.scaler)
    if directory is not None and (directory / STATE_FILE).exists():
        load_state(directory / STATE_FILE, *state)
    stopped = bool(progress.note.get("stopped"))
    while progress.step < config.steps and not stopped:
        totals = _accumulate(learner, objective, accelerator, progress.step, retry, before_retry)
        if totals is None:  # out of memory: nothing of this attempt may stay
            optimizer.zero_grad(set_to_none=True)
            continue
        record = _step(learner, totals, config, accelerator, optimizer, progress.step)
        progress.step += 1
        progress.history.append(record)
        _update_averages(progress.averages, tensors)
        stopped = after_step is not None and after_step(progress)
        progress.note["stopped"] = stopped
        last = stopped or progress.step == config.steps
        if directory is not None and (last or progress.step % config.save_every == 0):
            if accelerator.is_main_process:
                save_state(directory / STATE_FILE, *state)
            accelerator.wait_for_everyone()
    return progress


def _accumulate(
    learner: Learner,
    objective: Objective,
    accelerator: Accelerator,
    step: int,
    retry: OomRetry[int] | None,
    before_retry: Callable[[], None] | None,
) -> Tensor | None:
    """Add up gradients and `TOTALS` over this process's share of the micro-batches of a step.

    Returns None if one ran out of memory, with the limit of `retry` lowered.
    """
    import torch

    totals = torch.zeros(len(TOTALS), dtype=torch.float64)
    most = None if retry is None else retry.limit.items
    for batch in learner.batches(step)[accelerator.process_index :: accelerator.num_processes]:
        for part in split(batch, most):
            run = partial(_forward_backward, learner, objective, accelerator, part, totals)
            if retry is None:
                run()
            elif attempt(run) is None:
                pairs = [int(pair) for one in part for pair in one.pairs]
                if objective.whole_batch and len(pairs) > 1:
                    raise ModelError(
                        f"{len(pairs)} pairs at once do not fit into memory, and "
                        f"{objective_name(objective)} is a loss of the whole micro-batch: smaller "
                        "ones would be another loss",
                        hint="Set --accumulation to the number of micro-batches in a step.",
                    )
                retry.halve(pairs)
                if before_retry is not None:
                    before_retry()
                return None
    return totals


def split(batch: MicroBatch, most: int | None) -> list[MicroBatch]:
    """`batch` in micro-batches of at most `most` pairs, in order; shares sum to its own."""
    if most is None or sum(len(part.pairs) for part in batch) <= most:
        return [batch]
    groups: list[MicroBatch] = []
    room = 0
    for part in batch:
        start = 0
        while start < len(part.pairs):
            if not room:
                groups.append([])
                room = most
            pairs = part.pairs[start : start + room]
            share = part.share * len(pairs) / len(part.pairs)
            groups[-1].append(replace(part, pairs=pairs, share=share))
            start, room = start + len(pairs), room - len(pairs)
    return groups


def _forward_backward(
    learner: Learner,
    objective: Objective,
    accelerator: Accelerator,
    batch: MicroBatch,
    totals: Tensor,
) -> None:
    """Forward and backward of one micro-batch."""
    import torch

    loss, sums = None, []
    counts = torch.zeros(2, dtype=torch.float64)
    with accelerator.autocast():
        for piece in learner.pieces(batch):
            part = piece.share * objective(piece.values).mean()
            loss = part if loss is None else loss + part
            margin = objective.margin(piece.values).detach()
            sums.append(_sums(margin, piece.values.weight))
            counts += torch.tensor([len(margin), piece.share], dtype=torch.float64)
    if loss is None:
        return
    accelerator.backward(loss)
    found = torch.stack([*loss.detach().float()[None], *torch.stack(sums).sum(0)])
    totals += torch.cat([found.cpu().double(), counts])  # the only wait for the device


def _sums(margin: Tensor, weight: Tensor | None) -> Tensor:
    """Sums over a piece of its margins, `right`, weights, and weights below one half, [4]."""
    import torch

    heavy = torch.ones_like(margin) if weight is None else weight.detach()
    found = (margin.sum(), right(margin), heavy.sum(), (heavy < 0.5).sum())
    return torch.stack([one.float() for one in found])


def right(margin: Tensor) -> Tensor:
    """How many pairs of margin [B] are ranked as labelled; a tie counts one half."""
    return (margin > TIE).sum() + 0.5 * (margin.abs() <= TIE).sum()


def _step(
    learner: Learner,
    totals: Tensor,
    config: TrainConfig,
    accelerator: Accelerator,
    optimizer: Optimizer,
    step: int,
) -> dict[str, float]:
    """Take the optimiser step that the accumulated gradients make; its record."""
    if accelerator.num_processes > 1:
        totals = accelerator.reduce(totals.to(accelerator.device), "sum").cpu()
        sum_gradients(learner.trainable().values(), accelerator)
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


def sum_gradients(tensors: Iterable[Tensor], accelerator: Accelerator) -> None:
    """Sum gradients over processes, up to BUCKET numbers in one message.

    One message a tensor would wait for the network some hundred times a step.
    """
    import torch

    parts: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        size, last = tensor.numel(), parts[-1][-1] if parts else None
        other = last is None or (last.dtype, last.device) != (tensor.dtype, tensor.device)
        if other or size > room:
            parts.append([])
            room = BUCKET
        parts[-1].append(tensor)
        room -= size
    for part in parts:
        own = [torch.zeros_like(one) if one.grad is None else one.grad for one in part]
        whole = accelerator.reduce(torch.cat([grad.flatten() for grad in own]), "sum")
        for tensor, grad in zip(part, whole.split([one.numel() for one in part]), strict=True):
            tensor.grad = grad.view_as(tensor)


def _update(
    learner: Learner,
    config: TrainConfig,
    accelerator: Accelerator,
    optimizer: Optimizer,
    step: int,
) -> float:
    """Clip and apply the gradients; returns their norm before that.

    float16's scaled gradients overflow now and then. Such a step changes no weight, and the scale
    is halved until there is nothing left to halve.
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


def clip_norm(tensors: Iterable[Tensor], max_norm: float | None) -> float:
    """Scale the gradients of `tensors` to a joint L2 norm of at most `max_norm`; their norm."""
    import torch

    most = math.inf if max_norm is None else max_norm
    return float(torch.nn.utils.clip_grad_norm_(list(tensors), most))


def _check_finite(what: str, value: float, step: int) -> None:
    """Raise EvidenceError before a step that is not a number reaches the weights."""
    if not math.isfinite(value):
        raise EvidenceError(
            f"the {what} is not a number at step {step + 1}; the last saved state is kept",
            hint="Lower --learning-rate or --beta, or use --dtype float32.",
        )


def _update_averages(averages: dict[float, dict[str, Tensor]], tensors: dict[str, Tensor]) -> None:
    """Exponential moving averages: a <- d a + (1 - d) theta."""
    for decay, copies in averages.items():
        for name, copy in copies.items():
            copy.lerp_(tensors[name].detach(), 1 - decay)
