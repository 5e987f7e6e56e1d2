"""Training steps that memory has no room for: smaller forwards, the same step, or a clear no."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import quick, read, tiny_checkpoint, tiny_policy, write_pairs

from noisescope.errors import ModelError
from noisescope.training.policy import PairLogps
from noisescope.training.policy.adaptive import Online, OnlineConfig, Reliability
from noisescope.training.policy.run import fine_tune
from noisescope.training.policy.text import TextAdapters


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("memory")
    write_pairs(place / "pairs.jsonl")
    tiny_checkpoint(place / "model")
    return place


@dataclass
class Memory:
    """Room for so many pairs in a forward with gradient; the forwards that were tried."""

    pairs: int
    in_backward: bool = False

    def pair_logps(
        self, own: Any, policy_in_training: TextAdapters, pairs: Any, *rest: Any
    ) -> PairLogps:
        found: PairLogps = own(policy_in_training, pairs, *rest)
        if len(pairs) > self.pairs and torch.is_grad_enabled():
            if not self.in_backward:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

            def full(_: torch.Tensor) -> None:
                handle.remove()
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

            handle = next(iter(policy_in_training.trainable().values())).register_hook(full)
        return found


def train(place: Path, output: Path, objective: str = "dpo", **changes: Any) -> list[dict]:
    settings = quick(objective, **changes)
    done = fine_tune(
        read(place / "pairs.jsonl"), tiny_policy(place / "model"), settings, output=output
    )
    text = (done.directory / "history.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize(
    ("objective", "changes"),
    [("dpo", {}), ("adaptive-dpo", {"online": "replicas", "accumulation": 2}), ("re-po", {})],
)
def test_smaller_forwards_are_the_same_step(
    place, tmp_path, monkeypatch, caplog, objective, changes, in_backward
):
    whole = train(place, tmp_path / "whole", objective, steps=3, **changes)
    memory, own = Memory(3, in_backward), TextAdapters.pair_logps
    monkeypatch.setattr(TextAdapters, "pair_logps", lambda *given: memory.pair_logps(own, *given))
    with caplog.at_level(logging.WARNING, "noisescope"):
        parts = train(place, tmp_path / "parts", objective, steps=3, **changes)
    for mine, theirs in zip(whole, parts, strict=True):
        assert mine.keys() == theirs.keys()
        for name in ("loss", "margin", "weight", "grad_norm", "pairs"):
            assert mine[name] == pytest.approx(theirs[name], abs=2e-5), name
    assert caplog.text.count("do not fit into memory: going on in smaller") == 1


def test_a_step_taken_again_is_noted_once():
    online = Online(OnlineConfig("ema"))
    reliability = Reliability(["ann"], 0.9)
    online.weigh(torch.ones(3, 1))
    reliability.note(np.array([0]), torch.tensor([0.2]))
    for part in (online, reliability):
        part.forget()
        part.finish(lambda tensor: tensor)
    assert not online.square.any()
    assert reliability.posterior.isnan().all()


def test_what_cannot_be_taken_in_parts_is_named(place, tmp_path, monkeypatch):
    own = TextAdapters.pair_logps
    monkeypatch.setattr(
        TextAdapters, "pair_logps", lambda *given: Memory(0).pair_logps(own, *given)
    )
    with pytest.raises(ModelError, match=r"pair p\d+ does not fit into memory, even alone"):
        train(place, tmp_path / "alone")
    with pytest.raises(ModelError, match="dr-dpo is a loss of the whole micro-batch") as refused:
        train(place, tmp_path / "together", "dr-dpo")
    assert "--accumulation" in str(refused.value.hint)
    assert not (tmp_path / "together").exists()


def test_other_errors_are_not_taken_for_a_lack_of_memory(place, tmp_path, monkeypatch):
    def broken(*_: Any) -> PairLogps:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(TextAdapters, "pair_logps", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(place, tmp_path / "broken")
