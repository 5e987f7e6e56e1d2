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
from noisescope.objectives import Objective, PairValues
from noisescope.train_config import SCHEDULES, TrainConfig
from noisescope.training_state import STATE_FILE, Progress, load_state, save_state

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from torch.optim import Optimizer

Batch = TypeVar("Batch")

__all__ = [
    "SCHEDULES",
    "STATE_FILE",
    "Learner",
    "Piece",
    "Progress",
    "TrainConfig",
    "clip_norm",
    "train",
]

#: What a step sums over its pairs; `light` counts weights below one half.
TOTALS = ("loss", "margin", "right", "weight", "light", "pairs", "share")
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


def clip_norm(tensors: Iterable[Tensor], max_norm: float | None) -> float:
    """Scale the gradients of `tensors` to a joint L2 norm of at most `max_norm`; their norm."""
    import torch

    return float(
        torch.nn.utils.clip_grad_norm_(list(tensors), math.inf if max_norm is None else max_norm)
    )


def train(
    learner: Learner[Batch],
    objective: Objective,
    config: TrainConfig,
    directory: Path | None = None,
    *,
    accelerator: Accelerator | None = None,
    after_step: Callable[[Progress], bool] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
) -> Progress:
    """Train until `config.steps`, or until `after_step` returns True; the final `Progress`.

    With a `directory`, state is saved every `save_every` steps and a killed run continues
    there; `buffers` are tensors beside the trained ones that belong to that state. Raises
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
        record = _step(learner, objective, config, accelerator, optimizer, progress.step)
        progress.step += 1
        progress.history.append(record)
        _update_averages(progress.averages, tensors)
        stopped = after_step is not None and after_step(progress)
        progress.note["stopped"] = stopped
        last = stopped or progress.step == config.steps
        if directory is not None and (last or progress.step % config.save_every == 0):
            if accelerator.is_main_process:
                save_state(
                    directory / STATE_FILE,
                    tensors,
                    optimizer,
                    progress,
                    config,
                    buffers or {},
                    scaler=accelerator.scaler,
                )
            accelerator.wait_for_everyone()
    return progress


def _step(
    learner: Learner[Batch],
    objective: Objective,
    config: TrainConfig,
    accelerator: Accelerator,
    optimizer: Optimizer,
    step: int,
) -> dict[str, float]:
    """One optimiser step over this process's share of the micro-batches; its record."""
    import torch

    totals = torch.zeros(len(TOTALS), dtype=torch.float64)
    batches = learner.batches(step)
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        loss = None
        with accelerator.autocast():
            for piece in learner.pieces(batch):
                part = piece.share * objective(piece.values).mean()
                loss = part if loss is None else loss + part
                totals += _tally(objective, piece)
        if loss is not None:
            totals[0] += float(loss.detach())
            accelerator.backward(loss)
    if accelerator.num_processes > 1:
        totals = accelerator.reduce(totals.to(accelerator.device), "sum").cpu()
        for tensor in learner.trainable().values():
            held = tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
            tensor.grad = accelerator.reduce(held, "sum")
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
    sums = (margin.sum(), (margin > 0).sum(), heavy.sum(), (heavy < 0.5).sum())
    return torch.tensor([0.0, *map(float, sums), len(margin), piece.share], dtype=torch.float64)


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
