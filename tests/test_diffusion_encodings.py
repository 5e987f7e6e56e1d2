"""Latents and embeddings: half precision everywhere, on disk in sound parts, within bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_diffusion import CAPTIONS, items, pictures, save

from noisescope.datasets.images import StoredImages
from noisescope.errors import ModelError
from noisescope.models import latents as encodings
from noisescope.models.diffusion import DiffusionPolicy

PICTURES = pictures(6)
KEYS = list(PICTURES)
ITEMS = items(KEYS)


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = str(request.param)
    return save(kind, tmp_path_factory.mktemp(kind) / kind)


class Counted:
    """A policy with a count of encoder passes and of what its cache said."""

    def __init__(self, folder: Path, images: StoredImages | None = None) -> None:
        self.policy = DiffusionPolicy.load(
            str(folder), images or StoredImages(PICTURES), device="cpu", dtype="float32"
        )
        self.calls, self.notes = {"vae": 0, "text": 0}, list[str]()
        parts = {"vae": self.policy.pipeline.pipe.vae.encoder}
        parts["text"] = self.policy.pipeline.pipe.text_encoder
        for name, part in parts.items():
            part.register_forward_hook(lambda *_, name=name: self._count(name))

    def _count(self, name: str) -> None:
        self.calls[name] += 1

    def keep(self, directory: Path) -> Counted:
        self.policy.encodings.open(directory)
        self.policy.encodings.keep(ITEMS, self.progress)
        return self

    def progress(self, done: float, total: float, note: str | None) -> None:
        self.notes += [note] if note else []


def test_kept_encodings_give_the_same_bits_and_run_no_encoder(folder: Path, tmp_path: Path) -> None:
    plain = Counted(folder).policy.features(ITEMS)
    first = Counted(folder).keep(tmp_path)
    made = first.policy.features(ITEMS)
    again = Counted(folder).keep(tmp_path)
    found = again.policy.features(ITEMS)
    assert again.calls == {"vae": 0, "text": 0}
    assert again.notes == []
    for name, value in made.items():
        np.testing.assert_array_equal(found[name], value)
        np.testing.assert_allclose(plain[name], value, rtol=1e-3, atol=1e-4)


def test_framings_and_added_conditioning_survive_the_disk(folder: Path, tmp_path: Path) -> None:
    memory = Counted(folder).policy
    disk = Counted(folder).keep(tmp_path).policy
    one, other = memory.latents(KEYS), disk.latents(KEYS)
    assert one[1] == other[1]
    told, again = (policy.conditioning(CAPTIONS, one[1][:3]) for policy in (memory, disk))
    torch.testing.assert_close(told.text, again.text, rtol=0, atol=0)
    for name, value in told.added.items():
        torch.testing.assert_close(value, again.added[name], rtol=0, atol=0)


def test_references_and_the_empty_caption_are_kept_too(folder: Path, tmp_path: Path) -> None:
    referred = StoredImages(PICTURES, references={ITEMS[0].key: (KEYS[5],)})
    made = Counted(folder, referred)
    made.policy.encodings.open(tmp_path)
    made.policy.encodings.keep(ITEMS[:1], made.progress)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    before = dict(made.calls)
    made.policy.features(ITEMS[:1])
    assert made.calls == before


def test_a_damaged_part_is_named_and_made_again(folder: Path, tmp_path: Path) -> None:
    Counted(folder).keep(tmp_path)
    for part in tmp_path.rglob("latents/*.safetensors"):
        content = bytearray(part.read_bytes())
        content[-3] ^= 1
        part.write_bytes(bytes(content))
    again = Counted(folder).keep(tmp_path)
    assert again.calls["text"] == 0
    assert again.calls["vae"] >= 1
    (note,) = again.notes
    assert "in the latents cache is damaged" in note
    assert Counted(folder).keep(tmp_path).calls == {"vae": 0, "text": 0}


def test_the_disk_bound_is_kept_and_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encodings, "DISK_BYTES", 0)
    bounded = Counted(folder).keep(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert bounded.notes == [
        "no room on disk for 6 latents: computed when needed",
        "no room on disk for 4 captions: computed when needed",
    ]
    wanted = Counted(folder).policy.features(ITEMS)
    for name, value in bounded.policy.features(ITEMS).items():
        np.testing.assert_array_equal(value, wanted[name])


def test_an_encoder_out_of_bounds_is_said(folder: Path) -> None:
    counted = Counted(folder)
    with torch.no_grad():
        for parameter in counted.policy.pipeline.pipe.vae.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        counted.policy.latents(KEYS)


def test_other_encoders_or_sizes_share_nothing(folder: Path) -> None:
    small = Counted(folder).policy
    large = DiffusionPolicy.load(str(folder), small.images, device="cpu", image_size=32)
    assert small.encodings.fingerprint != large.encodings.fingerprint
    assert small.encodings.fingerprint == Counted(folder).policy.encodings.fingerprint
