"""Refuse a table in which two columns state opposite preferences, with the mapping of each."""

from __future__ import annotations

from itertools import combinations

from noisescope.datasets.adapters.cells import RawRow, RowFault, numbers, value
from noisescope.datasets.adapters.mapping import Roles, flag
from noisescope.datasets.adapters.preference import difference, preference
from noisescope.datasets.adapters.sample import Sample
from noisescope.datasets.adapters.schema import Schema
from noisescope.errors import DataError


def refuse_other_side(
    table: Sample, sides: Roles, statements: list[Roles], most: float = 0.0
) -> None:
    """Raise DataError if two columns name opposite sides in more than `most` of the rows."""
    for other in statements[1:]:
        one = statements[0]
        both = [
            (x, y)
            for row in table.rows
            if (x := _stated(row, sides | one)) and (y := _stated(row, sides | other))
        ]
        against = sum((x > 0) != (y > 0) for x, y in both)
        if against > most * len(both):
            ways = [(each, " and ".join(Schema("", each).paths)) for each in (one, other)]
            names = [name for _, name in ways]
            raise DataError(
                f"{table.name}: {names[0]} and {names[1]} name different sides as the better one "
                f"in {against} of {len(both)} rows",
                hint="; ".join(
                    f"{flag(sides | each)} reads {name}"
                    for each, name in ways
                    if "rank_a" not in each
                )
                + ".",
            )


def _stated(row: RawRow, roles: Roles) -> float | None:
    """Which side the row states by these roles: above 0 the first, below 0 the second."""
    try:
        if "rank_a" in roles:
            return difference(Schema("columns", roles), row, "rank_b", "rank_a")
        return preference(Schema("columns", roles), row).side
    except RowFault:
        return None


def refuse_other_order(table: Sample, ranked: Roles, rated: Roles) -> None:
    """Raise DataError if ranks and ratings order two answers of a row in opposite ways."""
    against = 0
    for row in table.rows:
        try:
            ranks = numbers(value(row, ranked["ranks"]), ranked["ranks"])
            ratings = numbers(value(row, rated["ratings"]), rated["ratings"])
        except RowFault:
            continue
        both = [(a, b) for a, b in zip(ranks, ratings, strict=False) if a is not None
                and b is not None]  # fmt: skip
        against += any((x[0] - y[0]) * (x[1] - y[1]) > 0 for x, y in combinations(both, 2))
    if against:
        raise DataError(
            f"{table.name}: {ranked['ranks']} and {rated['ratings']} order the answers "
            f"differently in {against} of {len(table.rows)} rows",
            hint=f"{flag(ranked)} reads the ranks, the lower the better; {flag(rated)} reads the "
            "ratings, the higher the better.",
        )
