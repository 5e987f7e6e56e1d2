"""HPDv2 (`ymhao/HPDv2`): train and test rows differ.

train   human_preference [1, 0], file_path [a, b], prompt, user_hash: one choice between two
test    image_path [...], prompt, rank [...], raw_annotations [{rank, user_hash}]: several
        annotators order several images; each annotator's order states its own pairs
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

from noisescope.datasets.adapter import RawRow, RowFault, has, label, text
from noisescope.datasets.ranked_images import numbers, ranked, with_reversed
from noisescope.pairs import Modality, Pair


@final
@dataclass(frozen=True)
class HPDv2Train:
    """One choice between two images a row."""

    name: str = "hpdv2"
    modality: Modality = "image"
    columns: tuple[str, ...] = ("prompt", "human_preference", "file_path")
    optional: tuple[str, ...] = ("user_hash",)

    def matches(self, columns: Collection[str], rows: Sequence[RawRow]) -> bool:
        return has(columns, self.columns)

    def parse(self, row: RawRow) -> list[Pair | RowFault]:
        prompt = text(row, "prompt")
        votes = numbers(row.get("human_preference"), "human_preference")
        ranks = [-vote for vote in votes]
        return ranked(row, prompt, "file_path", ranks, label(row, "user_hash"))

    def flip(self, row: RawRow) -> dict[str, Any]:
        return with_reversed(row, "human_preference")


@final
@dataclass(frozen=True)
class HPDv2Test:
    """Several annotators' orders of several images a row."""

    name: str = "hpdv2_test"
    modality: Modality = "image"
    columns: tuple[str, ...] = ("prompt", "image_path", "rank", "raw_annotations")
    optional: tuple[str, ...] = ()

    def matches(self, columns: Collection[str], rows: Sequence[RawRow]) -> bool:
        return has(columns, self.columns)

    def parse(self, row: RawRow) -> list[Pair | RowFault]:
        prompt, annotations = text(row, "prompt"), row.get("raw_annotations")
        if not isinstance(annotations, list) or not annotations:
            return ranked(row, prompt, "image_path", numbers(row.get("rank"), "rank"))
        return [pair for one in annotations for pair in _order(row, prompt, one)]

    def flip(self, row: RawRow) -> dict[str, Any]:
        flipped = with_reversed(row, "rank")
        annotations = row.get("raw_annotations")
        if isinstance(annotations, list):
            flipped["raw_annotations"] = [
                with_reversed(one, "rank") if isinstance(one, dict) else one for one in annotations
            ]
        return flipped


def _order(row: RawRow, prompt: str, annotation: Any) -> list[Pair | RowFault]:
    """The pairs that one annotator states."""
    if not isinstance(annotation, dict):
        raise RowFault("unreadable", "raw_annotations holds no objects")
    ranks = numbers(annotation.get("rank"), "raw_annotations.rank")
    return ranked(row, prompt, "image_path", ranks, label(annotation, "user_hash"))
