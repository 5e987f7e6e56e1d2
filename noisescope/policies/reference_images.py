"""How far a picture is from the one it should look like, where the dataset gives that picture.

Both are denoised under the same (t, eps) and caption; their feature maps are compared block by
block. Such datasets ask "which is more like this?"; others never come here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, final

from noisescope.policies import Item

if TYPE_CHECKING:
    from torch import Tensor

#: Added to a distance before its logarithm.
NEAR = 1e-4


@final
@dataclass(frozen=True)
class References:
    """References of a batch: row `rows[p]` of the items belongs to place `places[p]` of them."""

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
    """[B, 4 D]: how far apart two pictures' D feature maps [B, C, h, w] are, four ways each.

    Mean squared difference of maps normalised over channels at each position; then one minus
    the cosine of whole maps, of their channel means, and of their 2 x 2 averages.
    """
    import torch
    from torch.nn import functional

    def apart(one: Tensor, other: Tensor) -> Tensor:
        return 1 - functional.cosine_similarity(one.flatten(1), other.flatten(1))

    columns = []
    for one, other in zip(states, others, strict=True):
        a, b = one.float(), other.float()
        local = functional.normalize(a, dim=1) - functional.normalize(b, dim=1)
        columns.append(local.square().sum(1).mean((1, 2)))
        columns.append(apart(a, b))
        for side in (1, 2):
            pools = [functional.adaptive_avg_pool2d(state, side) for state in (a, b)]
            columns.append(apart(*pools))
    return torch.stack(columns, dim=1)


def compared_blocks(unet: Any) -> list[Any]:
    """The residual blocks of a UNet2DConditionModel, from first to last."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return [layer for block in blocks for layer in block.resnets]
