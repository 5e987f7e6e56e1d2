"""Who computes what: items cut into n shares of whole chunks, of nearly equal work.

    cuts = cut(items, sizes, n)            # n - 1 places between the shares
    mine = [item for item in items if share_of(item, cuts) == i]

The chunks are those one process would compute (`parts.plan_chunks`), so n processes write the
same parts, byte for byte. Nothing is exchanged: the cuts are a function of items and sizes.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from noisescope.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from noisescope.pairs import Item

#: A place after every item.
END = "~"


@final
@dataclass(frozen=True)
class Shard:
    """Share `index` (1 to `of`) of a job, as `--shard 3/8` names it."""

    index: int
    of: int

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


def read_shard(text: str) -> Shard:
    """The shard that `i/n` names. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(
            f"--shard {text}: i/n with i from 1 to n is needed",
            hint="Such as --shard 3/8, or --shard $SLURM_ARRAY_TASK_ID/8 in an array 1-8.",
        )
    return Shard(int(found[1]), int(found[2]))


def cut(items: Sequence[Item], sizes: NDArray[np.int64], shares: int) -> tuple[str, ...]:
    """The `shares` - 1 places that cut `items` (of `sizes` [n] work) into shares of whole chunks.

    A chunk belongs to the share in which the middle of its work lies; with fewer chunks than
    shares some are empty.
    """
    from noisescope.storage.cache import place, plan_chunks

    total, done = float(sizes.sum()), 0.0
    places: list[str] = []
    for chunk in plan_chunks(items, sizes):
        middle = done + chunk.work / 2
        share = min(shares - 1, int(shares * middle / total)) if total else 0
        places += [place(chunk.items[0])] * (share - len(places))
        done += chunk.work
    return (*places, *[END] * (shares - 1 - len(places)))


def share_of(item: Item, cuts: Sequence[str]) -> int:
    """The share, from 0, that an item belongs to."""
    from noisescope.storage.cache import place

    return bisect_right(cuts, place(item))
