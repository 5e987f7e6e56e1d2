"""Which (t, eps) draws images are measured at: the same ones for a whole dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, final

import numpy as np

from noisescope.errors import UsageError


@final
@dataclass(frozen=True)
class DrawConfig:
    """The (t, eps) draws shared by the dataset: timesteps as shares of the schedule.

    Draws stand in the order of `times`; each is measured with the caption, and the `empty` ones
    (indices) also with the empty caption. Activations are kept of the `activations` ones; where
    the dataset gives reference images, distances to them are taken at the `references` ones.
    """

    times: tuple[float, ...] = (0.03, 0.25, 0.45, 0.65)
    empty: tuple[int, ...] = (1, 2, 3)
    activations: tuple[int, ...] = (0,)
    references: tuple[int, ...] = (0, 1)
    seed: int = 0

    def __post_init__(self) -> None:
        indices = range(len(self.times))
        if not self.times or not all(0 <= share < 1 for share in self.times):
            raise UsageError(f"draw times {self.times}: shares of the schedule, 0 to below 1")
        used = (self.empty, self.activations, self.references)
        if not set().union(*used) <= set(indices):
            raise UsageError(f"draws {used}: not all among {self.times}")

    @classmethod
    def spread(cls, count: int, seed: int = 0) -> Self:
        """`count` draws: an early one for flaws, the others from .25 to .65 for the caption."""
        if count < 1:
            raise UsageError(
                f"--draws must be at least 1, not {count}", hint="Leave it out for the default, 4."
            )
        if count == 1:
            return cls((0.45,), (0,), (0,), (0,), seed)
        middle = [0.45] if count == 2 else np.linspace(0.25, 0.65, count - 1).round(4).tolist()
        return cls((0.03, *middle), tuple(range(1, count)), (0,), (0, 1), seed)

    @property
    def calls(self) -> int:
        """Denoiser calls an item takes."""
        return len(self.times) + len(self.empty)
