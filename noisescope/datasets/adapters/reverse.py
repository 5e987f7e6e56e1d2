"""Reverse the preference of a row in its own schema, so that the row can be written back."""

from __future__ import annotations

from functools import partial
from itertools import chain, product
from typing import TYPE_CHECKING, Any

from noisescope.datasets.adapters.cells import RawRow, changed, is_missing, key, value
from noisescope.datasets.adapters.labels import (
    canonical,
    is_number,
    like,
    mirrored_word,
    negated,
    tags,
    word_side,
)
from noisescope.datasets.adapters.preference import meaning, named_side
from noisescope.errors import DataError

if TYPE_CHECKING:
    from noisescope.datasets.adapters.schema import Schema


def cannot_flip(schema: Schema) -> str:
    """Why rows of this schema cannot be written back reversed; empty if they can."""
    if schema.shape == "rows":
        return "its pairs are made of several rows, so no row has a preference to reverse"
    if schema.shape == "list" and schema.pairs == "best":
        return "--pairs best compares with the best answer, which reversing would change"
    if schema.shape == "labelled" and not {"preference", "share_a", "votes_a"} & set(schema.roles):
        return "its labels follow from scores, which are not exchanged"
    if len({"a_wins", "b_wins"} & set(schema.roles)) == 1:
        return "its labels name one side only, so there is no word for the other"
    order = {"sides": ("chosen", "rejected"), "labelled": (), "list": ("ranks", "ratings")}
    for role in order.get(schema.shape, ()):
        path = schema.roles.get(role, "")
        if schema.shape == "sides" and not path.replace(".", "").isidentifier():
            return f"{role} is composed of several cells ({path})" if "+" in path else ""
    return ""


def flip(schema: Schema, row: RawRow, *, correction: bool = False) -> dict[str, Any]:
    """Return the row with its preference reversed; flipping twice restores it exactly.

    A planted error leaves scores where they are: moved, they would give it away. In a
    `correction`, scores, ranks and models follow their texts, a margin changes its sign and
    a status names the better side.

    Only for a schema without a reason in `cannot_flip`.
    """
    if schema.shape == "sides":
        flipped = exchanged(row, (schema.roles["chosen"], schema.roles["rejected"]), *schema.twins)
        flipped = _copied(schema, row, flipped)
        return _corrected(schema, row, flipped) if correction else flipped
    if schema.shape == "list":
        flipped = dict(row)
        for role in ("ranks", "ratings"):
            if role in schema.roles:
                flipped = changed(flipped, schema.roles[role], mirrored_ranks)
        return flipped
    twins = [(f"{kind}_a", f"{kind}_b") for kind in ("share", "votes")]
    twin = next(((a, b) for a, b in twins if a in schema.roles), None)
    if twin is not None:
        flipped = exchanged(row, (schema.roles[twin[0]], schema.roles[twin[1]]))
    elif "name_a" in schema.roles and (side := named_side(schema, row)) is not None:
        other = "name_b" if side > 0 else "name_a"
        name = value(row, schema.roles[other])
        flipped = changed(row, schema.roles["preference"], lambda _: name)
    else:
        flipped = changed(row, schema.roles["preference"], partial(_mirrored, schema))
        if "votes" in schema.roles and schema.roles["votes"] != schema.roles["preference"]:
            flipped = changed(flipped, schema.roles["votes"], partial(_mirrored, schema))
    if schema.ids is not None:
        best, *sides = (row.get(name) for name in schema.ids)
        if best is not None and best in sides and sides[0] != sides[1]:
            flipped[schema.ids[0]] = sides[1 - sides.index(best)]
    return flipped


def flipped(schema: Schema, row: RawRow, place: str, *, correction: bool = False) -> dict[str, Any]:
    """`flip` of a row that states a pair, at `place` in its file.

    Raises DataError if that changes nothing, as where the label is inside text that holds JSON.
    """
    try:
        changed_row = flip(schema, row, correction=correction)
    except LookupError:
        changed_row = dict(row)
    if changed_row == row:
        raise DataError(
            f"{place}: this row cannot be written back with its preference reversed: what states "
            "it is inside text, such as a list in a CSV file",
            hint="Write the rows as JSON lines or Parquet, or use the pairs of a run: noisescope "
            "export --format trl",
        )
    return changed_row


def _copied(schema: Schema, row: RawRow, flipped: dict[str, Any]) -> dict[str, Any]:
    """A column that repeats one side, normally the chosen one, repeats the other."""
    sides = schema.roles["chosen"], schema.roles["rejected"]
    for name in schema.copies:
        for side, other in (sides, sides[::-1]):
            if name in row and side in row and other in row and row[name] == row[side]:
                flipped[name] = row[other]
                break
    return flipped


