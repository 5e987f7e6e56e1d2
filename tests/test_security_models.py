"""Models of strangers: another in their place, templates that reach for Python, thin bombs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_diffusion import save as save_pipeline
from helpers.tiny_models import save, tiny_llama, tiny_tokenizer
from PIL import Image

from noisescope.datasets.images import crop
from noisescope.errors import DataError, ModelError
from noisescope.models.causal_lm import load_causal_lm
from noisescope.models.pipeline_files import find_pipeline

DEEP = "[" * 200_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model", tiny_llama(), tiny_tokenizer())


def refused(attempt: Any, *arguments: Any) -> str:
    with pytest.raises(ModelError) as caught:
        attempt(*arguments)
    assert caught.value.hint
    return caught.value.message


def test_an_adapter_config_does_not_put_another_model_in_its_place(
    model: Path, tmp_path: Path
) -> None:
    other = save(tmp_path / "other", tiny_llama(seed=9), tiny_tokenizer())
    (model / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(other)})
    )
    assert "would load another model in its place" in refused(load_causal_lm, str(model))


def test_nor_does_one_in_a_part_of_a_pipeline(tmp_path: Path) -> None:
    folder = save_pipeline("sd", tmp_path / "sd")
    (folder / "text_encoder" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "text_encoder holds adapter_config.json" in refused(find_pipeline, str(folder))


@pytest.mark.parametrize(
    "reach",
    [
        "cycler.__init__.__globals__.os.system('touch {victim}')",
        "''.__class__.__mro__[1].__subclasses__()",
        "messages.append({{'role': 'system', 'content': ''}})",
    ],
)
def test_a_chat_template_reaches_no_python(model: Path, tmp_path: Path, reach: str) -> None:
    victim = tmp_path / "victim"
    text = "{{ " + reach.format(victim=victim) + " }}"
    (model / "chat_template.jinja").write_text(text)
    assert "chat template refuses" in refused(load_causal_lm, str(model))
    assert not victim.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model_index.json"])
def test_json_that_is_nested_too_deeply_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    if name == "model_index.json":
        model = save_pipeline("sd", tmp_path / "sd")
    (model / name).write_text(DEEP)
    attempt = find_pipeline if name == "model_index.json" else load_causal_lm
    assert "is not JSON" in refused(attempt, str(model))


def test_a_thin_picture_is_no_way_round_the_bound_of_pixels() -> None:
    for size in ((1, 4_000_000), (4_000_000, 1)):
        with pytest.raises(DataError, match="too thin to be cut to 512 x 512"):
            crop(Image.new("RGB", size), 512)
    assert crop(Image.new("RGB", (100, 2000)), 512)[0].size == (512, 512)
