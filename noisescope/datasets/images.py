"""Pictures from untrusted bytes: bounded decoding, content keys, one crop rule, a store by key.

    key = image_key(data)                      # identity of an image is its bytes
    image = decode(data)                       # RGB, upright, bounded; DataError names the fault
    square, ids = crop(image, 512)             # the same rule for both sides of every pair

Accepted: JPEG, PNG, WebP, GIF (first frame), BMP. Nothing else is handed to a decoder.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, final

from noisescope.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Formats a decoder is tried for; each has a bounded, widely fuzzed reader in Pillow.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 50_000_000
MAX_BYTES = 50_000_000
#: Bytes of Parquet row groups kept while reading images lazily; the last one always is.
GROUP_BYTES = 64 << 20


def image_key(data: bytes) -> str:
    """Content key of an image: the first 20 hex digits of the SHA-256 of its bytes."""
    return hashlib.sha256(data).hexdigest()[:20]


def check(data: bytes) -> None:
    """Raise DataError unless `data` is a whole picture within bounds. Cheaper than `decode`."""
    image = _open(data)
    image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))  # JPEG: 1/8 scale
    _load(image)


def decode(data: bytes) -> Image:
    """`data` as an upright RGB picture, transparent parts white, the first frame if animated.

    Raises DataError for empty, broken, truncated, oversized or unsupported data.
    """
    from PIL import Image, ImageOps

    image = _load(_open(data))
    try:
        upright = ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, TypeError, ZeroDivisionError):
        upright = image  # a broken EXIF block is not a broken picture
    if upright.mode.startswith("I;16"):
        upright = upright.point(lambda value: value / 256).convert("L")
    if "A" in upright.getbands() or "transparency" in upright.info:
        layers = upright.convert("RGBA")
        ground = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(ground, layers).convert("RGB")
    return upright.convert("RGB")


def _open(data: bytes) -> Image:
    """The picture's header, within bounds; pixels are not decoded yet."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise DataError("empty image")
    if len(data) > MAX_BYTES:
        raise DataError(f"image of {len(data) / 1e6:.0f} MB, at most {MAX_BYTES / 1e6:.0f}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bombs are refused below, metadata is not ours
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(f"image too large: {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"not an image of a known format ({', '.join(FORMATS)})") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(f"broken image: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise DataError(f"image of {size} pixels, at most {MAX_PIXELS / 1e6:.0f} megapixels")
    return image


def _load(image: Image) -> Image:
    """Decode the pixels. Raises DataError when they are damaged or cut short."""
    import struct
    import zlib

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error) as e:
        raise DataError(f"broken image: {e}") from e
    return image


@final
@dataclass(frozen=True, slots=True)
class Framing:
    """How a picture was cropped, in pixels: SDXL's size and crop conditioning."""

    original: tuple[int, int]  # height, width
    corner: tuple[int, int]  # top, left, after resizing
    target: tuple[int, int]  # height, width


def crop(image: Image, side: int) -> tuple[Image, Framing]:
    """Resize the shorter edge to `side` (Lanczos), cut the central square.

    A function of the picture alone, so both sides of a pair are always treated alike. Raises
    DataError for a picture so thin that it would come to more than MAX_PIXELS.
    """
    from PIL import Image

    scale = side / min(image.size)
    width, height = (max(side, round(edge * scale)) for edge in image.size)
    if width * height > max(MAX_PIXELS, side * side):
        raise DataError(
            f"image of {image.width} x {image.height} pixels: too thin to be cut to {side} x {side}"
        )
    left, top = (width - side) // 2, (height - side) // 2
    framing = Framing((image.height, image.width), (top, left), (side, side))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return image.crop((left, top, left + side, top + side)), framing


@final
@dataclass(frozen=True, slots=True)
class Location:
    """Location of an image: a file of its own, or a row of a Parquet column (`a.b` if nested)."""

    path: str
    column: str | None = None
    row: int = 0


@final
class Spool:
    """Images on disk, in a temporary file without a name that is deleted with the spool.

    It is made in TMPDIR. Raises DataError if there is no room.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._size = 0

    def add(self, data: bytes) -> tuple[int, int]:
        """Write an image; returns (offset, length) to read it by."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the spool
                weakref.finalize(self, self._file.close)
            self._file.seek(self._size)
            self._file.write(data)
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: images cannot be kept there "
                f"({error.strerror or error}) after {self._size / 1e9:.1f} GB",
                hint="Name a directory with more room: TMPDIR=DIRECTORY noisescope ...",
            ) from error
        place = self._size, len(data)
        self._size += len(data)
        return place

    def read(self, place: tuple[int, int]) -> bytes:
        """The image at (offset, length)."""
        if self._file is None:
            return b""
        self._file.seek(place[0])
        return self._file.read(place[1])


@final
@dataclass(frozen=True)
class StoredImages:
    """Images by content key: some in memory, the others read from disk and checked."""

    held: Mapping[str, bytes]
    located: Mapping[str, Location] = field(default_factory=dict)
    references: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spooled: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    spool: Spool = field(default_factory=Spool, repr=False, compare=False)
    _groups: OrderedDict[tuple[str, str, int], list[bytes]] = field(
        default_factory=OrderedDict, repr=False, compare=False
    )

    def get(self, key: str) -> bytes:
        """The image's bytes. Raises DataError for an unknown key, a lost or a changed file."""
        if key in self.held:
            return self.held[key]
        if key in self.spooled:
            return self.spool.read(self.spooled[key])
        place = self.located.get(key)
        if place is None:
            raise DataError(f"image {key} is not part of the dataset")
        try:
            if place.column is None:
                data = Path(place.path).read_bytes()
            else:
                data = self._cell(place.path, place.column, place.row)
        except OSError as error:
            raise DataError(f"image {key}: {place.path}: {error.strerror or error}") from error
        if image_key(data) != key:
            raise DataError(
                f"image {key}: {place.path} has changed since the dataset was read",
                hint="Run the same command again: it reads the changed dataset.",
            )
        return data

    def _cell(self, path: str, column: str, row: int) -> bytes:
        """One cell of a Parquet column; its row group stays in memory for its neighbours."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            group = 0
            while row >= (size := file.metadata.row_group(group).num_rows):
                row, group = row - size, group + 1
            name = (path, column, group)
            if name not in self._groups:
                values = file.read_row_group(group, columns=[column])
                while values.num_columns and values.schema.names != [column]:
                    values = values.flatten()
                self._groups[name] = values.column(0).to_pylist()
                while len(self._groups) > 1 and self._kept > GROUP_BYTES:
                    self._groups.popitem(last=False)
        self._groups.move_to_end(name)
        return self._groups[name][row]

    @property
    def _kept(self) -> int:
        return sum(len(data or b"") for group in self._groups.values() for data in group)


def side_by_side(*pictures: bytes, side: int = 384, whole: bool = False) -> Image:
    """Pictures at the same height, white gaps between: squares cut from them, or the `whole` ones
    made to fit: `noisescope show`."""
    from PIL import Image, ImageOps

    gap = side // 16
    sheet = Image.new("RGB", (len(pictures) * (side + gap) - gap, side), "white")
    for index, data in enumerate(pictures):
        image = decode(data)
        fitted = ImageOps.pad(image, (side, side), color="white") if whole else crop(image, side)[0]
        sheet.paste(fitted, (index * (side + gap), 0))
    return sheet
