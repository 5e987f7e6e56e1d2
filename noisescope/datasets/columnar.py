"""noisescope's own text format: prompt, chosen, rejected and what is known beside them.

prompt, chosen, rejected            text
annotator, pair_id                  optional; numbers are read as text
label                               optional: 1 or "chosen" (as written), 0 or "rejected"
                                    (the other way round), 0.5 or "tie"; blank is unlabelled
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from noisescope.datasets.adapter import (
    RawRow,
    RowFault,
    has,
    stated,
    swapped,
    text,
    texts,
    unexpected,
)
from noisescope.pairs import Modality, Pair

#: Optional columns that tell this format from TRL's, which has the same three.
OWN_COLUMNS = ("annotator", "pair_id", "label")
_LABELS = {
    "1": "chosen", "1.0": "chosen", "true": "chosen", "chosen": "chosen",
    "0": "rejected", "0.0": "rejected", "false": "rejected", "rejected": "rejected",
    "0.5": "tie", "tie": "tie",
    "": "unlabelled", "nan": "unlabelled", "none": "unlabelled", "null": "unlabelled",
}  # fmt: skip


@final
@dataclass(frozen=True)
class Columnar:
    """One pair a row, in three text columns."""

    name: str = "columnar"
    modality: Modality = "text"
    columns: tuple[str, ...] = ("prompt", "chosen", "rejected")
    optional: tuple[str, ...] = OWN_COLUMNS

    def matches(self, columns: Collection[str], rows: Sequence[RawRow]) -> bool:
        values = [row.get(column) for row in rows for column in self.columns]
        structured = any(isinstance(value, (bytes, list, dict)) for value in values)
        if structured or not has(columns, self.columns):
            return False
        plain = any(
            isinstance(row.get(side), str) for row in rows for side in ("chosen", "rejected")
        )
        return any(name in columns for name in OWN_COLUMNS) or not plain

    def parse(self, row: RawRow) -> list[Pair]:
        preferred = verdict(row)
        chosen, rejected = texts(row, "chosen", "rejected")
        if preferred == "rejected":
            chosen, rejected = rejected, chosen
        pair = stated(row, text(row, "prompt"), chosen, rejected)
        if preferred in ("tie", "unlabelled"):
            raise RowFault(preferred, f"label {row['label']!r}")
        return [replace(pair, first=preferred == "chosen") if "label" in row else pair]

    def flip(self, row: RawRow) -> dict[str, Any]:
        return swapped(row, ("chosen", "rejected"))


def verdict(row: RawRow) -> str:
    """Which side `label` prefers: chosen, rejected, tie or unlabelled. Raises RowFault."""
    if "label" not in row:
        return "chosen"
    value = row["label"]
    if not isinstance(value, (str, int, float, type(None))):
        raise unexpected(row, "1, 0 or 0.5", "label")
    try:
        key = str(value).strip().lower()
        return _LABELS[key]
    except (KeyError, ValueError) as error:
        raise RowFault("unreadable", "label is neither 1, 0 nor 0.5") from error
