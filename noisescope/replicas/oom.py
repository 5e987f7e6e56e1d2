"""Batches of LoRA replicas that memory has no room for, taken in parts: `training.Fitting`.

    train(learner, objective, plan, directory, fitting=FittingReplicas(learner, pair_ids))

A step sums over its pairs, so its gradient stays what it was, but for rounding. The limit is
kept: later batches are cut to it before they are tried.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from noisescope.errors import ModelError
from noisescope.models.memory import HINT, free
from noisescope.replicas.packed import Part
from noisescope.training.loop import Learner

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass
class FittingReplicas:
    """At most `limit` pairs a forward, once more did not fit; one that never does is named."""

    learner: Learner[list[Part]]
    pair_ids: Sequence[str]
    limit: int | None = None

    @property
    def together(self) -> bool:
        """Replicas train in one process."""
        return False

    def parts(self, batch: list[Part]) -> list[list[Part]]:
        """`batch` in forwards of at most `limit` pairs, replica by replica."""
        if self.limit is None or _pairs(batch) <= self.limit:
            return [batch]
        groups: list[list[Part]] = []
        room = 0
        for part in batch:
            at = 0
            while at < len(part.pairs):
                if not room:
                    groups.append([])
                    room = self.limit
                mine = part.pairs[at : at + room]
                share = part.share * len(mine) / len(part.pairs)
                groups[-1].append(Part(part.replica, mine, share))
                at, room = at + len(mine), room - len(mine)
        return groups

    def halve(self, batch: list[Part]) -> None:
        """Lower the limit below `batch`, and say so the first time. Raises ModelError for a pair
        that does not fit alone."""
        pairs = _pairs(batch)
        if pairs == 1:
            name = self.pair_ids[int(batch[0].pairs[0])]
            raise ModelError(f"pair {name} does not fit into memory, even alone", hint=HINT)
        if self.limit is None:
            logging.getLogger("noisescope").warning(
                "%d pairs at once do not fit into memory: going on in smaller batches", pairs
            )
        self.limit = pairs // 2
        free()

    def idle(self, batch: list[Part]) -> Tensor:
        """A loss of 0 that has passed through `batch`."""
        total: Tensor = sum(  # type: ignore[assignment]
            0.0 * piece.values.logratio.sum() for piece in self.learner.pieces(batch)
        )
        return total


def _pairs(batch: Sequence[Part]) -> int:
    return sum(len(part.pairs) for part in batch)
