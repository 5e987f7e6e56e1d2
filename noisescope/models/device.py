"""Choose device and number type of a forward pass; time matrix products; launched processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
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
def matmul_rate(
    device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Floating-point operations a second of a square matrix product, measured once (< 0.5 s).

    The best of several products, so that other work on the machine counts little; a small one
    first, so that a type the machine only emulates does not cost seconds.
    """
    import torch

    rate = 0.0
    for side in (256, SIDE):
        left = torch.ones(side, side, device=device, dtype=dtype)
        left @ left
        best, began, repeats = float("inf"), clock(), 0
        while clock() - began < (0.1 if repeats >= FEWEST else 0.4):
            repeats += 1
            _wait(device)
            start = clock()
            left @ left
            _wait(device)
            best = min(best, clock() - start)
        rate = 2 * side**3 / max(best, 1e-9)
        if rate < 2e9:
            break
    return rate


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is the fastest of bfloat16 and float32 here; else the type named.

    bfloat16 must win by a quarter, because it is less exact. On a CPU the time of this process is
    compared, not wall time: on a busy machine the same command must choose the same type again.
    """
    import torch

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "auto":
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        fast, exact = (matmul_rate(device, kinds[kind], clock) for kind in ("bfloat16", "float32"))
        return torch.bfloat16 if fast > 1.25 * exact else torch.float32
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


def single_process_accelerator() -> Accelerator:
    """An accelerator for a training of this process alone, even within a launch of several."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import patch_environment

    sizes = ("world_size", "pmi_size", "ompi_comm_world_size", "mv2_comm_world_size")
    with patch_environment(local_rank=-1, **dict.fromkeys(sizes, 1)):
        return Accelerator(cpu=not torch.cuda.is_available())


def own_device(device: str) -> str:
    """The GPU of this process if several share a host and `device` does not name one."""
    if device not in ("auto", "cuda") or not launched():
        return device
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else device
