"""Adapters of others as replicas: scored as PEFT scores them, refused by name where they cannot be.

Also the released trio: a live replica and its two averaged copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peft
import pyarrow.parquet as pq
import pytest
import torch
from helpers.adapters import adapter, edited
from helpers.lora import command, plain_logps, tiny_place
from helpers.tiny_models import tiny_llama

from noisescope.auditing.validation import validate_truth
from noisescope.cli import run
from noisescope.datasets import load
from noisescope.errors import ModelError
from noisescope.models.causal_lm import load_causal_lm
from noisescope.models.packing import corpus_of
from noisescope.scoring.detectors import u_released
from noisescope.scoring.margins import read_margins
from noisescope.scoring.score import u_of_trios
from noisescope.storage.run import Run
from noisescope.training.lora.peft_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_directories,
    attach_peft,
    read_peft,
    stated_base,
)
from noisescope.training.pair_data import pair_data

#: PEFT asks transformers a deprecated question when it wraps a model.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_place(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters of unequal shape: rank and alpha patterns, rsLoRA, plain."""
    where = tmp_path_factory.mktemp("theirs")
    patterns = {"rank_pattern": {"down_proj": 4}, "alpha_pattern": {"^model.layers.1.*q_proj": 3}}
    for m, more in enumerate((patterns, {"use_rslora": True, "r": 3}, {})):
        adapter(where / str(m), m, **more)
    return where


