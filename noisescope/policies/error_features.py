"""What a denoiser's error says of a picture: a few numbers per (t, eps) draw.

The mean error alone ranks smooth pictures first (blur denoises easily), so a head gets the
error's parts apart: fine and coarse, by channel, its extreme, the prediction's alignment and
power; and how much the caption helped, which finds pictures of something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Latent positions averaged for the coarse part of an error.
COARSE = 4
#: Added to a power before its logarithm.
FLOOR = 1e-6
#: Late up blocks whose activations are kept.
LATE_BLOCKS = 2


def error_statistics(guess: Tensor, target: Tensor) -> Tensor:
    """[B, 6 + C] numbers of the error r = guess - target, both [B, C, H, W] float32.

    Logarithms of: mean square, fine part's mean square, coarse part's mean square by channel,
    largest square of a position, guess's mean square; then cosine of guess and target, mean.
    """
    import torch
    from torch.nn import functional

    error = guess - target
    coarse = functional.avg_pool2d(error, min(COARSE, error.shape[-1]))
    wide = functional.interpolate(coarse, size=error.shape[-2:], mode="nearest")
    flat = (1, 2, 3)
    powers = [
        error.square().mean(flat),
        (error - wide).square().mean(flat),
        *coarse.square().mean((2, 3)).unbind(1),
        error.square().mean(1).amax((1, 2)),
        guess.square().mean(flat),
    ]
    cosine = functional.cosine_similarity(guess.flatten(1), target.flatten(1))
    logs = [(power + FLOOR).log() for power in powers]
    return torch.stack([*logs, cosine, error.mean(flat)], dim=1)


def caption_evidence(guess: Tensor, empty: Tensor, target: Tensor) -> Tensor:
    """[B, 3]: error without the caption minus error with it (their pointwise mutual information),
    how far the caption moves the prediction, and how well it points.

    The three are tied by e_empty - e_caption = 2 <d, target - empty> - <d, d>, d = guess - empty.
    """
    import torch
    from torch.nn import functional

    moved, wanted = guess - empty, target - empty
    flat = (1, 2, 3)
    gain = wanted.square().mean(flat) - (guess - target).square().mean(flat)
    angle = functional.cosine_similarity(moved.flatten(1), wanted.flatten(1))
    return torch.stack([gain, moved.square().mean(flat), angle], dim=1)


def pooled(states: Sequence[Tensor]) -> Tensor:
    """[B, D]: mean and standard deviation over positions of the late blocks' channels."""
    import torch

    late = [state.float().flatten(2) for state in states[-LATE_BLOCKS:]]
    parts = [part for state in late for part in (state.mean(2), state.std(2))]
    return torch.cat(parts, dim=1)
