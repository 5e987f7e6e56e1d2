"""Tiny real diffusers pipelines on disk, and pictures, for tests."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from noisescope.datasets.images import image_key
from noisescope.models import Item
from noisescope.pairs import Pair, to_table

torch.set_num_threads(1)  # these models are too small to share between threads

ROOT = Path(__file__).parents[2]
CAPTIONS = ["a red circle", "a blue square above a green ring", "two pink crosses"]


def sample_module(name: str) -> Any:
    """A module of `sample_data/`, which is a folder of scripts."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "sample_data" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(kind: str, folder: Path, *, prediction: str = "epsilon", **options: Any) -> Path:
    """Save a random pipeline ("sd" or "sdxl") in the layout that diffusers writes."""
    module = sample_module("tiny_pipelines")
    build = {"sd": module.random_sd, "sdxl": module.random_sdxl}[kind]
    pipeline = build(CAPTIONS, prediction=prediction)
    if prediction != "epsilon":
        torch.manual_seed(1)
    pipeline.save_pretrained(folder, **options)
    return folder


def picture(seed: int, side: int = 16) -> bytes:
    """A PNG of soft random colours."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    stream = io.BytesIO()
    small.resize((side, side), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def pictures(count: int) -> dict[str, bytes]:
    """Distinct pictures by content key."""
    return {image_key(data): data for data in map(picture, range(count))}


def items(keys: list[str]) -> list[Item]:
    """One item a picture, captions in turn."""
    return [Item(f"item{n}", CAPTIONS[n % 3], None, key) for n, key in enumerate(keys)]


def pairs_table(keys: list[str]) -> pa.Table:
    """A pair of each two neighbouring pictures."""
    couples = zip(keys[::2], keys[1::2], strict=True)
    return to_table(Pair(CAPTIONS[n % 3], one, two) for n, (one, two) in enumerate(couples))
