"""The first rows of a table: which columns it has, and what kinds of values they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from noisescope.datasets.adapters.cells import RawRow, RowFault, decoded, is_missing, key, value
from noisescope.datasets.adapters.compose import is_transcript
from noisescope.datasets.adapters.labels import LABEL_TYPES, canonical


class Sample:
    """Sample rows, their columns by comparable name, and what each holds."""

    def __init__(
        self, samples: Sequence[RawRow], name: str, folders: tuple[Path, ...] = ()
    ) -> None:
        self.rows = samples
        self.name = name
        self.folders = folders
        self.columns = [str(column) for column in dict.fromkeys(c for row in samples for c in row)]
        self.by_key: dict[str, str] = {}
        for column in self.columns:
            first = self.by_key.setdefault(key(column), column)
            if column == key(column) and first != column:
                self.by_key[key(column)] = column

    @cached_property
    def inner(self) -> dict[str, str]:
        """Paths of the keys inside objects (or JSON text of them), by comparable name."""
        found: dict[str, str] = {}
        for column in self.columns:
            for row in self.rows[:3]:
                cell = decoded(row.get(column))
                for name in cell if isinstance(cell, Mapping) else ():
                    found.setdefault(key(str(name)), f"{column}.{name}")
        return found

    def has(self, path: str) -> bool:
        """Whether a path's column is there, under whatever spelling."""
        return any(self.column(part) is not None for part in path.split("|"))

    def column(self, path: str) -> str | None:
        """The path with the spelling of this table, or None."""
        if path in self.columns:
            return path
        parts = re.split(r"([+])", path)
        out = []
        for part in parts:
            top, dot, rest = part.partition(".")
            actual = self.by_key.get(key(top)) if part != "+" else part
            if actual is None:
                return None
            out.append(actual + dot + rest)
        return "".join(out)

    def bind(self, path: str) -> str:
        options = [self.column(part) or part for part in path.split("|")]
        return "|".join(options)

    def values(self, path: str) -> list[Any]:
        """Known values of a path in the samples."""
        out = []
        for row in self.rows:
            try:
                found = value(row, path)
            except RowFault:
                continue
            if found is not None and found == found:
                out.append(found)
        return out

    def named(self, names: Iterable[str]) -> list[str]:
        """Columns of these usual names, in the order of the names."""
        return [self.by_key[name] for name in names if name in self.by_key]

    def first(self, names: Iterable[str]) -> str | None:
        """The first column of these usual names."""
        return next(iter(self.named(names)), None)

    def labels(self, column: str) -> set[str]:
        """The texts and numbers of a column, as labels are compared."""
        return {canonical(one) for one in self.values(column) if isinstance(one, LABEL_TYPES)}

    def numeric(self, path: str) -> bool:
        found = [one for one in self.values(path) if not is_missing(one)]
        return bool(found) and all(
            isinstance(one, (int, float)) or re.fullmatch(r"\s*-?\d+(?:\.\d+)?\s*", str(one))
            for one in found
        )

    def textual(self, path: str) -> bool:
        """Whether some cell holds text of several words, or messages."""
        return any(
            is_messages(one) or any(len(text.split()) > 1 for text in strings(one))
            for one in self.values(path)
        )

    def sides(self, path: str) -> bool:
        """Whether cells may be responses: text, messages or pictures, not labels."""
        return any(
            isinstance(one, (str, bytes)) or is_messages(one) or is_picture(one)
            for one in self.values(path)
        ) and not self.numeric(path)


def items(cell: Any) -> list[Any]:
    cell = decoded(cell)
    return list(cell) if isinstance(cell, (list, tuple)) else []


def strings(cell: Any) -> list[str]:
    """All texts in a cell that say something: contents, not roles."""
    cell = decoded(cell)
    if isinstance(cell, str):
        return [cell]
    if isinstance(cell, Mapping):
        return [
            piece
            for name, inner in cell.items()
            if name not in ("role", "from", "type", "name")
            for piece in strings(inner)
        ]
    if isinstance(cell, (list, tuple)):
        return [piece for inner in cell for piece in strings(inner)]
    return []


def is_messages(found: Any) -> bool:
    """A list of messages, one message, or JSON text of these."""
    found = decoded(found)
    if isinstance(found, Mapping):
        return "content" in found or ("from" in found and "value" in found)
    return (
        isinstance(found, (list, tuple))
        and bool(found)
        and isinstance(found[0], Mapping)
        and ("role" in found[0] or "from" in found[0])
    )


def is_picture(found: Any) -> bool:
    """The undecoded Image value of the `datasets` library."""
    return isinstance(found, Mapping) and set(found) == {"bytes", "path"}


def is_conversation(roles: Mapping[str, str], table: Sample) -> bool:
    """Whether both sides of the samples are conversations with a prompt of their own."""
    sides = [roles.get(role) for role in ("chosen", "rejected", "a", "b")]
    found = [one for path in sides if path for one in table.values(path)]
    return bool(found) and all(
        is_transcript(one) or (is_messages(one) and len(items(one)) > 1) for one in found
    )
