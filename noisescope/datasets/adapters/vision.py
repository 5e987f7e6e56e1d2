"""Texts about pictures: the column of a prompt's pictures, and their places in messages.

    schema = with_pictures(schema, table, mapped)    # role "images", modality "vision"

A column of pictures beside sides of text is read as what the prompt shows; a film, or pictures in
several columns, are refused, because a model would judge the texts without them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from noisescope.datasets.adapters.cells import is_missing, key
from noisescope.datasets.adapters.names import IMAGE_NAME, MEDIA, URL
from noisescope.errors import DataError

if TYPE_CHECKING:
    from noisescope.datasets.adapters.sample import Sample
    from noisescope.datasets.adapters.schema import Schema

#: The mark of a picture in a text, as in LLaVA's and LLaMA-Factory's files.
PLACE = "<image>"
_FILM = re.compile(r"(?:^|_)(?:videos?|audios?|frames?)(?:$|_)")


def with_places(cell: Any) -> Any:
    """The cell with PLACE in place of each part {"type": "image"} of a message's content."""
    if isinstance(cell, Mapping):
        if cell.get("type") == "image" and not any(
            found is not None for name, found in cell.items() if name not in ("type", "index")
        ):
            return {"type": "text", "text": PLACE}
        return {name: with_places(found) for name, found in cell.items()}
    return [with_places(found) for found in cell] if isinstance(cell, (list, tuple)) else cell


def media_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns of rows that may hold pictures, films or sound, by their names."""
    names = dict.fromkeys(name for row in rows for name in row if MEDIA.search(key(name)))
    found = {name: [row[name] for row in rows if not is_missing(row.get(name))] for name in names}
    return [
        name
        for name, values in found.items()
        if not all(isinstance(one, (int, float)) for one in values)
    ]


def with_pictures(schema: Schema, table: Sample, mapped: Mapping[str, str]) -> Schema:
    """The schema with the column that holds the prompt's pictures, if there is one.

    Raises DataError if there may be pictures that would not be read.
    """
    if schema.modality == "image" or "images" in schema.roles or "images" in mapped:
        return schema
    found = {
        column: values
        for column in media_of(table.rows)
        if column not in schema.used
        if (values := [one for one in table.values(column) if not is_missing(one)])
    }
    if not found:
        return schema
    whole = [column for column, values in found.items() if _all(values, _is_stored)]
    shown = whole or [column for column, values in found.items() if _all(values, _is_named)]
    if len(shown) != 1 or any(_FILM.search(key(column)) for column in found):
        column = shown[0] if shown else next(iter(found))
        raise DataError(
            f"{table.name}: its sides are texts about pictures, films or sound "
            f"({', '.join(found)}), and one column of pictures is read",
            hint=f"--columns images={column} shows a vision-language model what {column} holds, "
            "and nothing else; --columns images= judges plain texts without their pictures.",
        )
    return replace(schema, roles={**schema.roles, "images": shown[0]})


def of_vision(schema: Schema, table: Sample) -> Schema:
    """The schema as one of texts about pictures if a column has that role. Raises DataError."""
    if "images" not in schema.roles:
        return schema
    if schema.modality == "image" or schema.shape == "rows":
        what = "sides that are pictures" if schema.modality == "image" else "one answer a row"
        raise DataError(
            f"{table.name}: pictures in prompts (images={schema.roles['images']}) are not read "
            f"beside {what}",
            hint="Give text as chosen and rejected, in one row. A picture that pictures should "
            "look like has the role reference.",
        )
    return replace(schema, modality="vision")


def _all(values: list[Any], test: Any) -> bool:
    """Whether a test holds for all values, of a list for all its items."""
    cells = [list(one) if isinstance(one, (list, tuple)) else [one] for one in values]
    return all(test(one) for cell in cells for one in cell)


def _is_stored(found: Any) -> bool:
    """Whether a value holds a picture: its bytes, or the record of the `datasets` library."""
    return isinstance(found, bytes) or (
        isinstance(found, Mapping) and set(found) == {"bytes", "path"}
    )


def _is_named(found: Any) -> bool:
    return isinstance(found, str) and bool(IMAGE_NAME.fullmatch(found) or URL.fullmatch(found))
