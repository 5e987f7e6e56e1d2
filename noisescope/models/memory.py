"""Batches that do not fit into memory are halved, which is said once; one item that does not is
an error that names it.

    halving = Halving("responses", name_of, self.limit)
    for mine, rows in halving.run(compute, batch):  # mine: the part of `batch` in `rows`
        ...

The limit found is kept: later batches are cut to it before they are tried.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, final

from noisescope.errors import ModelError

Item = TypeVar("Item")
Rows = TypeVar("Rows")

#: What the allocators of torch's devices say when they have no more to give.
SAID = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
HINT = "Lower --max-length (text) or --image-size (images), or take a smaller model or --dtype."


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: MemoryError, or a device's allocator."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in told for words in SAID)


@final
@dataclass
class Limit:
    """Most items of a batch, once one was too large: what a policy remembers between calls."""

    items: int | None = None


@final
@dataclass(frozen=True)
class Halving(Generic[Item]):
    """Runs batches of `what` within `limit`; `name` says which item does not fit even alone."""

    what: str
    name: Callable[[Item], str]
    limit: Limit = field(default_factory=Limit)

    def run(
        self, compute: Callable[[Sequence[Item]], Rows], batch: Sequence[Item]
    ) -> Iterator[tuple[Sequence[Item], Rows]]:
        """`compute` of `batch`, in as few parts as fit, in order, each with its items.

        Raises ModelError naming an item that does not fit alone, and what `compute` raises.
        """
        left = list(batch)
        while left:
            part = left[: self.limit.items]
            found = _attempt(compute, part)
            if found is None:
                self._halve(part)
                continue
            yield part, found[0]
            left = left[len(part) :]

    def _halve(self, part: Sequence[Item]) -> None:
        """Lower the limit below `part`, and say so the first time."""
        if len(part) == 1:
            raise ModelError(
                f"{self.name(part[0])} does not fit into memory, even alone in a batch", hint=HINT
            )
        first = self.limit.items is None
        self.limit.items = len(part) // 2
        free()
        if first:
            logging.getLogger("noisescope").warning(
                "%d %s at once do not fit into memory: going on in smaller batches",
                len(part),
                self.what,
            )


def _attempt(compute: Callable[[Sequence[Item]], Rows], part: Sequence[Item]) -> list[Rows] | None:
    """[result], or None where memory ran out; its traceback, which holds tensors, is let go."""
    try:
        return [compute(part)]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    return None


def free() -> None:
    """Give back what a device's allocator keeps."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
