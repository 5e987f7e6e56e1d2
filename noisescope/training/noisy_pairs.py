"""Both sides of pairs under shared noise: what a diffusion policy is compared with itself on.

    noised = NoisedPairs(policy, data, seed=0, draws=4)
    rows = noised.rows(pairs, [(0, 1)] * len(pairs))   # encoded once, for everyone
    errors = squared_errors(policy.pipeline.unet, rows)   # e of Eq. 6, [R]

The two sides of a pair, the reference and all replicas see the same (t, eps), which is a
function of (seed, pair_id, draw): never of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.models.denoising import Half, decode, draw_noise, encode

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.models.diffusion import DiffusionPolicy
    from noisescope.training.pair_data import PairData

Int = NDArray[np.int64]


@final
@dataclass(frozen=True)
class Rows:
    """Both sides of some pairs under some draws, ready to denoise: R = 2 x pairs x draws rows.

    Order: chosen of all (pair, draw), then rejected of the same.
    """

    half: Half
    target: Tensor  # [R, C, h, w]


@final
@dataclass(frozen=True)
class NoisedPairs:
    """Pairs of a dataset and the K draws they are judged by."""

    policy: DiffusionPolicy
    data: PairData
    seed: int
    draws: int

    def rows(self, pairs: Int, draws: Sequence[tuple[int, ...]]) -> Rows:
        """Noised latents of both sides of pairs [P] under each pair's draws, encoded once."""
        import torch

        policy, items = self.policy, self.data.items
        schedule, device = policy.pipeline.schedule, policy.device
        sides = (self.data.chosen[pairs], self.data.rejected[pairs])
        whole = [items[index] for side in sides for index in side]
        each = len(draws[0])
        times, noises = [], []
        for pair, wanted in zip(pairs.tolist(), draws, strict=True):
            name, steps = self.data.pair_ids[pair], len(schedule.alphas)
            chosen, drawn = draw_noise(self.seed, name, self.draws, policy.latent_shape, steps)
            times.append(chosen[list(wanted)])
            noises.append(drawn[list(wanted)])
        t = torch.from_numpy(np.concatenate(times)).to(device).repeat(2)
        eps = torch.from_numpy(np.concatenate(noises)).to(device).repeat(2, 1, 1, 1)
        with torch.no_grad():
            latents, framings = policy.latents([item.response for item in whole])
            told = policy.conditioning([item.prompt for item in whole], framings)
            index = torch.arange(len(whole), device=device).repeat_interleave(each)
            latents, told = latents[index], told.rows(index)
            half = encode(policy.pipeline.unet, schedule.noisy(latents, t, eps), t, told)
            return Rows(half, schedule.target(latents, t, eps).float())


def squared_errors(unet: Any, rows: Rows) -> Tensor:
    """e of Eq. 6, [R] float32: squared error of the prediction, mean over the latent."""
    guess = decode(unet, rows.half).float()
    return (guess - rows.target).square().mean(dim=(1, 2, 3))
