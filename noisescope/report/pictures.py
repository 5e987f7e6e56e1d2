"""Pictures in prompts, as readers see them: numbers in the text, thumbnails beside it."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from noisescope.pairs import PICTURE

if TYPE_CHECKING:
    from noisescope.pairs import ImageStore


def numbered(text: str, keys: list[str]) -> str:
    """The text with `[picture n]` for each picture, whose content key is appended to `keys`."""

    def number(match: re.Match[str]) -> str:
        keys.append(match[1])
        return f"[picture {len(keys)}]"

    return PICTURE.sub(number, text)


def jpeg(images: ImageStore, key: str, side: int, quality: int) -> bytes:
    """A picture within `side` x `side` pixels as JPEG. Raises DataError."""
    from noisescope.datasets.images import decode

    image = decode(images.get(key))
    image.thumbnail((side, side))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return sink.getvalue()
