"""Several images of one prompt in order of preference: what HPDv2 and ImageRewardDB share.

A list of ranks, the lower the better, states a pair for every two images of unequal rank, and a
tie for every two of equal rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from noisescope.datasets.adapter import RawRow, RowFault
from noisescope.pairs import Pair


def numbers(value: Any, what: str) -> list[float]:
    """A list of numbers. Raises RowFault for anything else."""
    if not isinstance(value, list) or not all(isinstance(n, (int, float)) for n in value):
        raise RowFault("unreadable", f"{what} is no list of numbers")
    return [float(number) for number in value]


def ranked(
    row: RawRow, prompt: str, column: str, ranks: Sequence[float], annotator: str | None = None
) -> list[Pair | RowFault]:
    """A pair for every two images in `column`, or the fault "tie" where they rank alike.

    Raises RowFault where images and ranks do not belong together.
    """
    images = row.get(column)
    if not isinstance(images, list) or len(images) != len(ranks) or len(ranks) < 2:
        raise RowFault("unreadable", f"{column} and its ranks differ in length or are too short")
    out: list[Pair | RowFault] = []
    for one, other in combinations(range(len(ranks)), 2):
        best, worst = (one, other) if ranks[one] < ranks[other] else (other, one)
        if ranks[one] == ranks[other]:
            out.append(RowFault("tie", f"{column} {one} and {other} rank alike"))
        else:
            out.append(Pair(prompt, f"{column}.{best}", f"{column}.{worst}", annotator=annotator))
    return out


def with_reversed(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    """A copy of the row with the ranks in `column`, where it has them, reversed."""
    flipped = dict(row)
    if column in flipped:
        flipped[column] = reversed_ranks(flipped[column])
    return flipped


def reversed_ranks(ranks: Any) -> Any:
    """Ranks with the order of preference reversed; doing it twice restores them."""
    if not isinstance(ranks, list) or not all(_is_rank(rank) for rank in ranks):
        return ranks
    order = sorted(set(ranks))
    mirror = dict(zip(order, reversed(order), strict=True))
    return [mirror[rank] for rank in ranks]


def _is_rank(value: Any) -> bool:
    """Whether a value has a place in an order (NaN has none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
