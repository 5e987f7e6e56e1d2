"""What an adapter is: it knows one source schema, in both directions.

`parse` turns a row into pairs, or raises RowFault with one of `REJECTION_REASONS`; `flip` turns
a row into the same row with the preference reversed, in the source's own schema. An adapter
never reads files: rows come from `readers`. Pairs may be text or image references; nothing
outside an adapter's own file looks into a row.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, final

from noisescope.pairs import Message, Modality, Pair

#: One decoded source row: column name to value.
RawRow = Mapping[str, Any]
#: What a user calls a value's type; the first that fits counts.
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (type(None), "null"),
    (str, "text"),
    (bool, "true or false"),
    ((int, float), "a number"),
    ((list, tuple), "a list"),
    (dict, "an object"),
    (bytes, "raw bytes"),
)


@final
class RowFault(Exception):
    """A row that states no usable preference: `reason` (REJECTION_REASONS) and what was seen."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Adapter(Protocol):
    """One source schema. `columns` are required; `optional` ones are understood where present."""

    @property
    def name(self) -> str: ...
    @property
    def modality(self) -> Modality: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def optional(self) -> tuple[str, ...]: ...

    def matches(self, columns: Collection[str], rows: Sequence[RawRow]) -> bool:
        """Whether these columns and sample rows are this schema."""
        ...

    def parse(self, row: RawRow) -> Sequence[Pair | RowFault]:
        """Pairs that the row states; in the place of one that is a tie, its RowFault.

        Raises RowFault, and nothing else, for a row that states none.
        """
        ...

    def flip(self, row: RawRow) -> dict[str, Any]:
        """The row with its preference reversed; flipping twice restores it exactly."""
        ...


def has(columns: Collection[str], wanted: Sequence[str]) -> bool:
    """Whether every wanted column is there."""
    return all(name in columns for name in wanted)


def text(row: RawRow, column: str) -> str:
    """The column's text. Raises RowFault where it is missing, null or no text."""
    value = row.get(column)
    if not isinstance(value, str):
        raise unexpected(row, "text", column)
    return value


def texts(row: RawRow, one: str, other: str) -> tuple[str, str]:
    """Both columns' text. Raises RowFault, which names both where both are missing or null."""
    if row.get(one) is None and row.get(other) is None:
        raise unexpected(row, "text", one, other)
    return text(row, one), text(row, other)


def unexpected(row: RawRow, wanted: str, *columns: str) -> RowFault:
    """The fault of a row whose `columns` hold something else than `wanted`, in a user's words."""
    absent = [name for name in columns if row.get(name) is None]
    if absent:
        verb = "are" if len(absent) > 1 else "is"
        what = "null" if all(name in row for name in absent) else "missing or null"
        return RowFault("unreadable", f"{' and '.join(absent)} {verb} {what}")
    (column, *_) = columns
    return RowFault("unreadable", f"{column} is {kind(row[column])}, expected {wanted}")


def kind(value: object) -> str:
    """What a value is, in the words of a data file: text, a number, a list, an object, ..."""
    return next((name for type_, name in _KINDS if isinstance(value, type_)), "of an odd type")


def label(row: RawRow, column: str) -> str | None:
    """A short identifier (annotator, pair_id) as text: 7, 7.0 and "7" are one; blank is None."""
    value = row.get(column)
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (int, str)):
        return _short(value) or None
    raise unexpected(row, "text or a whole number", column)


def _short(value: int | str) -> str:
    try:
        return str(value).strip()
    except ValueError as error:
        raise RowFault("unreadable", "an identifier of thousands of digits") from error


def stated(
    row: RawRow, prompt: str, chosen: str, rejected: str, turns: tuple[Message, ...] | None = None
) -> Pair:
    """The text pair that a row states. Raises RowFault for blank or identical sides."""
    for side, response in (("chosen", chosen), ("rejected", rejected)):
        if not response.strip():
            raise RowFault("empty response", side)
    if chosen.strip() == rejected.strip():
        raise RowFault("identical sides", shortened(chosen))
    return Pair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        turns=turns,
        annotator=label(row, "annotator"),
        pair_id=label(row, "pair_id"),
    )


def swapped(row: RawRow, *twins: tuple[str, str]) -> dict[str, Any]:
    """A copy of the row with the values of each pair of columns exchanged, where both exist."""
    flipped = dict(row)
    for one, other in twins:
        if one in row and other in row:
            flipped[one], flipped[other] = row[other], row[one]
    return flipped


def shortened(value: str, limit: int = 60) -> str:
    """At most `limit` characters of the value on one line."""
    line = " ".join(value.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def as_json(value: object) -> str:
    """Readable JSON of structured content (tool calls), whatever it holds."""
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowFault("unreadable", "structured content that is no JSON") from error
