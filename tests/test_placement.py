"""Models spread over devices, quantised checkpoints, and 4-bit weights on load."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.tiny_models import save, tiny_llama, tiny_tokenizer

from noisescope.cli import run
from noisescope.errors import ModelError, UsageError
from noisescope.models import Item
from noisescope.models.causal_lm import CausalLMPolicy, load_causal_lm
from noisescope.models.checkpoint import QUANTISERS
from noisescope.models.placement import Placement
from noisescope.replicas.lora_text import encoded_corpus

ITEMS = [
    Item("a", "Bread?", None, "Knead the dough, wait, and bake it."),
    Item("b", "Bread?", None, "no"),
    Item("c", "why", None, "How do I bake bread? " * 3),
]
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), tiny_llama(), tiny_tokenizer(None))


def loaded(model: Path, **settings: Any) -> CausalLMPolicy:
    return load_causal_lm(str(model), device="cpu", dtype="float32", **settings)


def test_a_device_map_changes_no_features(model: Path) -> None:
    plain, spread = loaded(model), loaded(model, device_map="auto")
    assert spread.identity == plain.identity
    assert spread.device == plain.device
    expected, found = plain.features(ITEMS), spread.features(ITEMS)
    assert all(np.abs(found[name] - expected[name]).max() < 1e-4 for name in expected)


def test_offloaded_layers_change_no_features(model: Path, tmp_path: Path) -> None:
    policy = loaded(model)
    expected = policy.features(ITEMS)
    depth = policy.model.config.num_hidden_layers
    places = {f"model.layers.{n}": "cpu" if n == 0 else "disk" for n in range(depth)}
    places |= {"model.embed_tokens": "cpu", "model.norm": "disk", "lm_head": "cpu"}
    places["model.rotary_emb"] = "cpu"
    spread = accelerate.dispatch_model(
        policy.model, places, main_device="cpu", offload_dir=tmp_path
    )
    assert any(weight.is_meta for weight in spread.parameters())
    assert policy.device == torch.device("cpu")
    found = policy.features(ITEMS)
    assert all(np.abs(found[name] - expected[name]).max() < 1e-4 for name in expected)
    with pytest.raises(ModelError, match="spread over 2 devices"):
        encoded_corpus(policy, ITEMS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device_map": "balanced"}, "--device-map balanced is unknown"),
        ({"quantize": "2bit"}, "--quantize 2bit is unknown"),
    ],
)
def test_unknown_placements_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Placement(**settings)


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is installed")
def test_four_bits_need_a_package(model: Path) -> None:
    with pytest.raises(UsageError, match="needs the package bitsandbytes") as caught:
        loaded(model, quantize="4bit")
    assert "pip install bitsandbytes" in str(caught.value.hint)


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed")
def test_four_bits_give_features_of_their_own(tmp_path: Path) -> None:
    wide = tiny_llama(hidden_size=128, intermediate_size=128)  # rows of whole blocks of 64
    model = save(tmp_path / "wide", wide, tiny_tokenizer(None))
    plain, small = loaded(model), loaded(model, quantize="4bit")
    assert small.identity.fingerprint != plain.identity.fingerprint
    assert any(type(layer).__name__ == "Linear4bit" for layer in small.model.modules())
    small.model.save_pretrained(tmp_path / "four")
    tiny_tokenizer(None).save_pretrained(tmp_path / "four")
    expected, found = plain.features(ITEMS), small.features(ITEMS)
    assert np.abs(found["final_mean"] - expected["final_mean"]).max() > 0.3
    for row, encoded in enumerate(small.encode(ITEMS)):  # the pass of transformers alone
        ids = torch.tensor([[*encoded.prompt, *encoded.response]])
        with torch.inference_mode():
            states = small.model.base_model(ids).last_hidden_state[0, len(encoded.prompt) : -1]
        assert np.abs(found["final_mean"][row] - states.mean(0).numpy()).max() < 0.1  # bfloat16
    again = loaded(tmp_path / "four").features(ITEMS)  # a checkpoint that is quantised already
    assert all(np.abs(again[name] - found[name]).max() < 1e-3 for name in found)
    with pytest.raises(UsageError, match="is quantised already"):
        loaded(tmp_path / "four", quantize="4bit")


@pytest.mark.parametrize("kind", ["bitsandbytes", "gptq", "awq", "compressed-tensors"])
def test_a_quantised_checkpoint_names_its_package(kind: str, model: Path, tmp_path: Path) -> None:
    package = QUANTISERS[kind]
    if importlib.util.find_spec(package.split()[0].replace("-", "_")) is not None:
        pytest.skip(f"{package} is installed")
    folder = tmp_path / "quantised"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    quantised: dict[str, Any] = {"quant_method": kind, "bits": 4, "group_size": 128}
    if kind == "bitsandbytes":
        quantised |= {"load_in_4bit": True}
    if kind == "compressed-tensors":
        quantised |= {"format": "pack-quantized", "config_groups": {}}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    with pytest.raises(ModelError) as caught:
        loaded(folder)
    assert f"pip install {package}" in str(caught.value.hint)


def test_pipelines_of_images_are_not_placed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).parents[1] / "sample_data"
    line = ["score", str(root / "pick-a-pic"), "--limit", "20", "--device-map", "auto"]
    line += ["--model", str(root / "models" / "tiny-sd"), "--runs-dir", str(tmp_path)]
    assert run(line) == 2
    assert "--device-map: about text models" in capsys.readouterr().err


def test_the_command_takes_a_device_map(model: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Why {n}?", "chosen": f"yes {n}", "rejected": "no" * (n % 4 + 1)}
        for n in range(16)
    ]
    pd.DataFrame(rows).to_json(tmp_path / "pairs.jsonl", orient="records", lines=True)
    line = ["score", str(tmp_path / "pairs.jsonl"), "--model", str(model), "--folds", "2"]
    line += ["--runs-dir", str(tmp_path / "runs"), "--replicas", "2", "--device-map", "auto"]
    assert run(line) in (0, 2)
    assert list((tmp_path / "runs").glob("*/scores.parquet"))
