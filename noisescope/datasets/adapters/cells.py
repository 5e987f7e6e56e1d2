"""Find and read the cells of a decoded source row.

    value(row, "info.title+info.post")      # a path of a mapping
    number(row, "score_a"), identifier(row, "worker")

A path names a column, or steps into its nested cells with dots: the keys of objects, positions
in lists, a key of every object in a list (`completions.response`). Text that holds JSON is decoded
on the way; `-1` is the last of a list, `:-1` all before it. `x+y` joins two cells, `x|y` takes the
first that is there. A column whose own name has
these characters is found by that name.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

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
#: Text for a missing value, as pandas, R and Excel write it.
MISSING = re.compile(
    r"\s*(?:nan|<na>|nat|null|none|#?n/a|#na|\[deleted\]|\[removed\])?\s*", re.IGNORECASE
)
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?\s*", re.IGNORECASE)
_STRUCTURE = re.compile(r"\s*[\[{]")
_WORD = re.compile(r"[^a-z0-9]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@final
class RowFault(Exception):
    """A row without a usable preference: `reason` (REJECTION_REASONS) and what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@final
@dataclass(frozen=True, slots=True)
class Undecoded:
    """A cell that could not be decoded; only a row that needs it is unreadable."""

    trouble: str


def key(name: str) -> str:
    """A column name as names are compared: `Chosen-Rating `, `chosenRating` -> chosen_rating."""
    return _WORD.sub("_", _CAMEL.sub("_", name).lower()).strip("_")


def value(row: RawRow, path: str) -> Any:
    """The value at a path, or None. Raises RowFault if it could not be decoded."""
    found = row.get(path)
    if found is None and path not in row and not path.isidentifier():
        for option in path.split("|"):
            parts = [_cell(row, part) for part in option.split("+")]
            found = parts[0] if len(parts) == 1 else _joined(parts)
            if found is not None and found != "":
                break
    if isinstance(found, Undecoded):
        raise RowFault("unreadable", found.trouble)
    return found


def _joined(parts: list[Any]) -> Any:
    """Texts one under another; a list of the parts if any is structured."""
    given = [part for part in parts if not is_missing(part)]
    if all(isinstance(part, str) for part in given):
        return "\n".join(given) if given else None
    return Joined(given)


@final
class Joined(list[Any]):
    """The parts of a path joined by `+` that are not all text."""


def _cell(row: RawRow, path: str) -> Any:
    path = path if path in row else path.strip()
    if path in row:
        return row[path]
    steps = path.split(".")
    found: Any = row
    for at, step in enumerate(steps):
        found = decoded(found)
        if isinstance(found, Undecoded):
            return found
        if isinstance(found, Mapping):
            found = found.get(step)
        elif isinstance(found, (list, tuple)):
            if step == ":-1":
                found = list(found[:-1])
                continue
            if step == "-1":
                found = found[-1] if found else None
                continue
            if not step.isdecimal():
                return [_cell({"": item}, ".".join(["", *steps[at:]])) for item in found]
            found = found[int(step)] if int(step) < len(found) else None
        else:
            return None
    return found