def test_scores_with_adapters_of_others(
    place: Path,
    theirs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    each = [word for m in "012" for word in ("--from-adapters", str(theirs / m))]
    assert run(command("score", place, *each, "--details")) in (0, 2)
    said = capsys.readouterr()
    assert "margins count as in-sample" in " ".join(said.err.split())
    assert "3 adapters, in-sample margins" in said.out
    assert "too good" in said.out
    assert run(command("fine-tune", place, "--from-adapters", str(theirs), "--held-out")) == 0
    assert run(command("score", place, "--from-adapters", str(theirs), "--held-out")) in (0, 2)
    said = capsys.readouterr()
    assert "only verdicts are made again" in " ".join(said.err.split())
    assert "in-sample" not in said.out + said.err
    runs = sorted((tmp_path / "runs").glob("pairs-*"))
    assert len(runs) == 2  # the word on being held out is part of the evidence
    found = {bool(read_margins(one).in_sample): read_margins(one) for one in runs}
    assert np.array_equal(found[True].margins, found[False].margins)
    expected = expected_margins(place, theirs)
    assert np.allclose(found[False].margins[:, 0], expected, rtol=1e-4, atol=1e-5)


def expected_margins(place: Path, theirs: Path) -> np.ndarray:
    """0.1 * l by transformers and PEFT alone, one response at a time."""
    data = pair_data(load(str(place / "pairs.jsonl")).table)
    encoded = load_causal_lm(str(place / "model"), dtype="float32").encode(data.items)
    corpus = corpus_of([(item.prompt, item.response) for item in encoded])
    reference = plain_logps(tiny_llama(), corpus)
    rows = []
    for m in "012":
        tuned = peft.PeftModel.from_pretrained(tiny_llama(), theirs / m).eval()
        ratio = (plain_logps(tuned, corpus) - reference).detach().numpy()
        rows.append(0.1 * (ratio[data.chosen] - ratio[data.rejected]))
    return np.stack(rows)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: edited(d, use_dora=True), "use_dora"),
        (lambda d: edited(d, modules_to_save=["lm_head"]), "modules_to_save"),
        (lambda d: edited(d, bias="all"), "bias all"),
        (lambda d: edited(d, peft_type="IA3"), "peft_type IA3"),
        (lambda d: edited(d, init_lora_weights="pissa_niter_4"), "pissa_niter_4, which changes"),
        (lambda d: edited(d, lora_alpha="much"), "no usable lora_alpha"),
        (lambda d: edited(d, lora_alpha=math.nan), "no usable lora_alpha"),
        (lambda d: edited(d, use_next_lora=True), "use_next_lora, which this peft does not know"),
        (lambda d: (d / ADAPTER_CONFIG).write_text("["), "cannot be read"),
        (lambda d: (d / ADAPTER_CONFIG).write_text("[]"), "not a JSON object"),
        (lambda d: (d / ADAPTER_CONFIG).unlink(), "adapter_config.json missing"),
        (lambda d: (d / ADAPTER_WEIGHTS).write_bytes(b"x"), "cannot be read"),
        (
            lambda d: (d / ADAPTER_WEIGHTS).rename(d / "adapter_model.bin"),
            "a pickle, which is never opened",
        ),
    ],
)
def test_adapters_that_are_no_plain_lora_are_refused_by_name(
    tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(adapter(tmp_path / "one"))
    with pytest.raises(ModelError, match=words):
        read_peft(tmp_path / "one")


def test_other_weights_than_a_and_b_are_refused(tmp_path: Path) -> None:
    special = adapter(tmp_path / "dora", use_dora=True)
    edited(special, use_dora=False)
    with pytest.raises(ModelError, match="lora_magnitude_vector"):
        read_peft(special)
    odd = adapter(tmp_path / "nan")
    from safetensors.torch import load_file, save_file

    tensors = load_file(odd / ADAPTER_WEIGHTS)
    save_file({name: tensor * torch.nan for name, tensor in tensors.items()}, odd / ADAPTER_WEIGHTS)
    with pytest.raises(ModelError, match="not finite"):
        read_peft(odd)


def test_places_and_bases_of_adapters(theirs: Path, tmp_path: Path) -> None:
    assert [path.name for path in adapter_directories([theirs])] == ["0", "1", "2"]
    with pytest.raises(ModelError, match="given twice"):
        adapter_directories([theirs, theirs / "1"])
    with pytest.raises(ModelError, match="is not a directory"):
        adapter_directories([tmp_path / "nowhere"])
    with pytest.raises(ModelError, match=r"adapter_model\S+ and adapter_config.json missing"):
        adapter_directories([tmp_path])
    assert stated_base([theirs / "0", theirs / "1"]) == "hub/model"
    other = edited(adapter(tmp_path / "other"), base_model_name_or_path="hub/another")
    with pytest.raises(ModelError, match="different models: hub/another; hub/model"):
        stated_base([theirs / "0", other])
    with pytest.raises(ModelError, match="layers that this model's blocks do not have"):
        attach_peft(tiny_llama(num_hidden_layers=2), [theirs / "0"])
    model = tiny_llama(intermediate_size=24)
    with pytest.raises(ModelError, match="a different shape"):
        attach_peft(model, [theirs / "0"])
    assert type(model.model.layers[0].mlp.down_proj) is torch.nn.Linear  # given back


def test_averaged_copies_make_u_released(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--kind", "lora", "--replicas", "2", "--steps", "8", "--learning-rate", "0.01")
    more = (*options, "--checkpoints", "2", "--ema")
    assert run(command("score", place, *more)) in (0, 2)
    assert run(command("score", place, *options, "--checkpoints", "2")) in (0, 2)
    scores = []
    for directory in sorted((tmp_path / "runs").glob("pairs-*")):
        table = pq.read_table(directory / "scores.parquet").sort_by("pair_id")
        scores.append((any((directory / "averages").glob("*")), table.to_pandas()))
    (plain,) = (one for has, one in scores if not has)
    (trio,) = (one for has, one in scores if has)
    for name in ("u", "p_flip", "margin"):
        assert np.array_equal(plain[name], trio[name])
    assert not np.allclose(plain["u_released"], trio["u_released"])
    assert trio["u_released"].between(0, 1).all()
    (with_copies,) = (p.parent for p in (tmp_path / "runs").glob("pairs-*/averages"))
    truth = tmp_path / "truth.csv"
    ids = [f"p{i}" for i in range(24)]
    lines = [f"{name},{int(i < 6)}\n" for i, name in enumerate(ids)]
    truth.write_text("pair_id,mislabelled\n" + "".join(lines))
    detectors = validate_truth(Run(with_copies), truth)["detectors"]
    assert {"aum", "cartography_confidence", "cartography_variability"} <= set(detectors)
    (without,) = (p for p in (tmp_path / "runs").glob("pairs-*") if p != with_copies)
    others = validate_truth(Run(without), truth)["detectors"]
    assert {name for name in others if others[name] != detectors[name]} <= {"u_released"}


def test_trio_against_the_formula() -> None:
    """One run, its copies, rho 1: x = l / rms, u = min(std x, 1) (1 - mean sigma(x))."""
    live, copies = np.array([[3.0, -3.0]]), np.array([[1.0, 1.0], [2.0, -2.0]])
    scales = np.array([[3.0]]), np.array([[1.0], [2.0]])
    found = u_of_trios(live, copies, np.ones((1, 2), bool), 1.0, scales)
    one = 1 / (1 + np.exp(-1.0))
    assert found[0] == pytest.approx(0.0)  # all three say 1
    x = np.array([-1.0, 1.0, -1.0])
    mean = (one + 2 * (1 - one)) / 3
    assert found[1] == pytest.approx(min(np.std(x, ddof=1), 1) * (1 - mean))
    two = np.concatenate([live, live])
    both = np.concatenate([copies, copies[::-1]])
    pair = (np.full((2, 1), 3.0), np.array([[1.0], [2.0], [2.0], [1.0]]))
    counted = np.array([[True, False], [False, True]])
    again = u_of_trios(two, both, counted, 1.0, pair)
    assert np.allclose(again, found)
    assert u_released(live, 1.0, np.array([[3.0]])).shape == (2,)
