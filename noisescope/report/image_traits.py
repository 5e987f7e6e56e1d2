"""Measure traits of images that people can see: brightness, colour, sharpness, size.

sides = compare_images(chosen, rejected, images)     # trait -> int8 [N]

Values are of the image scaled to at most `SIDE` pixels, but for the size and the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.images import decode
from noisescope.errors import DataError
from noisescope.pairs import ImageStore
from noisescope.scoring.traits import Trait

SIDE = 256

#: Trait, and the smallest difference that people would see (colours from 0 to 1).
TRAITS = (
    Trait("brightness", "the brighter image", least=0.05),
    Trait("contrast", "the image of higher contrast", least=0.03),
    Trait("saturation", "the more colourful image", least=0.05),
    Trait("sharpness", "the sharper image", least=0.0, ratio=1.2),
    Trait("pixels", "the larger image", ratio=1.1),
    Trait("width", "the wider image", least=0.05),
    Trait("compression", "the image with more bytes a pixel", least=0.0, ratio=1.2),
)


def measure(data: bytes) -> tuple[float, ...]:
    """The values of `TRAITS` of one image. Raises DataError if it cannot be decoded."""
    image = decode(data)
    width, height = image.size
    image.thumbnail((SIDE, SIDE))
    values = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    grey = values.mean(axis=2)
    edges = [
        np.abs(np.diff(grey, axis=axis)).mean() if grey.shape[axis] > 1 else 0.0 for axis in (0, 1)
    ]
    saturation = (values.max(axis=2) - values.min(axis=2)).mean()
    return (
        float(grey.mean()),
        float(grey.std()),
        float(saturation),
        float(sum(edges)),
        float(width * height),
        width / height,
        len(data) / (width * height),
    )


def compare_images(
    chosen: Sequence[str], rejected: Sequence[str], images: ImageStore
) -> Mapping[Trait, NDArray[np.int8]]:
    """Every trait of N pairs of content keys: 1 where the labelled side has more of it, else -1.

    0 where they are alike or an image cannot be read.
    """
    known: dict[str, tuple[float, ...] | None] = {}
    for key in {*chosen, *rejected}:
        try:
            known[key] = measure(images.get(key))
        except DataError:
            known[key] = None
    found = np.zeros((len(TRAITS), len(chosen)), np.int8)
    for index, (first, second) in enumerate(zip(chosen, rejected, strict=True)):
        one, two = known[first], known[second]
        if one is not None and two is not None:
            found[:, index] = [t.sign(*v) for t, *v in zip(TRAITS, one, two, strict=True)]
    return dict(zip(TRAITS, found, strict=True))
