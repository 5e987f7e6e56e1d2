"""Where a training stands, and the one safetensors file it continues from.

    save_state(path, tensors, optimizer, progress, config, buffers)
    load_state(path, tensors, optimizer, progress, config, buffers)   # in place

The file is written whole or not at all; the one before it stays where it cannot be written.
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


def is_cut(tensor: Tensor) -> bool:
    """Whether this process holds only its piece of `tensor`."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`, on the CPU where it was cut. Every process has to call it."""
    if not is_cut(tensor):
        return tensor.detach()
    full: Tensor = tensor.detach().full_tensor().cpu()  # type: ignore[attr-defined]
    return full


def piece(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of `full`, cut as `like` is; no process speaks to another."""
    if not is_cut(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    part: Tensor = distribute_tensor(
        full.to(like.device),
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        src_data_rank=None,
    )
    return part


STATE_FILE = "state.safetensors"


@final
@dataclass
class Progress:
    """Where training stands: steps done, one record a step, and a free note for callbacks."""

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
    *,
    scaler: GradScaler | None = None,
    writes: bool = True,
) -> None:
    """Write everything a resumed run needs: tensors, AdamW moments, averages, RNG, history.

    Of several processes one `writes`; all of them hand over their pieces of what is cut.
    """
    import torch

    content = {}
    for name, tensor in tensors.items():
        parts = {f"tensor/{name}": tensor}
        parts |= {f"adam/{key}/{name}": value for key, value in optimizer.state[tensor].items()}
        for key, value in parts.items():
            gathered = whole(value)
            if writes:
                content[key] = gathered
    if not writes:
        return
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
    *,
    scaler: GradScaler | None = None,
) -> None:
    """Continue from `path`; raises RunError where it is damaged, or of another configuration."""
    import torch

    held, facts = read_sealed(path)
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
            tensor.copy_(piece(held[f"tensor/{name}"], tensor))
            moments = {key: held[f"adam/{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            optimizer.state[tensor] = {
                key: value if key == "step" else piece(value.to(tensor.device), tensor)
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
