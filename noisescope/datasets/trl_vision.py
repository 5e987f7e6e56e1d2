"""TRL's vision preference format: `images` (or `image`), prompt, chosen and rejected texts.

Its sides are texts, and the picture is what they answer to: an input of a vision-language model,
not an output that a text-to-image pipeline could have made. A causal LM does not see the picture,
a diffusion policy judges pictures. So the format is recognised and refused, with what to do
instead: `--format trl` judges the texts alone; two pictures of one prompt have their own format.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from noisescope.datasets.adapter import RawRow, has
from noisescope.errors import DataError

_IMAGES = ("image", "images")
_SIDES = ("chosen", "rejected")


def refuse_vision(columns: Collection[str], rows: Sequence[RawRow], said: str) -> None:
    """Raise DataError for rows of two texts (or conversations) about given pictures."""
    if not has(columns, _SIDES) or not any(name in columns for name in _IMAGES):
        return
    sides = [row.get(side) for row in rows for side in _SIDES]
    if any(isinstance(side, (str, list)) for side in sides):
        raise DataError(
            f"{said}: TRL's vision preference format (trl_vision): its sides are texts about a "
            "picture that a vision-language model is shown, and no policy here sees both",
            hint="To judge the texts alone, without the pictures: --format trl. If two pictures "
            "are compared, name their columns chosen_image and rejected_image (docs/images.md).",
        )
