"""The only training loop: batches -> pair values -> objective -> step, resumable to the same bits.

A `Learner` says which tensors train, which micro-batches make up optimiser step `step` (a pure
function of the step, so data order needs no saved state) and what a micro-batch's pairs look
like to an objective. The loop owns gradients, clipping, AdamW, schedule, EMA copies,
checkpoints and several processes (accelerate):

    train(learner, OBJECTIVES["dpo"](beta=0.1), TrainConfig(steps=100), directory)

A checkpoint is one safetensors file, written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from noisescope.objectives import Objective
from noisescope.train_config import SCHEDULES, TrainConfig
from noisescope.training_state import STATE_FILE, Progress, load_state, save_state
from noisescope.training_step import Fitting, Learner, Piece, clip_norm, take_step

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

Batch = TypeVar("Batch")

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
