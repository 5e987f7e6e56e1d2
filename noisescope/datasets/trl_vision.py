"""TRL's vision preference format: `images` (or `image`), prompt, chosen and rejected texts.

Its sides are texts about a picture, which no policy here can judge: a causal LM does not see the
picture, a text-to-image pipeline judges pictures. So the format is recognised and refused;
`--format trl` judges the texts alone, for who wants that.
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
            "picture, and no policy here sees both",
            hint="To judge the texts alone, without the pictures: --format trl",
        )
