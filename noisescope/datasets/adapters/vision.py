"""Texts about pictures: the column of a prompt's pictures, and their places in messages.

    schema = with_pictures(schema, table, mapped)    # role "images", modality "vision"

A column of pictures beside sides of text is read as what the prompt shows; a film, or pictures in
several columns, inside objects or in some cells only, are refused, because a model would judge the
texts without them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.datasets.adapters.cells import RowFault, decoded, is_missing, key, shortened
from noisescope.datasets.adapters.names import ABOUT, IMAGE_NAME, MEDIA, OWN_IDS, URL
from noisescope.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.datasets.adapters.sample import Sample
    from noisescope.datasets.adapters.schema import Schema
    from noisescope.datasets.readers import Row

#: The mark of a picture in a text, as in LLaVA's and LLaMA-Factory's files.
PLACE = "<image>"
#: A PLACE, or that of the picture with a number, from 0, as parts of messages may give it.
PLACES = re.compile(r"<image(?: index=(\d+))?>")
#: Share of prompts with a PLACE from which pictures are missing; below, the text is markup.
_MANY = 0.1
#: First bytes of PNG, JPEG, GIF and BMP files; the start of base64 of PNG, JPEG, GIF and WebP.
_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM")
_ENCODED = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/]{80}|data:image/")
#: Keys of the record of a picture in the `datasets` library.
_RECORD = {"bytes", "path"}
_FILM = re.compile(r"(?:^|_)(?:videos?|audios?|frames?)(?:$|_)")
_FILM_NAME = re.compile(
    r"\S+\.(?:mp4|m4v|mov|avi|mkv|webm|mp3|m4a|wav|flac|ogg|opus)", re.IGNORECASE
)
#: The column of paths in the `datasets` library's folders of pictures, which ABOUT matches.
_FILE_NAME = "file_name"


def with_places(cell: Any) -> Any:
    """The cell with one of PLACES in place of each part {"type": "image"} of a message's content.

    Raises RowFault for an index that is no whole number.
    """
    if isinstance(cell, Mapping):
        if cell.get("type") == "image" and all(
            is_missing(found) for name, found in cell.items() if name not in ("type", "index")
        ):
            return {"type": "text", "text": _place(cell.get("index"))}
        return {name: with_places(found) for name, found in cell.items()}
    return [with_places(found) for found in cell] if isinstance(cell, (list, tuple)) else cell


def _place(index: Any) -> str:
    if is_missing(index):
        return PLACE
    if not isinstance(index, (int, float)) or index < 0 or index % 1:
        raise RowFault("unreadable", f"the index of a picture is {shortened(str(index), 20)}")
    return f"<image index={int(index)}>"


def media_of(
    rows: Sequence[Mapping[str, Any]],
    folders: Iterable[Path] = (),
    used: frozenset[str] = frozenset(),
) -> dict[str, list[Any]]:
    """Columns that may hold pictures, films or sound, by name or cells, with their known cells.

    Paths of pictures in other columns than MEDIA count if the file is in one of the `folders`.
    """
    names = dict.fromkeys(name for row in rows for name in row if name not in used)
    cells = {name: _known(row.get(name) for row in rows) for name in names}
    return {name: values for name, values in cells.items() if _is_media(name, values, folders)}


def _known(cells: Iterable[Any]) -> list[Any]:
    """The cells that are not missing, with JSON text decoded."""
    return [one for one in map(decoded, cells) if not is_missing(one)]


def _is_media(name: str, values: list[Any], folders: Iterable[Path]) -> bool:
    """Whether a column with these values may hold pictures, films or sound."""
    if MEDIA.search(key(name)):
        return not all(isinstance(one, (int, float)) for one in values)
    return _holds_picture(name, values, folders)


def _holds_picture(name: str, values: Any, folders: Iterable[Path]) -> bool:
    """Whether some cell of a column holds a picture, also inside objects and lists."""
    name = key(name)
    if name in OWN_IDS:
        return False
    places = () if ABOUT.search(name) and name != _FILE_NAME else tuple(folders)
    return any(_is_picture(one, places) for one in _leaves(values))


def _leaves(found: Any) -> Iterator[Any]:
    """Yield the values inside objects and lists; records of pictures are whole."""
    left = [found]
    while left:
        one = left.pop()
        if isinstance(one, Mapping) and set(one) != _RECORD:
            left.extend(one.values())
        elif isinstance(one, (list, tuple)):
            left.extend(one)
        else:
            yield one


def with_pictures(
    schema: Schema, table: Sample, mapped: Mapping[str, str], explicit: bool = False
) -> Schema:
    """The schema with the column that holds the prompt's pictures, if there is one.

    Raises DataError if there may be pictures that would not be read; a format that the user named
    (`explicit`) reads those of its own column alone.
    """
    if schema.modality == "image":
        return schema
    if "images" in mapped:
        return replace(schema, stated=True)
    if "images" in schema.roles:
        return schema
    found = media_of(table.rows, table.folders, schema.used)
    if not found:
        return schema
    whole = [column for column, values in found.items() if _all(values, _is_stored)]
    paths = [column for column, values in found.items() if _all(values, _is_named)]
    shown = _distinct(whole or paths, found)
    lost = [
        column
        for column, values in found.items()
        if column not in (*whole, *paths) and _holds_picture(column, values, table.folders)
    ]
    column = next(iter([*shown, *lost, *found]))
    hint = _hint(column, found[column])
    if explicit:
        usual = schema.shape == "sides" and column == "images"
        raise DataError(
            f"{table.name}: --format {schema.name} reads texts, and {', '.join(found)} may hold "
            "pictures, films or sound",
            hint=hint.replace("--columns images=images", "--format trl_vision") if usual else hint,
        )
    if len(shown) != 1 or lost or any(_FILM.search(key(column)) for column in found):
        raise DataError(
            f"{table.name}: its sides are texts about pictures, films or sound "
            f"({', '.join(found)}), and one column of pictures is read",
            hint=hint,
        )
    return replace(schema, roles={**schema.roles, "images": shown[0]})


def _distinct(columns: list[str], found: Mapping[str, list[Any]]) -> list[str]:
    """The columns, those with a name of MEDIA first, without copies of one before."""
    ordered = sorted(columns, key=lambda column: MEDIA.search(key(column)) is None)
    return [
        column
        for at, column in enumerate(ordered)
        if all(found[column] != found[before] for before in ordered[:at])
    ]


def _hint(column: str, values: list[Any]) -> str:
    """What makes the pictures of a column readable, or ignores them."""
    if any(isinstance(one, str) and _ENCODED.match(one) for one in _leaves(values)):
        first = f"Decode the base64 text of {column} into bytes, or into files that it names"
    elif not _all(values, lambda one: not isinstance(one, Mapping) or _is_stored(one)):
        top = values[0] if isinstance(values[0], Mapping) else {}
        paths = [f"{column}.{name}" for name, one in top.items() if _is_picture(one)]
        if len(paths) == 1:
            return _hint(paths[0], [])
        first = f"Move the pictures inside {column} to a column of their own, such as images"
    else:
        first = (
            f"--columns images={column} shows a vision-language model what {column} holds, and "
            "nothing else"
        )
    return f"{first}; --columns images= judges plain texts without their pictures."


def empty_places(table: pa.Table, name: str) -> Iterator[str]:
    """Yield a note on prompts of texts with a PLACE. Raises DataError if they are many."""
    import pyarrow.compute as pc

    count = pc.sum(pc.match_substring(table["prompt"], PLACE)).as_py() or 0
    found = f"{count:,} of {table.num_rows:,} prompts have a place for a picture ({PLACE})"
    if count > _MANY * table.num_rows:
        raise DataError(
            f"{name}: {found}, and no column is known to hold pictures",
            hint="--columns images=COLUMN names it; --columns images= judges plain texts without "
            "pictures.",
        )
    if count:
        yield f"{found} and are judged as plain texts"


def late_pictures(
    rows: Iterable[Row], schema: Schema, sample: Sequence[Mapping[str, Any]], name: str
) -> Iterator[Row]:
    """Pass rows on. Raises DataError at a picture in a column that holds nothing in the sample."""
    if schema.modality == "image" or schema.stated:
        yield from rows
        return
    seen = schema.used.union(*sample) - empty_of(schema, sample)
    for row in rows:
        for column, cell in (row.values or {}).items():
            if column in seen or not (known := _known([cell])) or not _is_late(column, known, row):
                continue
            named = "images" in schema.roles or any(column in one for one in sample)
            first = "" if named else f'Give the first row "{column}": null too. Then '
            shown = schema.roles.get("images", column)
            raise DataError(
                f"{name}: {column} may hold a picture in {row.source}:{row.number + 1}, and none "
                f"in the first {len(sample):,} rows, by which columns are recognised",
                hint=f"{first}--columns images={shown} shows a vision-language model what {shown} "
                "holds; --columns images= judges plain texts without pictures.",
            )
        yield row


def _is_late(column: str, known: list[Any], row: Row) -> bool:
    """Whether a cell of a column that was empty holds a picture, a film or sound."""
    if MEDIA.search(key(column)):
        return any(
            _is_stored(one) or _is_named(one) or _is_picture(one)
            or (isinstance(one, str) and _FILM_NAME.fullmatch(one) is not None)
            for one in _leaves(known)
        )  # fmt: skip
    return _holds_picture(column, known, folders_of([row]))


def folders_of(rows: Iterable[Row]) -> tuple[Path, ...]:
    """Folders in which paths of pictures are looked for: of the rows' files, and their namesakes.

    train.json has its pictures beside it or in train/.
    """
    pairs = ((row.folder, row.folder / Path(row.source).stem) for row in rows if row.folder)
    return tuple(dict.fromkeys(folder for pair in pairs for folder in pair))


def empty_of(schema: Schema, sample: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Columns without a role that hold nothing in a sample, and may hold pictures later."""
    if schema.modality == "image" or schema.stated:
        return frozenset()
    names = {name for row in sample for name in row} - schema.used
    return frozenset(name for name in names if not _known(row.get(name) for row in sample))


