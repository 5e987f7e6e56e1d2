"""Save and load the state of a training: one safetensors file.

    save_state(path, tensors, optimizer, progress, config, buffers)
    load_state(path, tensors, optimizer, progress, config, buffers)   # in place

The file is written completely or not at all; if it cannot be written, the one before it is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import RunError
from noisescope.storage.files import read_sealed, write_sealed
from noisescope.training.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor
    from torch.amp import GradScaler
    from torch.optim import Optimizer


STATE_FILE = "state.safetensors"


@final
@dataclass
class Progress:
    """Steps done, one record per step, a `note` for callbacks, and averaged copies by decay."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    note: dict[str, Any] = field(default_factory=dict)
    averages: dict[float, dict[str, Tensor]] = field(default_factory=dict)


def save_state(
    path: Path,
    tensors: Mapping[str, Tensor],
    optimizer: Optimizer,
    progress: Progress,
    config: TrainConfig,
    buffers: Mapping[str, Tensor],
    scaler: GradScaler | None = None,
) -> None:
    """Write everything a resumed run needs: tensors, AdamW moments, averages, RNG, history."""
    import torch

    content = {f"tensor/{name}": tensor.detach() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        content |= {f"adam/{key}/{name}": value for key, value in optimizer.state[tensor].items()}
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
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    write_sealed(path, content, facts)


def load_state(
    path: Path,
    tensors: Mapping[str, Tensor],
    optimizer: Optimizer,
    progress: Progress,
    config: TrainConfig,
    buffers: Mapping[str, Tensor],
    scaler: GradScaler | None = None,
) -> None:
    """Read the state in `path` into its arguments.

    Raises RunError if the file is damaged or was written with another configuration.
    """
    import torch

    held, facts = read_sealed(path)
    expected = json.loads(json.dumps(asdict(config)))
    found = facts["config"]
    if found != expected:
        differing = sorted(key for key in expected if found.get(key) != expected[key])
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
    if scaler is not None:
        scaler.load_state_dict(facts["scaler"])
    progress.step, progress.history, progress.note = (
        facts["step"],
        facts["history"],
        facts["note"],
    )