def _corrected(schema: Schema, row: RawRow, flipped: dict[str, Any]) -> dict[str, Any]:
    """The flipped row with what describes one side moved with its text."""
    roles = schema.roles
    moved = {roles["chosen"], roles["rejected"], *chain(*schema.twins)}
    twins = [
        (roles[f"{what}_chosen"], roles[f"{what}_rejected"])
        for what in ("score", "rank")
        if {f"{what}_chosen", f"{what}_rejected"} <= set(roles)
    ]
    twins += [twin for twin in _named_twins(schema, row) if twin not in twins]
    for twin in twins:
        if not any(f"{name}.".startswith(f"{path}.") for name in twin for path in moved):
            flipped = exchanged(flipped, twin)
    if "margin" in roles:
        flipped = changed(flipped, roles["margin"], _opposite)
    if "status" in roles:
        flipped = changed(flipped, roles["status"], partial(_status_of_better, schema))
    return flipped


def _named_twins(schema: Schema, row: RawRow) -> list[tuple[str, str]]:
    """Columns that differ in the name of the side, and contain numbers or name models."""
    keyed = {key(name): name for name in row}
    twins = []
    sides = tags(schema.roles["chosen"], schema.roles["rejected"]), ("chosen", "rejected")
    for (one, other), (name, column) in product(dict.fromkeys(sides), keyed.items()):
        words = name.split("_")
        twin = keyed.get("_".join(other if word == one else word for word in words))
        if not one or one not in words or twin is None or twin == column:
            continue
        if "model" in words or all(_is_number_or_missing(row[n]) for n in (column, twin)):
            twins.append((column, twin))
    return list(dict.fromkeys(twins))


def _status_of_better(schema: Schema, found: Any) -> Any:
    """A status word for a corrected row: chosen names the better side, a and b change."""
    own = tags(schema.roles["chosen"], schema.roles["rejected"])
    own = own if own[0] else ("chosen", "rejected")
    side = word_side(found, own) if isinstance(found, str) else None
    if not side or (side > 0 and {own[0], "chosen"} & set(key(found).split("_"))):
        return found
    return mirrored_word(found, own)


def _mirrored(schema: Schema, found: Any) -> Any:
    """A value of `preference` that means the opposite, of the same type and spelling."""
    if isinstance(found, list):
        return [_mirrored(schema, one) for one in found]
    side = meaning(schema, found)
    if not isinstance(side, (int, float)) or side == 0:
        return found
    text = canonical(found)
    if text in schema.coding:
        mine, theirs = ("a_wins", "b_wins") if side > 0 else ("b_wins", "a_wins")
        at = [canonical(each) for each in schema.roles[mine].split("|")].index(text)
        options = schema.roles[theirs].split("|")
        return like(options[min(at, len(options) - 1)], found)
    if schema.graded:
        return -found if not isinstance(found, str) else negated(found)
    return mirrored_word(str(found), schema.tags)


def exchanged(row: RawRow, *twins: tuple[str, str]) -> dict[str, Any]:
    """A copy of the row with the values of each pair of cells exchanged, if both exist."""
    flipped = dict(row)
    for one, other in twins:
        if one in row and other in row:
            flipped[one], flipped[other] = row[other], row[one]
        elif "." in one or "." in other:
            a, b = value(row, one), value(row, other)
            if a is not None and b is not None:
                flipped = changed(changed(flipped, one, lambda _, b=b: b), other, lambda _, a=a: a)
    return flipped


def _is_number_or_missing(found: Any) -> bool:
    """Whether a cell is missing, a number, or text for one."""
    if isinstance(found, bool):
        return False
    return isinstance(found, (int, float)) or is_missing(found) or (
        isinstance(found, str) and is_number(found.strip())
    )  # fmt: skip


def _opposite(found: Any) -> Any:
    """A difference with the sides exchanged, of the same type."""
    if isinstance(found, str):
        return negated(found) if is_number(found) else found
    is_size = isinstance(found, (int, float)) and not isinstance(found, bool)
    return -found if is_size else found


def mirrored_ranks(found: Any) -> Any:
    """Ranks or ratings with the order reversed; doing it twice restores them."""
    if isinstance(found, list) and found and all(isinstance(one, list) for one in found):
        return [mirrored_ranks(one) for one in found]
    if not isinstance(found, list) or not all(_is_rank(rank) for rank in found):
        return found
    order = sorted(set(found))
    mirror = dict(zip(order, reversed(order), strict=True))
    return [mirror[rank] for rank in found]


def _is_rank(found: Any) -> bool:
    """Whether a value has a place in an order (NaN has none)."""
    return isinstance(found, int | float) and not isinstance(found, bool) and found == found
