"""Noise both sides of image pairs alike: the inputs on which a denoiser is compared with itself.

    noised = NoisedPairs(policy, data, seed=0, draws=4)
    rows = noised.rows(pairs, [(0, 1)] * len(pairs))         # lower blocks run once
    errors = squared_errors(policy.pipeline.denoiser, rows)  # e of Eq. 6, [R]

The two sides of a pair, the reference and all replicas see the same (t, eps), a function of
(seed, pair_id, draw) and never of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.models.denoising import Conditioning, draw_noise, generator

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.models.denoiser import Denoiser, Half
    from noisescope.models.diffusion import DiffusionPolicy
    from noisescope.training.pair_data import PairData

Int = NDArray[np.int64]


@final
@dataclass(frozen=True)
class Noised:
    """Both sides of some pairs under some draws: R = 2 x pairs x draws rows.

    Order: chosen of all (pair, draw), then rejected of the same.
    """

    latents: Tensor  # [R, C, h, w], noised
    t: Tensor  # [R]
    conditioning: Conditioning
    target: Tensor  # [R, C, h, w]


@final
@dataclass(frozen=True)
class Rows:
    """`Noised` rows after the lower blocks."""

    half: Half
    target: Tensor  # [R, C, h, w]


@final
@dataclass(frozen=True)
class NoisedPairs:
    """Pairs of a dataset under noise.

    `draws` K: draw k is one of K that cover the schedule together (`draw_noise`). 0: every number
    is an independent draw.
    """

    policy: DiffusionPolicy
    data: PairData
    seed: int
    draws: int = 0

    def noised(self, pairs: Int, draws: Sequence[tuple[int, ...]]) -> Noised:
        """Noised latents of both sides of pairs [P] under each pair's draws (as many for each)."""
        import torch

        policy, items = self.policy, self.data.items
        schedule, device = policy.pipeline.schedule, policy.device
        both = [items[i] for side in (self.data.chosen, self.data.rejected) for i in side[pairs]]
        drawn = [self._draw(int(pair), own) for pair, own in zip(pairs, draws, strict=True)]
        times, noises = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        t = torch.from_numpy(times).to(device).repeat(2)
        eps = torch.from_numpy(noises).to(device).repeat(2, 1, 1, 1)
        with torch.no_grad():
            latents, framings = policy.latents([item.response for item in both])
            conditioning = policy.conditioning([item.prompt for item in both], framings)
            index = torch.arange(len(both), device=device).repeat_interleave(len(draws[0]))
            latents, conditioning = latents[index], conditioning.rows(index)
            target = schedule.target(latents, t, eps).float()
            return Noised(schedule.noisy(latents, t, eps), t, conditioning, target)

    def rows(self, pairs: Int, draws: Sequence[tuple[int, ...]]) -> Rows:
        """`noised` after the lower blocks of the policy's denoiser, without gradient."""
        import torch

        found = self.noised(pairs, draws)
        with torch.no_grad():
            denoiser = self.policy.pipeline.denoiser
            half = denoiser.below(found.latents, found.t, found.conditioning, denoiser.split())
        return Rows(half, found.target)

    def _draw(self, pair: int, draws: tuple[int, ...]) -> tuple[Int, NDArray[np.float32]]:
        """Timesteps [k] and noises [k, C, h, w] of some draws of a pair."""
        name, shape = self.data.pair_ids[pair], self.policy.latent_shape
        drawn = self.policy.pipeline.schedule.drawn
        if self.draws:
            times, noises = draw_noise(self.seed, name, self.draws, shape, drawn)
            return times[list(draws)], noises[list(draws)]
        sources = [generator(self.seed, name, draw) for draw in draws]
        times = np.array([drawn(source.random()) for source in sources], np.int64)
        return times, np.stack([source.standard_normal(shape, np.float32) for source in sources])


def squared_errors(denoiser: Denoiser, rows: Rows) -> Tensor:
    """e of Eq. 6, [R] float32: squared error of the prediction, mean over the latent."""
    guess = denoiser.above(rows.half).float()
    return (guess - rows.target).square().mean(dim=(1, 2, 3))
