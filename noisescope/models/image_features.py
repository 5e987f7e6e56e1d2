"""Features of denoising errors, and distances to a reference image if the dataset has one.

An image and its reference are denoised under the same (t, eps) and caption, and their feature maps
are compared block by block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, final

from noisescope.models import Item

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.models.denoiser import Denoiser

#: Latent positions averaged for the coarse part of an error.
COARSE = 4
#: Added to a power before its logarithm.
FLOOR = 1e-6
#: Late blocks whose activations are kept.
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

    moved, goal = guess - empty, target - empty
    flat = (1, 2, 3)
    gain = goal.square().mean(flat) - (guess - target).square().mean(flat)
    angle = functional.cosine_similarity(moved.flatten(1), goal.flatten(1))
    return torch.stack([gain, moved.square().mean(flat), angle], dim=1)


def pooled(states: Sequence[Tensor]) -> Tensor:
    """[B, D]: mean and standard deviation over positions of the blocks' channels."""
    import torch

    late = [state.float().flatten(2) for state in states]
    parts = [part for state in late for part in (state.mean(2), state.std(2))]
    return torch.cat(parts, dim=1)


def late_blocks(denoiser: Denoiser) -> list[Any]:
    """The last blocks of a denoiser, of a UNet only up blocks."""
    names = denoiser.upper_names(LATE_BLOCKS)
    return [denoiser.model.get_submodule(name) for name in names]


#: Added to a distance before its logarithm.
NEAR = 1e-4


@final
@dataclass(frozen=True)
class References:
    """References of a batch: row `rows[p]` of the items belongs to row `places[p]` of them."""

    rows: list[int]
    places: list[int]
    prompts: list[str]  # of each distinct (prompt, reference image)
    images: list[str]
    count: int  # B, items

    @classmethod
    def of(cls, items: Sequence[Item], known: Mapping[str, tuple[str, ...]]) -> Self:
        """The references that `known` names; an item without one is its own, at distance 0."""
        found: dict[tuple[str, str], int] = {}
        rows, places = [], []
        for row, item in enumerate(items):
            for image in known.get(item.key, (item.response,)):
                rows.append(row)
                places.append(found.setdefault((item.prompt, image), len(found)))
        prompts, images = [prompt for prompt, _ in found], [image for _, image in found]
        return cls(rows, places, prompts, images, len(items))

    def compare(self, states: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
        """Distances [B, 4 D] of D feature maps [B, C, h, w] to those of the references."""
        import torch

        found = distances(
            [state[self.rows] for state in states], [state[self.places] for state in references]
        )
        rows = torch.tensor(self.rows, device=found.device)
        total = torch.zeros(self.count, found.shape[1], device=found.device)
        share = torch.bincount(rows, minlength=self.count)[:, None]
        return total.index_add_(0, rows, found) / share


def distances(states: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """[B, 4 D]: four distances between two images' feature maps [B, C, h, w], for each of D.

    Mean squared difference of maps normalised over channels at each position; then one minus
    the cosine of whole maps, of their channel means, and of their 2 x 2 averages.
    """
    import torch
    from torch.nn import functional

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return 1 - functional.cosine_similarity(one.flatten(1), other.flatten(1))

    columns = []
    for one, other in zip(states, others, strict=True):
        a, b = one.float(), other.float()
        local = functional.normalize(a, dim=1) - functional.normalize(b, dim=1)
        columns.append(local.square().sum(1).mean((1, 2)))
        columns.append(distance(a, b))
        for side in (1, 2):
            pools = [functional.adaptive_avg_pool2d(state, side) for state in (a, b)]
            columns.append(distance(*pools))
    return torch.stack(columns, dim=1)


def compared_blocks(denoiser: Denoiser) -> list[Any]:
    """The residual blocks of a UNet, or all blocks of a transformer, from first to last."""
    if not denoiser.family.lower:
        return [block for _, block in denoiser.blocks]
    unet = denoiser.model
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return [layer for block in blocks for layer in block.resnets]