def of_vision(schema: Schema, table: Sample) -> Schema:
    """The schema as one of texts about pictures if a column has that role. Raises DataError."""
    if "images" not in schema.roles:
        return replace(schema, modality="text") if schema.modality == "vision" else schema
    if schema.modality == "image" or schema.shape == "rows":
        what = "sides that are pictures" if schema.modality == "image" else "one answer a row"
        raise DataError(
            f"{table.name}: pictures in prompts (images={schema.roles['images']}) are not read "
            f"beside {what}",
            hint="Give text as chosen and rejected, in one row, or judge plain texts with "
            "--columns images=. A picture that pictures should look like has the role reference.",
        )
    return replace(schema, modality="vision")


def _all(values: list[Any], test: Any) -> bool:
    """Whether a test holds for all values, of a list for all its items."""
    cells = [list(one) if isinstance(one, (list, tuple)) else [one] for one in values]
    return all(test(one) for cell in cells for one in cell)


def _is_stored(found: Any) -> bool:
    """Whether a value holds a picture: its bytes, or the record of the `datasets` library."""
    return isinstance(found, bytes) or (
        isinstance(found, Mapping) and bool(found) and set(found) <= _RECORD
    )


def _is_picture(found: Any, folders: Iterable[Path] = ()) -> bool:
    """Whether a value is a picture, whatever its column is called.

    By its start, as a record's path, or as the path of a file in one of the folders.
    """
    if isinstance(found, Mapping) and set(found) == _RECORD:
        found = found["bytes"] or found["path"]
        if isinstance(found, str):
            return IMAGE_NAME.fullmatch(found) is not None
    if isinstance(found, bytes):
        return found.startswith(_STARTS) or (found[:4] == b"RIFF" and found[8:12] == b"WEBP")
    if not isinstance(found, str):
        return False
    named = IMAGE_NAME.fullmatch(found) and any(map(os.path.isfile, (f / found for f in folders)))
    return bool(named or _ENCODED.match(found))


def _is_named(found: Any) -> bool:
    """Whether a value is the path or the address of a picture, not one as base64 text."""
    return (
        isinstance(found, str)
        and bool(IMAGE_NAME.fullmatch(found) or URL.fullmatch(found))
        and not _ENCODED.match(found)
    )
