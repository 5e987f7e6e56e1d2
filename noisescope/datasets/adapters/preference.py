"""Which side of a row is better: by its label, shares, votes or scores.

A preference is a number: above 0 the first side (a) is better, below 0 the second, 0 is a tie;
None if the row is unlabelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from noisescope.datasets.adapters import labels
from noisescope.datasets.adapters.cells import (
    MISSING,
    RawRow,
    RowFault,
    decoded,
    is_missing,
    kind,
    number,
    shortened,
    value,
)

if TYPE_CHECKING:
    from noisescope.datasets.adapters.schema import Schema


class Preference(NamedTuple):
    """A row's preference, the share of its votes that agree with it, and their number."""

    side: float | None
    agreement: float | None = None
    votes: int | None = None


def preference(schema: Schema, row: RawRow) -> Preference:
    """The preference of a labelled row. Raises RowFault."""
    roles = schema.roles
    if "labelled" in roles and value(row, roles["labelled"]) is False:
        return Preference(None)
    if "share_a" in roles:
        return _by_shares(schema, row)
    if "votes_a" in roles:
        return _by_votes(schema, row)
    if is_tie(schema, row):
        return Preference(0.0)
    if "preference" not in roles:
        return Preference(difference(schema, row, "score_a", "score_b"))
    side: float | str | None = named_side(schema, row) if "name_a" in roles else None
    if side is None:
        side = meaning(schema, value(row, roles["preference"]))
    if isinstance(side, str):
        raise RowFault("unreadable", f"{roles['preference']} is {side}")
    return Preference(side, *_agreeing(schema, row, side)) if side else Preference(side)


def is_tie(schema: Schema, row: RawRow) -> bool:
    """Whether a column of its own states that the row is a tie."""
    return bool(_share(schema, row, "share_tie"))


def difference(schema: Schema, row: RawRow, one: str, other: str) -> float | None:
    """The number of role `one` less that of role `other`; None if either is missing."""
    a, b = schema.number(row, one), schema.number(row, other)
    return None if a is None or b is None else a - b


def named_side(schema: Schema, row: RawRow) -> float | None:
    """The side that `preference` names by the name that the row gives it; None if neither."""
    name, one, other = (schema.name_in(row, r) for r in ("preference", "name_a", "name_b"))
    if name is None or one == other or name not in (one, other):
        return None
    return 1.0 if name == one else -1.0


def meaning(schema: Schema, found: Any) -> float | str | None:
    """The preference that a value of the label states; what it is in words if it states none."""
    if found is None or found != found:
        return None
    if not isinstance(found, labels.LABEL_TYPES):
        return f"{kind(found)}, expected a label"
    text = labels.canonical(found)
    if isinstance(found, bool) and "0" not in schema.coding:
        return "true or false, expected a label"
    if text in schema.coding:
        return schema.coding[text]
    odd = f"{shortened(str(found), 20)!r}"
    if schema.graded:
        if not labels.is_number(text):
            return f"{odd}, expected a number"
        return float(text) if schema.roles["a_wins"] == "positive" else -float(text)
    if MISSING.fullmatch(text) or labels.is_unlabelled(text):
        return None
    roles = schema.roles
    if stated := [roles[role] for role in ("a_wins", "b_wins", "tie") if role in roles]:
        return f"{odd}, not one of {'/'.join(stated)}"
    side = labels.word_side(str(found), schema.tags)
    return odd if side is None else side


def statement(schema: Schema, row: RawRow) -> str:
    """What the label of a row is, in the fault of one without a preference."""
    roles = schema.roles
    if "share_a" in roles:
        one, other = (_share(schema, row, role) for role in ("share_a", "share_b"))
        return "" if one is None or other is None else f"both labels are {one:g}"
    if "votes_a" in roles:
        if ties := schema.number(row, "share_tie"):
            return f"{roles['share_tie']} is {ties:g}"
    elif is_tie(schema, row):
        return f"{roles['share_tie']} is true"
    path = next(roles[role] for role in ("preference", "votes_a", "score_a") if role in roles)
    return f"{path} {value(row, path)!r}"


def _by_shares(schema: Schema, row: RawRow) -> Preference:
    one, other = (_share(schema, row, role) for role in ("share_a", "share_b"))
    if is_tie(schema, row):
        return Preference(0.0)
    if one is None or other is None:
        return Preference(None)
    return Preference(one - other, max(one, other) if min(one, other) > 0 else None)


def _by_votes(schema: Schema, row: RawRow) -> Preference:
    one, other = (schema.number(row, role) for role in ("votes_a", "votes_b"))
    ties = schema.number(row, "share_tie") or 0
    if one is None or other is None or one + other + ties <= 0:
        return Preference(None)
    total = one + other + ties
    if ties and ties >= max(one, other):
        return Preference(0.0, None, round(total))
    return Preference(one - other, max(one, other) / total, round(total))


def _share(schema: Schema, row: RawRow, role: str) -> float | None:
    """A share of 0 to 1, or a label that is true or false; None if there is none."""
    path = schema.roles.get(role)
    if path is None:
        return None
    found = value(row, path)
    if isinstance(found, (bool, str)) and labels.canonical(found) in ("0", "1"):
        return float(labels.canonical(found))
    share = number(row, path)
    if share is not None and not 0 <= share <= 1:
        raise RowFault("unreadable", f"{path} is {share:g}, not between 0 and 1")
    return share


def _agreeing(schema: Schema, row: RawRow, side: float) -> tuple[float | None, int | None]:
    """(share of the row's votes that are for the better side, number of votes)."""
    path = schema.roles.get("votes")
    found = None if path is None else value(row, path)
    if path is None or is_missing(found):
        return None, None
    if isinstance(found, labels.LABEL_TYPES) and not isinstance(decoded(str(found)), list):
        count = number(row, path)
        return None, None if count is None else round(count)
    if not isinstance(found, (list, tuple)):
        raise RowFault("unreadable", f"{path} is {kind(found)}, expected a list of votes")
    votes = [vote for one in found if isinstance(vote := meaning(schema, one), (int, float))]
    if not votes:
        return None, None
    return sum(vote * side > 0 for vote in votes) / len(votes), len(votes)