def decoded(found: Any) -> Any:
    """Text of a list or an object (JSON or a Python literal) decoded; any other value itself."""
    if not isinstance(found, str) or not _STRUCTURE.match(found):
        return found
    try:
        return json.loads(found)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(found.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return found


def changed(row: RawRow, path: str, change: Any) -> dict[str, Any]:
    """A copy of the row with `change` applied to the cell at each alternative of `path`.

    Raises LookupError if the cell is inside encoded text, which would not be written back alike.
    """
    out = dict(row)
    if path in row:
        out[path] = change(row[path])
        return out
    for option in path.split("|"):
        if option in out:
            out[option] = change(out[option])
        else:
            column, _, rest = option.partition(".")
            if column in out and rest:
                out[column] = _changed(out[column], rest.split("."), change)
    return out


def _changed(cell: Any, steps: list[str], change: Any) -> Any:
    if not steps:
        return change(cell)
    if isinstance(cell, Mapping):
        first, *rest = steps
        return {k: _changed(v, rest, change) if k == first else v for k, v in cell.items()}
    if isinstance(cell, list):
        if steps[0].isdecimal() or steps[0] == "-1":
            at = int(steps[0]) % max(len(cell), 1)
            return [_changed(v, steps[1:], change) if n == at else v for n, v in enumerate(cell)]
        values = [item.get(steps[0]) if isinstance(item, Mapping) else None for item in cell]
        if len(steps) == 1 and any(found is not None for found in values):
            new = change(values)
            return [
                {**item, steps[0]: new[n]} if isinstance(item, Mapping) and steps[0] in item
                else item
                for n, item in enumerate(cell)
            ]  # fmt: skip
        return [_changed(item, steps, change) for item in cell]
    if isinstance(cell, str) and _STRUCTURE.match(cell):
        raise LookupError("encoded text")
    return cell


def is_missing(found: Any) -> bool:
    """Whether a value is null, NaN, blank, an empty list or text for one of these."""
    if found is None or found != found:
        return True
    if isinstance(found, str):
        return MISSING.fullmatch(found) is not None
    return isinstance(found, (list, tuple, dict)) and not found


def number(row: RawRow, path: str) -> float | None:
    """A finite number, or None for a missing one. Raises RowFault for anything else."""
    return as_number(value(row, path), row, path)


def as_number(found: Any, row: RawRow, path: str) -> float | None:
    """`found` as a number; text that holds one counts, as CSV has no numbers."""
    if found is None or found != found:
        return None
    if isinstance(found, str):
        if MISSING.fullmatch(found):
            return None
        if not _NUMBER.fullmatch(found):
            raise unexpected(row, "a number", path)
    elif isinstance(found, bool) or not isinstance(found, (int, float)):
        raise unexpected(row, "a number", path)
    try:
        result = float(found)
    except (OverflowError, ValueError) as error:
        raise RowFault("unreadable", f"{path} is beyond any score") from error
    if result in (float("inf"), float("-inf")):
        raise RowFault("unreadable", f"{path} is not finite")
    return result


def numbers(found: Any, path: str) -> list[float | None]:
    """A list of numbers, None for missing ones. Raises RowFault for anything else."""
    found = decoded(found)
    if not isinstance(found, (list, tuple)):
        raise RowFault("unreadable", f"{path} is {kind(found)}, expected a list of numbers")
    return [as_number(item, {path: item}, path) for item in found]


def identifier(row: RawRow, path: str) -> str | None:
    """A short identifier (annotator, pair_id) as text: 7, 7.0 and "7" are one; blank is None."""
    found = value(row, path)
    if found is None or found != found:
        return None
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if isinstance(found, (int, str)):
        try:
            return str(found).strip() or None
        except ValueError as error:
            raise RowFault("unreadable", "an identifier of thousands of digits") from error
    raise unexpected(row, "text or a whole number", path)


def unexpected(row: RawRow, wanted: str, *paths: str) -> RowFault:
    """The fault of a row whose cells hold something other than `wanted`, in a user's words."""
    absent = [path for path in paths if value(row, path) is None]
    if absent:
        verb = "are" if len(absent) > 1 else "is"
        what = "null" if all(path in row for path in absent) else "missing or null"
        return RowFault("unreadable", f"{' and '.join(absent)} {verb} {what}")
    (path, *_) = paths
    return RowFault("unreadable", f"{path} is {kind(value(row, path))}, expected {wanted}")


def kind(found: object) -> str:
    """What a value is, in the words of a data file: text, a number, a list, an object, ..."""
    return next((name for type_, name in _KINDS if isinstance(found, type_)), "of an odd type")


def shortened(text: str, limit: int = 60) -> str:
    """At most `limit` characters of the text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def as_json(found: object) -> str:
    """Readable JSON of structured content (tool calls), whatever it holds."""
    try:
        return json.dumps(found, ensure_ascii=False, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowFault("unreadable", "structured content that is not JSON") from error
