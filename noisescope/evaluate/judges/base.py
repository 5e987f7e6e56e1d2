"""Finding judge models: safetensors only, and how to convert what comes pickled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import ModelError

if TYPE_CHECKING:
    from PIL.Image import Image

    from noisescope.models.checkpoint import Checkpoint

#: What CLIP was trained with, where preprocessor_config.json does not say.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def find_judge(name: str, convert: str, words: str | None = None) -> Checkpoint:
    """A checked checkpoint. Raises ModelError.

    `convert` is the hint where weights are pickled, `words` where the tokenizer is missing.
    """
    from noisescope.models.checkpoint import find_checkpoint

    try:
        return find_checkpoint(name)
    except ModelError as error:
        is_pickle = "pickled" in error.message or "holds no weights" in error.message
        lacks_words = words is not None and "no tokenizer" in error.message
        hint = convert if is_pickle else words if lacks_words else error.hint
        raise ModelError(error.message, hint=hint) from error


def pixels(
    image: Image,
    side: int,
    mean: tuple[float, ...] = MEAN,
    deviation: tuple[float, ...] = DEVIATION,
) -> NDArray[np.float32]:
    """[3, side, side]: shorter edge to `side` (bicubic), central square, normalised: CLIP's way."""
    from PIL import Image as Pictures

    width, height = image.size
    short = min(width, height)
    new = (side * width // short, side * height // short)
    square = image.convert("RGB").resize(new, Pictures.Resampling.BICUBIC)
    left, top = (new[0] - side) // 2, (new[1] - side) // 2
    values = np.asarray(square.crop((left, top, left + side, top + side)), np.float32) / 255
    normal = (values - np.array(mean, np.float32)) / np.array(deviation, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)
