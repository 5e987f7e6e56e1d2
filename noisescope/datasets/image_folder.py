"""noisescope's own image format: a prompt and two images, as bytes or as paths.

prompt, chosen_image, rejected_image    (chosen, rejected too, where they hold image bytes)
annotator, pair_id, label               as in the text format

A folder with a manifest is the same with paths: `metadata.jsonl` (or .csv, .parquet) beside the
image files, each row naming two of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

from noisescope.datasets.adapter import RawRow, RowFault, has, label, swapped, text
from noisescope.datasets.columnar import OWN_COLUMNS, verdict
from noisescope.pairs import Modality, Pair


@final
@dataclass(frozen=True)
class ImageFolder:
    """One pair of images a row, in the two columns `sides`."""

    name: str = "image_folder"
    sides: tuple[str, str] = ("chosen_image", "rejected_image")
    modality: Modality = "image"
    optional: tuple[str, ...] = OWN_COLUMNS

    @property
    def columns(self) -> tuple[str, ...]:
        return ("prompt", *self.sides)

    def matches(self, columns: Collection[str], rows: Sequence[RawRow]) -> bool:
        if not has(columns, self.columns):
            return False
        values = [row.get(side) for row in rows for side in self.sides]
        if self.sides == ("chosen", "rejected"):
            return any(isinstance(value, bytes) or _is_image(value) for value in values)
        return True

    def parse(self, row: RawRow) -> list[Pair]:
        stated = verdict(row)
        if stated in ("tie", "unlabelled"):
            raise RowFault(stated, f"label {row['label']!r}")
        chosen, rejected = self.sides if stated == "chosen" else reversed(self.sides)
        return [
            Pair(
                text(row, "prompt"),
                chosen,
                rejected,
                annotator=label(row, "annotator"),
                pair_id=label(row, "pair_id"),
            )
        ]

    def flip(self, row: RawRow) -> dict[str, Any]:
        return swapped(row, self.sides)


def _is_image(value: Any) -> bool:
    """Whether it is the `datasets` library's decoded-off Image value."""
    return isinstance(value, dict) and set(value) == {"bytes", "path"}
