"""Repeat work that ran out of memory in smaller batches.

    retry = OomRetry("responses", name_of, self.limit)
    for items, rows in retry.run(compute, batch):  # items: the part of `batch` that made `rows`
        ...

The first failure is logged. The limit it leads to is kept, so later batches are split before they
are tried. The training loop uses the same class for its micro-batches (`training.loop`).

accelerate's `find_executable_batch_size` is not used: it starts the whole function again, keeps no
limit between calls, does not name the item at fault, and does not recognise MPS or NumPy errors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar, final

from noisescope.errors import ModelError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: What the allocators of torch's devices write when memory runs out.
ALLOCATOR_ERRORS = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
HINT = "Lower --max-length (text) or --image-size (images), or take a smaller model or --dtype."


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: MemoryError, or a device's allocator."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in ALLOCATOR_ERRORS)


@final
@dataclass
class Limit:
    """Most items of a batch, once a larger one did not fit: kept between calls."""

    items: int | None = None


@final
@dataclass(frozen=True)
class OomRetry(Generic[Item]):
    """Run batches of `what` within `limit`; `name` describes an item that does not fit alone."""

    what: str
    name: Callable[[Item], str]
    limit: Limit = field(default_factory=Limit)
    hint: str = HINT

    def run(
        self, compute: Callable[[Sequence[Item]], Result], batch: Sequence[Item]
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        """`compute` of `batch`, in order and in as few parts as fit, each with its items.

        Raises ModelError naming an item that does not fit alone, and whatever `compute` raises.
        """
        left = list(batch)
        while left:
            part = left[: self.limit.items]
            found = attempt(partial(compute, part))
            if found is None:
                self.halve(part)
                continue
            yield part, found[0]
            left = left[len(part) :]

    def halve(self, part: Sequence[Item]) -> None:
        """Halve the limit after `part` did not fit; log it the first time.

        Raises ModelError if `part` is a single item.
        """
        import torch

        if len(part) == 1:
            raise ModelError(
                f"{self.name(part[0])} does not fit into memory, even alone in a batch",
                hint=self.hint,
            )
        if self.limit.items is None:
            logging.getLogger("noisescope").warning(
                "%d %s at once do not fit into memory: going on in smaller batches",
                len(part),
                self.what,
            )
        self.limit.items = len(part) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def attempt(compute: Callable[[], Result]) -> list[Result] | None:
    """[result], or None if memory ran out. Drops the traceback, which would hold tensors."""
    try:
        return [compute()]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    return None
