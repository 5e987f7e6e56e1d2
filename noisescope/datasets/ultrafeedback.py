"""UltraFeedback, binarized (`HuggingFaceH4/ultrafeedback_binarized` and argilla's editions).

`chosen` and `rejected` are message lists that include the user's turn; equal scores are ties.
`flip` exchanges the responses and leaves the scores where they are: a score states the label.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

from noisescope.datasets.adapter import RawRow, RowFault, has, swapped, unexpected
from noisescope.datasets.trl import SIDES, conversational
from noisescope.pairs import Modality, Pair


@final
@dataclass(frozen=True)
class UltraFeedback:
    """Scored message lists; `scores` names the two score columns of this edition."""

    name: str = "ultrafeedback"
    scores: tuple[str, str] = ("score_chosen", "score_rejected")
    modality: Modality = "text"
    optional: tuple[str, ...] = ("prompt", "prompt_id", "messages", "annotator", "pair_id")

    @property
    def columns(self) -> tuple[str, ...]:
        return (*SIDES, *self.scores)

    def matches(self, columns: Collection[str], rows: Sequence[RawRow]) -> bool:
        lists = any(isinstance(row.get(side), list) for row in rows for side in SIDES)
        return has(columns, self.columns) and lists

    def parse(self, row: RawRow) -> list[Pair]:
        one, other = (_score(row, column) for column in self.scores)
        pair = conversational(row)
        if one is not None and one == other:
            raise RowFault("tie", f"both sides score {one:g}")
        return [pair]

    def flip(self, row: RawRow) -> dict[str, Any]:
        flipped = swapped(row, SIDES, ("chosen-model", "rejected-model"))
        if "messages" in row:  # a copy of one side, normally the chosen one
            for side, other in (SIDES, SIDES[::-1]):
                if side in row and other in row and row["messages"] == row[side]:
                    flipped["messages"] = row[other]
                    break
        return flipped


def _score(row: RawRow, column: str) -> float | None:
    """A finite score, or None where it is null or NaN: the order of the sides then stands."""
    value = row.get(column)
    if value is None or value != value:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise unexpected(row, "a number", column)
    try:
        return float(value)
    except OverflowError as error:
        raise RowFault("unreadable", f"{column} is beyond any score") from error
