"""Pick-a-Pic v1 and v2 (`yuvalkirstain/pickapic_v2`): two images, a caption, a soft label.

`label_0` is 1, 0 or 0.5 (a tie); `jpg_0` and `jpg_1` hold raw bytes; `user_id` is the annotator.
`reference_jpg`, not part of the published schema, may hold the caption's own image.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

from noisescope.datasets.adapter import RawRow, RowFault, has, label, swapped, text
from noisescope.datasets.gallery import REFERENCE
from noisescope.pairs import Modality, Pair

LABELS = ("label_0", "label_1")
IMAGES = ("jpg_0", "jpg_1")
IDENTIFIERS = ("image_0_uid", "image_1_uid")


@final
@dataclass(frozen=True)
class PickAPic:
    """One judged pair of images a row."""

    name: str = "pick_a_pic"
    modality: Modality = "image"
    columns: tuple[str, ...] = ("caption", *IMAGES, *LABELS)
    optional: tuple[str, ...] = (
        "user_id",
        "pair_id",
        "has_label",
        "best_image_uid",
        *IDENTIFIERS,
        REFERENCE,
    )

    def matches(self, columns: Collection[str], rows: Sequence[RawRow]) -> bool:
        return has(columns, self.columns)

    def parse(self, row: RawRow) -> list[Pair]:
        caption = text(row, "caption")
        first, second = (_share(row, column) for column in LABELS)
        if row.get("has_label") is False or first is None or second is None:
            raise RowFault("unlabelled")
        if first == second:
            raise RowFault("tie", f"both labels are {first:g}")
        chosen, rejected = IMAGES if first > second else reversed(IMAGES)
        annotator, pair_id = label(row, "user_id"), label(row, "pair_id")
        ordered = first > second
        pair = Pair(caption, chosen, rejected, annotator=annotator, pair_id=pair_id, first=ordered)
        return [pair]

    def flip(self, row: RawRow) -> dict[str, Any]:
        flipped = swapped(row, LABELS)
        best, uids = row.get("best_image_uid"), [row.get(name) for name in IDENTIFIERS]
        if best is not None and best in uids and uids[0] != uids[1]:
            flipped["best_image_uid"] = uids[1 - uids.index(best)]
        return flipped


def _share(row: RawRow, column: str) -> float | None:
    """A label between 0 and 1, or None where it is null or NaN."""
    value = row.get(column)
    if value is None or value != value:
        return None
    if isinstance(value, (int, float)) and 0 <= value <= 1:
        return float(value)
    raise RowFault("unreadable", f"{column} is {str(value)[:20]}, not between 0 and 1")
