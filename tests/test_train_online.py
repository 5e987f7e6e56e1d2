"""Algorithm 1 on the fly: online u is the offline one, averages follow, annotators are learned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import Interrupted, quick, read, tiny_checkpoint, tiny_policy, write_pairs
from hypothesis import given
from hypothesis import strategies as st

from noisescope.errors import UsageError
from noisescope.scoring import detectors
from noisescope.scoring.weights import WeightConfig, adaptive_weights
from noisescope.training.config import EMA_DECAYS
from noisescope.training.lora.adapters import attach_adapters
from noisescope.training.pair_data import pair_data
from noisescope.training.policy.adaptive import Online, OnlineConfig, Reliability
from noisescope.training.policy.run import fine_tune
from noisescope.training.policy.text import TextAdapters, alike, text_space
from noisescope.training.state import STATE_FILE

#: PEFT asks transformers a deprecated question when it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with pairs.jsonl and a model."""
    place = tmp_path_factory.mktemp("online")
    write_pairs(place / "pairs.jsonl")
    tiny_checkpoint(place / "model")
    return place


def tune(place: Path, output: Path, reporter=None, **changes):
    """An online adaptive-dpo training; its directory."""
    settings = quick("adaptive-dpo", **changes)
    data, policy = read(place / "pairs.jsonl"), tiny_policy(place / "model")
    return fine_tune(data, policy, settings, output=output, reporter=reporter)


def test_online_u_on_fixed_replicas_is_offline_u(place, tmp_path):
    """Micro-batch by micro-batch, Eq. 13-15 of a real model's l equals the whole dataset's."""
    policy, data = tiny_policy(place / "model"), pair_data(read(place / "pairs.jsonl").table)
    corpus, _ = alike(policy, data)
    space = text_space(policy, data, corpus, tmp_path, layers=None, checkpointing=False)
    adapters = attach_adapters(policy.model, 3, 4, 0)
    adapters.initialise([0, 1, 2], 8.0)
    torch.manual_seed(0)
    for layer in adapters.layers.values():
        torch.nn.init.normal_(layer.b, std=0.1)
    policy_in_training = TextAdapters(space, adapters)
    with torch.no_grad():
        whole = (
            policy_in_training.pair_logps(np.arange(40), 0, (0, 1, 2)).logratios.double().numpy()
        )
        config = OnlineConfig("replicas", 3, rho=1.0, weights=WeightConfig(k1=4.0))
        online = Online(config)
        parts = [
            online.weigh(policy_in_training.pair_logps(pairs, 0, online.trained).logratios)
            for pairs in np.array_split(np.arange(40), 5)
        ]
    offline = detectors.u(whole, 1.0)
    assert offline.std() > 0.01
    weight, gamma = adaptive_weights(offline, config.weights)
    np.testing.assert_allclose(torch.cat([w for w, _ in parts]), weight, rtol=1e-3)
    np.testing.assert_allclose(torch.cat([g for _, g in parts]), gamma, rtol=1e-2, atol=1e-6)


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.integers(0, 100))
def test_a_verdict_does_not_depend_on_batch_mates(mine, seed):
    mates = torch.from_numpy(np.random.default_rng(seed).normal(0, 5, (3, 4)))
    pair = torch.tensor(mine, dtype=torch.float64)[:, None]
    for mode in ("replicas", "ema"):
        online = Online(OnlineConfig(mode, 3))
        online.square[:] = torch.tensor([4.0, 9.0, 1.0, 1.0] if mode == "ema" else [0, 0, 0, 0])
        alone, _ = online.weigh(pair)
        among, _ = online.weigh(torch.cat([pair, mates], 1))
        assert alone[0] == among[0]
        assert not alone.requires_grad


@pytest.mark.parametrize(("modality", "factor"), [("text", 2.0), ("image", 4.0)])
def test_ema_scales_are_the_batch_norm_of_earlier_steps(modality, factor):
    """The release divides by the norm over 4 pairs of text, 16 of images."""
    online = Online(OnlineConfig("ema", rho=2.0, modality=modality))
    first = torch.tensor([[3.0, -3.0], [2.0, 2.0], [1.0, -1.0]], dtype=torch.float64)
    online.weigh(first)
    online.finish(lambda tensor: tensor)
    later = np.array([[1.0], [0.5], [-0.2]])
    scale = factor * np.array([[3.0], [2.0], [1.0]])
    np.testing.assert_allclose(online.u(later), detectors.u_released(later, 2.0, scale))


