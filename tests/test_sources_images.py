"""Models of images as sources of evidence, and their parity with transformers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_diffusion import CAPTIONS, ROOT, items, pictures, sample_module
from helpers.tiny_judges import tiny_clip, tiny_image_reward
from helpers.tiny_models import save, tiny_llama, tiny_tokenizer
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoTokenizer, SiglipConfig, SiglipModel

from noisescope.cli import run
from noisescope.errors import DataError, ModelError, UsageError
from noisescope.models.clip import HEAD_FILE
from noisescope.models.embed_images import load_image_encoder
from noisescope.models.image_scores import SCORERS, load_image_scores
from noisescope.replicas.sources import check_modality, parsed
from noisescope.storage.run import find_run

SIDE = 16


class Pictures:
    """Pictures by key."""

    def __init__(self, count: int = 5) -> None:
        self.known = pictures(count)
        self.references: dict[str, tuple[str, ...]] = {}

    def get(self, key: str) -> bytes:
        if key not in self.known:
            raise DataError(f"no picture {key}")
        return self.known[key]


def tiny_siglip(folder: Path) -> tuple[Path, Any, Any]:
    """(directory, model, tokenizer) of a random SigLIP with its image processor."""
    words = sample_module("tiny_pipelines").tokenizer(CAPTIONS, 24)
    torch.manual_seed(4)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = SiglipConfig(
        text_config={
            **tower,
            "vocab_size": len(words),
            "max_position_embeddings": 24,
            "projection_size": 16,
        },
        vision_config={**tower, "image_size": SIDE, "patch_size": 8},
    )
    model = SiglipModel(config).eval()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    write_processor(folder, "SiglipImageProcessor", {"height": SIDE, "width": SIDE})
    return folder, model, words


def write_processor(folder: Path, kind: str, size: dict[str, int]) -> None:
    """An image processor's settings, as save_pretrained writes them."""
    import json

    settings = {
        "image_processor_type": kind,
        "size": size,
        "crop_size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def of_transformers(folder: Path, model: Any, store: Pictures, padding: Any) -> tuple[Any, Any]:
    """(image, text) embeddings [3, D] by the model's own forward, one item at a time."""
    prepare = AutoImageProcessor.from_pretrained(folder, backend="pil")
    words = AutoTokenizer.from_pretrained(folder)
    images, texts = [], []
    for item in items(list(store.known)):
        image = Image.open(io.BytesIO(store.get(item.response))).convert("RGB")
        ids = words(
            [item.prompt], padding=padding, truncation=True, max_length=24, return_tensors="pt"
        )
        kept = {name: ids[name] for name in ("input_ids", "attention_mask") if name in ids}
        with torch.inference_mode():
            out = model(pixel_values=prepare(image, return_tensors="pt")["pixel_values"], **kept)
        images.append(out.image_embeds[0].numpy())
        texts.append(out.text_embeds[0].numpy())
    return np.stack(images), np.stack(texts)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_image_embeddings_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    make, padding = (tiny_clip, True) if family == "clip" else (tiny_siglip, "max_length")
    folder, model, _ = make(tmp_path / family)
    if family == "clip":
        write_processor(folder, "CLIPImageProcessor", {"shortest_edge": SIDE})
    store = Pictures()
    found = load_image_encoder(str(folder), store, device="cpu").features(items(list(store.known)))
    image, text = of_transformers(folder, model, store, padding)
    assert np.abs(found["image"] - image).max() < 1e-4
    assert np.abs(found["product"] - image * text).max() < 1e-4
    assert np.abs(found["similarity"][:, 0] - (image * text).sum(1)).max() < 1e-4
    assert len(np.unique(found["similarity"])) == 5


def test_a_text_model_is_no_encoder_of_images(tmp_path: Path) -> None:
    folder = save(tmp_path / "lm", tiny_llama(), tiny_tokenizer())
    with pytest.raises(ModelError, match="is not an encoder of images and text"):
        load_image_encoder(str(folder), Pictures(), device="cpu")


def test_an_encoder_without_an_image_processor_is_named(tmp_path: Path) -> None:
    folder, _, _ = tiny_siglip(tmp_path / "siglip")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="has no image processor that loads"):
        load_image_encoder(str(folder), Pictures(), device="cpu")


@pytest.mark.parametrize("name", list(SCORERS))
def test_a_score_a_response_is_that_of_the_judge(name: str, tmp_path: Path) -> None:
    make = tiny_image_reward if name == "image-reward" else tiny_clip
    folder = make(tmp_path / name)[0]
    if name == "aesthetic":
        torch.manual_seed(3)
        save_file({"weight": torch.randn(1, 12), "bias": torch.zeros(1)}, folder / HEAD_FILE)
    store = Pictures()
    shown = items(list(store.known))
    source = load_image_scores(f"{name}={folder}", store, device="cpu")
    found = source.features(shown)["score"]
    assert found.shape == (5, 1)
    one = [
        source.scorer.scores([item.prompt], [store.get(item.response)])[0] for item in shown
    ]  # whatever the batch; test_judges_models has the parity with transformers
    assert np.abs(found[:, 0] - one).max() < 1e-4
    assert len(np.unique(found)) >= 3
    assert source.identity.fingerprint == source.scorer.fingerprint


def test_an_unknown_scorer_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        load_image_scores("picscore", Pictures())
    assert "pickscore" in str(caught.value.hint)


def test_a_scorer_that_the_hub_does_not_give_is_no_matter_of_the_model() -> None:
    with pytest.raises(ModelError) as caught:
        load_image_scores("pickscore=nobody/nothing-of-this-name", Pictures())
    assert caught.value.hint == "Give a local directory in its place."


@pytest.mark.parametrize(
    ("source", "modality", "instead"),
    [
        ("reward:x", "image", "image-reward:pickscore"),
        ("lm:x", "image", "embed:google/siglip"),
        ("image-reward:pickscore", "text", "reward:MODEL"),
    ],
)
def test_a_source_of_another_modality_names_what_to_use(
    source: str, modality: Any, instead: str
) -> None:
    with pytest.raises(UsageError, match=f"--evidence {source} reads ") as caught:
        check_modality(parsed([source]), modality)
    assert instead in str(caught.value.hint)
    check_modality(parsed([source]), "image" if modality == "text" else "text")


def test_an_audit_of_images_takes_scores_and_embeddings(tmp_path: Path) -> None:
    clip, _, _ = tiny_clip(tmp_path / "clip")
    write_processor(clip, "CLIPImageProcessor", {"shortest_edge": SIDE})
    line = ["score", str(ROOT / "sample_data" / "pick-a-pic"), "--limit", "40"]
    line += ["--model", str(ROOT / "sample_data" / "models" / "tiny-sd")]
    line += ["--runs-dir", str(tmp_path / "runs"), "--replicas", "2", "--folds", "2"]
    assert run(
        [*line, "--evidence", f"image-reward:clip={clip}", "--evidence", f"embed:{clip}"]
    ) in (0, 2)
    made = find_run("pick-a-pic", tmp_path / "runs")
    sources = [one["source"] for one in made.manifest()["summary"]["sources"]]
    assert sources == ["model", f"image-reward:clip={clip}", f"embed:{clip}"]
