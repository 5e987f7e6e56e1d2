"""Diffusion arithmetic: shared noise, conditioning, the log-ratio.

Eq. 6 of arXiv 2503.16921 (Diffusion-DPO, 2311.12908), with e the mean squared error:

    l = -[(e_w - e_w_ref) - (e_l - e_l_ref)]

where w, l, policy, reference and every replica see the SAME timestep t and noise eps.
Convention of beta: `margin = beta * l` as here. DiffusionDPO's train.py and diffusers' SDXL script
multiply by another 0.5, so their beta_dpo 5000 is our beta 2500; diffusers' SD script has no 0.5.

Noise comes from a counter-based generator keyed by (seed, name, draw): never by batch position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class DrawConfig:
    """The (t, eps) draws shared by the dataset: timesteps as shares of the schedule.

    Draws are in the order of `times`; each is measured with the caption, and the `empty` ones
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


@final
@dataclass(frozen=True)
class Conditioning:
    """Further inputs of the denoiser: text [B, L, D]; pooled text, size ids or a mask of text."""

    text: Tensor
    added: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self, index: Tensor) -> Conditioning:
        """Conditioning of some rows, repeats allowed."""
        return Conditioning(self.text[index], {k: v[index] for k, v in self.added.items()})


def generator(seed: int, name: str, draw: int) -> np.random.Generator:
    """A counter-based generator (Philox) that is a function of its arguments alone."""
    text = f"{seed}\0{name}\0{draw}".encode("utf-8", "surrogatepass")
    return np.random.Generator(np.random.Philox(key=_key(text)))


def _key(text: bytes) -> int:
    """A 128-bit Philox key."""
    return int.from_bytes(hashlib.sha256(text).digest()[:16], "little")


def draw_noise(
    seed: int, name: str, draws: int, shape: Sequence[int], drawn: Callable[[float], int]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`draws` steps [K] and noises [K, *shape] for one pair (or dataset).

    Draws 2j and 2j + 1 share t and use +eps and -eps (antithetic); t of the j-th couple is
    `drawn` (`Schedule.drawn`) at a quantile uniform in the j-th of ceil(K / 2) equal parts of 0..1
    (stratified).
    """
    couples = (draws + 1) // 2
    times = np.empty(draws, np.int64)
    noises = np.empty((draws, *shape), np.float32)
    for couple in range(couples):
        source = generator(seed, name, couple)
        t = drawn((couple + source.random()) / couples)
        eps = source.standard_normal(tuple(shape), np.float32)
        for offset, sign in enumerate((1, -1)):
            if (draw := 2 * couple + offset) < draws:
                times[draw], noises[draw] = t, sign * eps
    return times, noises


def logratio(chosen: Tensor, chosen_ref: Tensor, rejected: Tensor, rejected_ref: Tensor) -> Tensor:
    """l of Eq. 6 from errors of any one shape: -[(e_w - e_w_ref) - (e_l - e_l_ref)]."""
    return -((chosen - chosen_ref) - (rejected - rejected_ref))
