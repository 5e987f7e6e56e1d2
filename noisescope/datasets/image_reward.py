"""ImageRewardDB (`THUDM/ImageRewardDB`): ranked groups of images, or ready pairs.

group   prompt, image_path (or image, generations) [...], rank (or ranking) [...]: lower is
        better, equal ranks are ties
pair    prompt, img_better, img_worse
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

from noisescope.datasets.adapter import RawRow, RowFault, has, swapped, text
from noisescope.datasets.ranked_images import numbers, ranked, with_reversed
from noisescope.pairs import Modality, Pair

SIDES = ("img_better", "img_worse")


@final
@dataclass(frozen=True)
class ImageRewardGroup:
    """One ranked list of images a row; the columns' names differ by edition."""

    name: str = "image_reward"
    images: str = "image_path"
    ranks: str = "rank"
    modality: Modality = "image"
    optional: tuple[str, ...] = ("prompt_id",)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("prompt", self.images, self.ranks)

    def matches(self, columns: Collection[str], rows: Sequence[RawRow]) -> bool:
        return has(columns, self.columns) and any(
            isinstance(row.get(name), list) for row in rows for name in (self.images, self.ranks)
        )

    def parse(self, row: RawRow) -> list[Pair | RowFault]:
        ranks = numbers(row.get(self.ranks), self.ranks)
        return ranked(row, text(row, "prompt"), self.images, ranks)

    def flip(self, row: RawRow) -> dict[str, Any]:
        return with_reversed(row, self.ranks)


@final
@dataclass(frozen=True)
class ImageRewardPair:
    """A better and a worse image a row."""

    name: str = "image_reward_pair"
    modality: Modality = "image"
    columns: tuple[str, ...] = ("prompt", *SIDES)
    optional: tuple[str, ...] = ("prompt_id",)

    def matches(self, columns: Collection[str], rows: Sequence[RawRow]) -> bool:
        return has(columns, self.columns)

    def parse(self, row: RawRow) -> list[Pair]:
        return [Pair(text(row, "prompt"), *SIDES)]

    def flip(self, row: RawRow) -> dict[str, Any]:
        return swapped(row, SIDES)
