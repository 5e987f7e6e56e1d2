"""Choose device and number type of a forward pass; time matrix products; launched processes."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import TYPE_CHECKING

from noisescope.errors import UsageError, first_line

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

#: Products timed at the least, unless they take long.
FEWEST = 5
#: Side of the square matrices the speed test multiplies.
SIDE = 1024


def pick_device(name: str) -> torch.device:
    """`auto` is cuda, else mps, else cpu. Raises UsageError for one that does not exist."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        raise UsageError(
            f"--device {name} cannot be used: {reason}", hint="`noisescope doctor` lists devices."
        ) from error
    return device


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product, measured once (< 0.5 s).

    The best of several products, so that other work on the machine counts little; a small one
    first, so that a type the machine only emulates does not cost seconds.
    """
    import torch

    rate = 0.0
    for side in (256, SIDE):
        left = torch.ones(side, side, device=device, dtype=dtype)
        left @ left
        best, began, repeats = float("inf"), time.perf_counter(), 0
        while time.perf_counter() - began < (0.1 if repeats >= FEWEST else 0.4):
            repeats += 1
            _wait(device)
            start = time.perf_counter()
            left @ left
            _wait(device)
            best = min(best, time.perf_counter() - start)
        rate = 2 * side**3 / max(best, 1e-9)
        if rate < 2e9:
            break
    return rate


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it (CUDA GPUs, CPUs with AMX), else float32.

    Nothing is timed: all processes of a launch, and the same command tomorrow, choose the same.
    """
    import torch

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    if name not in kinds:
        raise UsageError(f"--dtype {name} is unknown", hint=f"One of: auto, {', '.join(kinds)}.")
    return kinds[name]


def _wait(device: torch.device) -> None:
    """Wait for the device's queue to drain."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def launched() -> bool:
    """Whether this process is one of several that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ


def single_process_accelerator(dtype: torch.dtype | None = None) -> Accelerator:
    """An accelerator for a training of this process alone, even within a launch of several.

    With `dtype` float16 it scales the loss, on a GPU: small gradients would be 0 otherwise. Raises
    UsageError elsewhere.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import AutocastKwargs, patch_environment

    sizes = ("world_size", "pmi_size", "ompi_comm_world_size", "mv2_comm_world_size")
    scaled = dtype == torch.float16
    if scaled and not torch.cuda.is_available():
        raise UsageError(
            "--dtype float16 needs loss scaling in training, and that needs a CUDA GPU",
            hint="Use --dtype bfloat16 or float32.",
        )
    with patch_environment(local_rank=-1, **dict.fromkeys(sizes, 1)):
        return Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="fp16" if scaled else None,
            kwargs_handlers=[AutocastKwargs(enabled=False)],  # the model itself computes in 16 bits
        )


def own_device(device: str) -> str:
    """The GPU of this process if several share a host and `device` does not name one."""
    if device not in ("auto", "cuda") or not launched():
        return device
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else device
