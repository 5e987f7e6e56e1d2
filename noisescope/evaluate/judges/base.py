"""Find the models of judges (safetensors only) and prepare images as CLIP does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import ModelError

if TYPE_CHECKING:
    from PIL.Image import Image

    from noisescope.models.checkpoint import Checkpoint

#: Normalisation of CLIP, if preprocessor_config.json has none.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def find_judge(name: str, convert: str, tokenizer_hint: str | None = None) -> Checkpoint:
    """Find and check a checkpoint. Raises ModelError.

    `convert` is the hint if its weights are pickled, `tokenizer_hint` if it has no tokenizer.
    """
    from noisescope.models.checkpoint import find_checkpoint

    try:
        return find_checkpoint(name)
    except ModelError as error:
        is_pickle = "pickled" in error.message or "holds no weights" in error.message
        needs_tokenizer = tokenizer_hint is not None and "no tokenizer" in error.message
        hint = convert if is_pickle else tokenizer_hint if needs_tokenizer else error.hint
        raise ModelError(error.message, hint=hint) from error


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
