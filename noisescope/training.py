"""The only training loop: batches -> pair values -> objective -> step, resumable to the same bits.

A `Learner` says which tensors train, which micro-batches make up optimiser step `step` (a pure
function of the step, so data order needs no saved state) and what a micro-batch's pairs look
like to an objective. The loop owns gradients, clipping, AdamW, schedule, EMA copies,
checkpoints and several processes (accelerate):

    train(learner, OBJECTIVES["dpo"](beta=0.1), TrainConfig(steps=100), directory)

A checkpoint is one safetensors file, written whole or not at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, final

from noisescope.errors import EvidenceError, RunError, UsageError
from noisescope.objectives import Objective, PairValues
from noisescope.storage import write_tensors

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from torch.optim import Optimizer

STATE_FILE = "state.safetensors"
Batch = TypeVar("Batch")

#: What a step sums over its pairs; `light` counts weights below one half.
TOTALS = ("loss", "margin", "right", "weight", "light", "pairs", "share")

#: Share of the learning rate after warm-up, as a function of progress in [0, 1].
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


@final
@dataclass(frozen=True)
class TrainConfig:
    """How to optimise. `steps` are optimiser steps; `warmup` a share of them."""

    steps: int
    learning_rate: float = 1e-4
    schedule: str = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    ema: tuple[float, ...] = ()
    save_every: int = 50
    evidence: str = ""  # fingerprint of the data, model and settings a saved state belongs to

    def __post_init__(self) -> None:
        faults = [
            *([f"--steps must be at least 1, not {self.steps}"] if self.steps < 1 else []),
            *(
                [f"--learning-rate must be above 0, not {self.learning_rate}"]
                if not self.learning_rate > 0
                else []
            ),
            *(
                [f"--schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule}"]
                if self.schedule not in SCHEDULES
                else []
            ),
            *(
                [f"--warmup must be a share in [0, 1), not {self.warmup}"]
                if not 0 <= self.warmup < 1
                else []
            ),
        ]
        if faults:
            raise UsageError("; ".join(faults), hint="Run the command with --help.")

    def rate(self, step: int) -> float:
        """Learning rate of 0-based optimiser step `step`: linear warm-up, then the schedule."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / (warm + 1)
        return self.learning_rate * SCHEDULES[self.schedule](
            (step - warm) / max(1, self.steps - warm)
        )


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


@final
@dataclass
class Progress:
    """Where training stands: steps done, one record a step, and a free note for callbacks."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    note: dict[str, Any] = field(default_factory=dict)
    averages: dict[float, dict[str, Tensor]] = field(default_factory=dict)


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
        load_state(directory / STATE_FILE, tensors, optimizer, progress, config, buffers or {})
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
                    directory / STATE_FILE, tensors, optimizer, progress, config, buffers or {}
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
    norm = learner.clip(config.max_grad_norm)
    _check_finite("gradient", norm, step)
    rate = config.rate(step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
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


def save_state(
    path: Path,
    tensors: Mapping[str, Tensor],
    optimizer: Optimizer,
    progress: Progress,
    config: TrainConfig,
    buffers: Mapping[str, Tensor],
) -> None:
    """Write everything a resumed run needs: tensors, AdamW moments, averages, RNG, history."""
    import torch

    content = {f"tensor/{name}": tensor.detach() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        for key, value in optimizer.state[tensor].items():
            content[f"adam/{key}/{name}"] = value
    for decay, copies in progress.averages.items():
        content |= {f"ema/{decay}/{name}": copy for name, copy in copies.items()}
    content |= {f"buffer/{name}": buffer for name, buffer in buffers.items()}
    content["rng"] = torch.get_rng_state()
    if torch.cuda.is_available():
        content["rng_cuda"] = torch.cuda.get_rng_state()
    facts = {
        "config": asdict(config),
        "step": progress.step,
        "history": progress.history,
        "note": progress.note,
    }
    metadata = {"facts": json.dumps(facts)}  # one entry: the format does not order several
    write_tensors(path, content, metadata)


def load_state(
    path: Path,
    tensors: Mapping[str, Tensor],
    optimizer: Optimizer,
    progress: Progress,
    config: TrainConfig,
    buffers: Mapping[str, Tensor],
) -> None:
    """Continue from `path`; raises RunError when it was written under another configuration."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RunError(
            f"{path} cannot be read: {error}", hint="Remove it to start training again."
        ) from error
    wanted = json.loads(json.dumps(asdict(config)))
    found = facts["config"]
    if found != wanted:
        differing = sorted(key for key in wanted if found.get(key) != wanted[key])
        raise RunError(
            f"{path} was written with other settings: {', '.join(differing)}",
            hint="Use the same dataset, model and settings, or another directory.",
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(held[f"tensor/{name}"])
            moments = {key: held[f"adam/{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            optimizer.state[tensor] = {
                key: value if key == "step" else value.to(tensor.device)
                for key, value in moments.items()
            }
        for decay, copies in progress.averages.items():
            for name, copy in copies.items():
                copy.copy_(held[f"ema/{decay}/{name}"])
        for name, buffer in buffers.items():
            buffer.copy_(held[f"buffer/{name}"])
    torch.set_rng_state(held["rng"])
    if torch.cuda.is_available() and "rng_cuda" in held:
        torch.cuda.set_rng_state(held["rng_cuda"])
    progress.step, progress.history, progress.note = (
        facts["step"],
        facts["history"],
        facts["note"],
    )