def test_replicas_train_together(place, tmp_path):
    done = tune(place, tmp_path / "one", online="replicas", online_replicas=3)
    result = done.manifest()["result"]
    assert result["last"]["margin"] > result["first"]["margin"]
    assert result["first"]["weight"] == pytest.approx(1.0, abs=1e-3)  # they agree at the start
    assert result["last"]["weight"] < 0.999
    assert "made while training (online replicas)" in (done.directory / "README.md").read_text()


def test_averaged_copies_follow_and_survive_a_stop(place, tmp_path):
    def stop() -> None:
        raise KeyboardInterrupt

    unbroken = tune(place, tmp_path / "unbroken", online="ema", weight_decay=0.1)
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        tune(place, broken, Interrupted(5, stop), online="ema", weight_decay=0.1)
    state = broken / STATE_FILE
    from safetensors import safe_open

    with safe_open(state, "pt") as file:
        name = next(key for key in file.keys() if key.startswith("tensor/"))  # noqa: SIM118
        live = file.get_tensor(name)
        for copy, decay in enumerate(EMA_DECAYS, 1):
            average = file.get_tensor(f"ema/{decay}/{name.removeprefix('tensor/')}")
            assert torch.equal(live[copy], average[0])
        assert not torch.equal(live[0], live[2])
        assert file.get_tensor("buffer/online")[-1] > 0
    resumed = tune(place, broken, online="ema", weight_decay=0.1)
    files = [done.directory / "adapter_model.safetensors" for done in (resumed, unbroken)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_online_needs_an_adaptive_objective_and_adapters():
    with pytest.raises(UsageError, match="--online is for adaptive-dpo and adaptive-ipo"):
        quick("dpo", online="replicas")
    with pytest.raises(UsageError, match="--online needs adapters"):
        quick("adaptive-dpo", online="ema", full=True)
    with pytest.raises(UsageError, match="must be one of replicas, ema"):
        OnlineConfig("sometimes")
    with pytest.raises(UsageError, match="at least 2"):
        OnlineConfig("replicas", 1)


def test_reliability_is_each_annotators_mean_posterior():
    found = Reliability(["a", "b", "a", None], 0.9)
    assert found.of(np.array([0, 1, 3])).tolist() == pytest.approx([0.9, 0.9, 0.9])
    found.note(np.array([0, 1]), torch.tensor([1.0, 0.2]))
    found.note(np.array([2]), torch.tensor([0.8]))
    found.finish(lambda tensor: tensor)
    expected = [(0.9 + 1.0 + 0.8) / 3, (0.9 + 0.2) / 2, 0.9]
    assert found.of(np.array([0, 1, 3])).tolist() == pytest.approx(expected)
    found.note(np.array([0]), torch.tensor([0.4]))  # met again: the latest posterior counts
    found.finish(lambda tensor: tensor)
    assert found.of(np.array([2])).tolist() == pytest.approx([(0.9 + 0.4 + 0.8) / 3])


def test_re_po_keeps_its_annotators_over_a_stop(place, tmp_path):
    def stop() -> None:
        raise KeyboardInterrupt

    data = read(place / "pairs.jsonl")

    def tune_re_po(output: Path, reporter=None):
        policy = tiny_policy(place / "model")
        return fine_tune(data, policy, quick("re-po"), output=output, reporter=reporter)

    unbroken = tune_re_po(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        tune_re_po(tmp_path / "broken", Interrupted(3, stop))
    resumed = tune_re_po(tmp_path / "broken")
    records = [
        json.loads(line) for line in (resumed.directory / "history.jsonl").read_text().splitlines()
    ]
    expected = (unbroken.directory / "history.jsonl").read_text().splitlines()
    assert records == [json.loads(line) for line in expected]
