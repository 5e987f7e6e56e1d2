"""Tensors that may be cut among processes (torch's DTensor): whole ones for files, own pieces back.

    save(whole(tensor))              # every process calls it, in the same order
    tensor.copy_(piece(full, tensor))

Ordinary tensors pass through. Only FSDP makes others, so one process never imports DTensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
