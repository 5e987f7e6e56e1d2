"""Replace the images of a row by content keys, and keep their bytes findable in bounded memory.

The pairs of an image schema name their sides by a path into the row (`jpg_0`, `images.1`): `admit`
finds the bytes there, checks that they decode, and puts the content key in their place. A row may
contain raw bytes, the `datasets` library's {"bytes", "path"}, or a path relative to the row's
file, or to the folder named after it (train.json: train/, as in HPDv2). HELD_BYTES of images stay
in memory; of the others only the place is remembered: a file, a cell of a Parquet column, or, for
streams and lists, a temporary file on disk.
A row of any image format may also contain the caption's own image, in the column REFERENCE.

Texts about pictures name the column of the prompt's pictures (`Schema.roles["images"]`): `admit`
writes each into the prompt by its content key, at its place (PLACES), or else before the text of
the first user turn. Rows without pictures stay texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from noisescope.datasets.adapters.cells import RowFault, decoded, is_missing, kind, shortened, value
from noisescope.datasets.adapters.schema import Schema
from noisescope.datasets.adapters.vision import PLACE, PLACES
from noisescope.datasets.conversations import rendered
from noisescope.datasets.images import MAX_BYTES, Location, Spool, StoredImages, check, image_key
from noisescope.datasets.readers import Row
from noisescope.errors import DataError
from noisescope.pairs import PICTURE, Message, Pair, digest, response_key
from noisescope.storage.printable import plural

#: Bytes of images kept in memory: small sets are read once, large ones stay small.
HELD_BYTES = 32 << 20
#: Column of the image that the sides of a row should look like.
REFERENCE = "reference_jpg"
#: Text this long in the letters of base64 is no path.
_LONGEST_NAME = 100
_URL = re.compile(r"(?:https?|s3|gs|hf|data):")
_BASE64 = re.compile(r"(?:data:[^,]*,)?[A-Za-z0-9+/_\s-]+=*\s*")


@final
@dataclass
class Gallery:
    """Images of one dataset, seen as its rows stream by."""

    held: dict[str, bytes] = field(default_factory=dict)
    located: dict[str, Location] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    references: dict[str, set[str]] = field(default_factory=dict)
    spooled: dict[str, tuple[int, int]] = field(default_factory=dict)
    spool: Spool = field(default_factory=Spool)
    size: int = 0
    most: int = HELD_BYTES
    prompts: str | None = None

    @classmethod
    def of(cls, schema: Schema) -> Gallery | None:
        """A gallery for the rows of a schema; None if it has no pictures.

        `prompts` is the path of the pictures in prompts, if sides are texts.
        """
        if schema.modality == "text":
            return None
        return cls(prompts=schema.roles["images"] if schema.modality == "vision" else None)

    def admit(self, row: Row, pair: Pair) -> Pair:
        """The pair with content keys as its sides, or in its prompt.

        Raises RowFault: `unreadable` for a missing or broken image, `identical sides`.
        """
        if self.prompts is not None:
            paths = _paths(row, self.prompts)
            return _shown(pair, [self._key(row, path) for path in paths], self.prompts)
        chosen, rejected = (self._key(row, side) for side in (pair.chosen, pair.rejected))
        if chosen == rejected:
            raise RowFault("identical sides", f"image {chosen}")
        if row.values is not None and row.values.get(REFERENCE) is not None:
            reference = self._key(row, REFERENCE)
            for side in (chosen, rejected):
                self.references.setdefault(response_key(pair.prompt, side), set()).add(reference)
        return replace(pair, chosen=chosen, rejected=rejected)

    def store(self) -> StoredImages:
        """The images by key."""
        references = {name: tuple(sorted(keys)) for name, keys in self.references.items()}
        return StoredImages(self.held, self.located, references, self.spooled, self.spool)

    def _key(self, row: Row, side: str) -> str:
        """Content key of the image at path `side` of the row."""
        data, place = _find(row, side)
        key = image_key(data)
        if key in self.held or key in self.located or key in self.spooled:
            return key
        if key not in self.broken:
            try:
                check(data)
            except DataError as error:
                self.broken[key] = error.message
        if key in self.broken:
            raise RowFault("unreadable", f"{side}: {self.broken[key]}")
        if self.size + len(data) <= self.most:
            self.held[key] = data
            self.size += len(data)
        elif place is None:
            self.spooled[key] = self.spool.add(data)
        else:
            self.located[key] = place
        return key


def _paths(row: Row, path: str) -> list[str]:
    """Paths of the pictures in a cell: of one, of a list of them (or its JSON text), or of none."""
    found = decoded(value(row.values or {}, path))
    if is_missing(found):
        return []
    several = isinstance(found, (list, tuple))
    return [f"{path}.{number}" for number in range(len(found))] if several else [path]


def _shown(pair: Pair, keys: list[str], path: str) -> Pair:
    """The pair with pictures by content key in its prompt, in the order of its PLACES."""
    turns = list(pair.turns or (Message("user", pair.prompt),))
    sides = (pair.chosen, pair.rejected)
    if any(PICTURE.search(text) for text in (*(turn.content for turn in turns), *sides)):
        raise RowFault("unreadable", "a text holds <image:...> as noisescope writes pictures")
    if any(PLACES.search(side) for side in sides):
        raise RowFault("unreadable", f"a response holds a picture or {PLACE}")
    marks = [f"<image:{key}>" for key in keys]
    numbers = [found for turn in turns for found in PLACES.findall(turn.content)]
    order = [int(number) if number else at for at, number in enumerate(numbers)]  # of pictures
    if not order:
        first = next((at for at, turn in enumerate(turns) if turn.role == "user"), 0)
        text = "\n".join([*marks, turns[first].content])
        turns[first] = Message(turns[first].role, text)
    elif sorted(set(order) if all(numbers) else order) != list(range(len(marks))):
        held = plural(len(marks), "picture") if marks else f"{path} holds no picture"
        which = f" (index {', '.join(map(str, order))})" if any(numbers) else ""
        detail = (
            f"{held}, and {plural(len(order), 'part')} or {PLACE} for them in the prompt{which}"
        )
        raise RowFault("unreadable", detail)
    left = iter(order)
    turns = [
        Message(turn.role, PLACES.sub(lambda _: marks[next(left)], turn.content)) for turn in turns
    ]
    prompt = turns[0].content if pair.turns is None else rendered(turns)
    own = pair.group != digest("group", pair.prompt)
    return replace(
        pair,
        prompt=prompt,
        turns=None if pair.turns is None else tuple(turns),
        group=pair.group if own else digest("group", prompt),
    )


def _find(row: Row, side: str) -> tuple[bytes, Location | None]:
    """Bytes at path `side` of a row, and their location to read them again."""
    value: Any = row.values
    for step in side.split("."):
        value = decoded(value)
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise RowFault("unreadable", f"{side} is missing")
    column, value = side, decoded(value)
    if isinstance(value, Mapping):
        inner = "bytes" if value.get("bytes") else "path"
        value, column = value.get(inner), f"{side}.{inner}"
    if isinstance(value, bytes):
        if not value:
            raise RowFault("unreadable", f"{side}: empty image")
        inside = "." in side or isinstance((row.values or {}).get(side), str)
        return value, None if inside else _cell(row, column)
    if isinstance(value, str) and value:
        return _file(row, value)
    raise RowFault("unreadable", f"{side} is {kind(value)}, expected an image")


def _cell(row: Row, column: str) -> Location | None:
    """Location of a cell of a Parquet file; None for rows of other kinds of source."""
    if row.folder is None:
        return None
    path = row.folder / Path(row.source).name
    is_parquet = path.suffix == ".parquet" and path.is_file()
    return Location(str(path), column, row.number) if is_parquet else None


def _file(row: Row, name: str) -> tuple[bytes, Location]:
    """An image file below the folder of the row's file.

    A path that leaves the folder, by itself or through a link, is refused.
    """
    if _URL.match(name):
        raise RowFault("unreadable", f"a URL: fetch the pictures first ({shortened(name)})")
    if len(name) > _LONGEST_NAME and _BASE64.fullmatch(name):
        raise RowFault(
            "unreadable", f"base64 text: decode it, or give a path ({shortened(name, 20)})"
        )
    if row.folder is None:
        raise RowFault("unreadable", f"{name}: a path, but the rows come from no folder")
    beside, below = row.folder / name, row.folder / Path(row.source).stem / name
    try:
        path = below if not beside.exists() and below.exists() else beside
        inside = path.resolve().is_relative_to(row.folder.resolve())
        if not inside:
            raise RowFault("unreadable", f"{name}: outside the dataset's folder")
        if path.stat().st_size > MAX_BYTES:
            raise RowFault("unreadable", f"{name}: larger than {MAX_BYTES / 1e6:.0f} MB")
        return path.read_bytes(), Location(str(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RowFault("unreadable", f"{name}: {reason}") from error
