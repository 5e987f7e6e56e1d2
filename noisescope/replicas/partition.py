"""Split an audit's work into shares of whole chunks and of nearly equal work.

    cuts = boundaries(items, sizes, n)            # n - 1 boundaries between the shares
    mine = [item for item in items if shard_of(item, cuts) == i]

The chunks are those that one process would compute (`cache.plan_chunks`), so n processes write the
same files, byte for byte. Nothing is exchanged: boundaries are a function of items and sizes.
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

#: A boundary after every item.
END = "~"


@final
@dataclass(frozen=True)
class Share:
    """Share `index` (from 0) of `of` equal shares of an audit's work; all of it by default."""

    index: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        """The share that "i/n" names, i from 1 to n. Raises UsageError."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(
                f"--shard {text}: i/n with i from 1 to n is needed",
                hint="Such as --shard 3/8, or --shard $SLURM_ARRAY_TASK_ID/8 in an array 1-8.",
            )
        return cls(int(found[1]) - 1, int(found[2]))

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.of}"

    @property
    def label(self) -> str:
        """What to add to a progress message; empty if the share is all there is."""
        return "" if self.of == 1 else f" (share {self})"


#: The only share of a job that is not divided.
WHOLE = Share()


def boundaries(items: Sequence[Item], sizes: NDArray[np.int64], shares: int) -> tuple[str, ...]:
    """The `shares` - 1 boundaries that cut `items` (of `sizes` [n] work) into whole chunks.

    A chunk belongs to the share that contains the middle of its work; with fewer chunks than
    shares some shares are empty.
    """
    from noisescope.storage.cache import plan_chunks, sort_key

    total, done = float(sizes.sum()), 0.0
    cuts: list[str] = []
    for chunk in plan_chunks(items, sizes):
        middle = done + chunk.work / 2
        share = min(shares - 1, int(shares * middle / total)) if total else 0
        cuts += [sort_key(chunk.items[0])] * (share - len(cuts))
        done += chunk.work
    return (*cuts, *[END] * (shares - 1 - len(cuts)))


def shard_of(item: Item, cuts: Sequence[str]) -> int:
    """The share, from 0, that an item belongs to."""
    from noisescope.storage.cache import sort_key

    return bisect_right(cuts, sort_key(item))
