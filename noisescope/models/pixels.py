"""Prepare images as CLIP does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

#: Normalisation of CLIP, if preprocessor_config.json has none.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def pixels(
    image: Image,
    side: int,
    mean: tuple[float, ...] = MEAN,
    deviation: tuple[float, ...] = DEVIATION,
) -> NDArray[np.float32]:
    """Prepare an image as CLIP does: resize (bicubic), crop, normalise; [3, side, side]."""
    from PIL import Image as Pictures

    width, height = image.size
    short = min(width, height)
    new = (side * width // short, side * height // short)
    square = image.convert("RGB").resize(new, Pictures.Resampling.BICUBIC)
    left, top = (new[0] - side) // 2, (new[1] - side) // 2
    values = np.asarray(square.crop((left, top, left + side, top + side)), np.float32) / 255
    normal = (values - np.array(mean, np.float32)) / np.array(deviation, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)
