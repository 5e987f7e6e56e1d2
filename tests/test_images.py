"""Untrusted pictures: every fault is a DataError in words, every odd picture comes out as RGB."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from noisescope.datasets.images import (
    Location,
    StoredImages,
    check,
    crop,
    decode,
    image_key,
    side_by_side,
)
from noisescope.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(width: int = 24, height: int = 16) -> Image.Image:
    rows = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(rows.astype(np.uint8))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


FAULTS = {
    "empty": (b"", "empty image"),
    "text": (b"not an image at all", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "tiff": (encoded(gradient(), "TIFF"), "not an image"),
    "cut jpeg": (encoded(gradient(), "JPEG")[:-40], "broken image"),
    "cut png": (encoded(gradient())[:80], "broken image"),
    "100 megapixels": (bomb(10_000, 10_000), "10000 x 10000 pixels, at most 50 megapixels"),
    "bomb": (bomb(60_000, 60_000), "too large"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("reader", [check, decode])
def test_broken_and_oversized_pictures_are_errors_in_words(name: str, reader: object) -> None:
    data, message = FAULTS[name]
    assert callable(reader)
    with pytest.raises(DataError, match=message):
        reader(data)


@given(cut=st.integers(0, 700), noise=st.binary(max_size=40))
@settings(max_examples=25, deadline=None)
def test_damage_anywhere_is_a_data_error_or_a_picture(cut: int, noise: bytes) -> None:
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP"):
        data = encoded(gradient(), kind)
        damaged = data[:cut] + noise + data[cut + len(noise) :]
        with contextlib.suppress(DataError):  # and never another kind of exception
            assert decode(damaged).mode == "RGB"


def test_odd_modes_become_rgb() -> None:
    picture = gradient()
    cases = {
        "cmyk": encoded(picture.convert("CMYK"), "JPEG"),
        "palette": encoded(picture.quantize(16), "PNG"),
        "grey": encoded(picture.convert("L")),
        "bitmap": encoded(picture.convert("1"), "BMP"),
        "grey and alpha": encoded(picture.convert("LA")),
    }
    for name, data in cases.items():
        image = decode(data)
        assert (image.mode, image.size) == ("RGB", (24, 16)), name


def test_transparency_is_white_and_sixteen_bits_are_scaled() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((4, 4), 128 * 256, np.uint16))
    assert decode(encoded(deep)).getpixel((0, 0)) == (128, 128, 128)


def test_exif_rotation_is_applied_and_broken_exif_ignored() -> None:
    picture = gradient()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate a quarter turn to be upright
    turned = decode(encoded(picture, "JPEG", exif=exif))
    assert turned.size == (16, 24)
    broken = encoded(picture, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(broken).size == (24, 16)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((0, 0)) == (255, 0, 0)


def test_crop_is_central_and_says_what_it_did() -> None:
    square, framing = crop(gradient(48, 16), 8)
    assert square.size == (8, 8)
    assert (framing.original, framing.corner, framing.target) == ((16, 48), (0, 8), (8, 8))
    same, framing = crop(gradient(8, 8), 8)
    assert (np.asarray(same) == np.asarray(gradient(8, 8))).all()
    assert framing.corner == (0, 0)


def test_store_reads_files_and_parquet_and_notices_change(tmp_path: Path) -> None:
    pictures = [encoded(gradient(8 + n, 8)) for n in range(5)]
    keys = [image_key(data) for data in pictures]
    pq.write_table(pa.table({"jpg": pictures[:3]}), tmp_path / "a.parquet", row_group_size=2)
    (tmp_path / "b.png").write_bytes(pictures[3])
    places = {keys[n]: Location(str(tmp_path / "a.parquet"), "jpg", n) for n in range(3)}
    places[keys[3]] = Location(str(tmp_path / "b.png"))
    store = StoredImages({keys[4]: pictures[4]}, places)
    assert [store.get(key) for key in keys] == pictures
    (tmp_path / "b.png").write_bytes(b"other")
    with pytest.raises(DataError, match="has changed"):
        store.get(keys[3])
    (tmp_path / "b.png").unlink()
    with pytest.raises(DataError, match="No such file"):
        store.get(keys[3])
    with pytest.raises(DataError, match="not part of the dataset"):
        store.get("0" * 20)


def test_side_by_side_shows_both() -> None:
    sheet = side_by_side(encoded(gradient()), encoded(Image.new("RGB", (9, 9), "black")), side=32)
    assert sheet.size == (66, 32)
    assert sheet.getpixel((60, 10)) == (0, 0, 0)
