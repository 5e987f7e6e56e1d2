"""Settings of a training: presets with their sources, what overrides what, even weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch

from noisescope.auditing.train import default_objective
from noisescope.cli.train_options import LoopOptions
from noisescope.errors import UsageError
from noisescope.scoring.weights import WeightConfig, adaptive_weights
from noisescope.training.objectives import (
    CDPO,
    DPO,
    AdaptiveDPO,
    DistilledDPO,
    ForwardDPO,
    PairValues,
    SoftDPO,
)
from noisescope.training.policy.learner import judged_by
from noisescope.training.policy.pair_weights import PairWeights
from noisescope.training.policy.presets import PAPER, PRESETS
from noisescope.training.policy.settings import settled

DOC = (Path(__file__).parents[1] / "docs" / "train.md").read_text()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_documented_with_its_sources(name):
    for flag, (value, source) in PRESETS[name].settings.items():
        assert f"| `{name}` | {flag.replace('_', '-')} | {value} | {source} |" in DOC
    assert f"| `{name}` | pairs a device | {PRESETS[name].local_batch} | {PAPER}" in DOC


def test_presets_state_the_settings_of_the_paper():
    stated = {
        name: (
            one.values["beta"],
            one.values["rho"],
            one.values["k1"],
            one.values["batch"],
            one.local_batch,
        )
        for name, one in PRESETS.items()
    }
    assert stated == {
        "sd15": (1000.0, 15.0, 10.0, 128, 16),
        "sdxl": (2500.0, 15.0, 10.0, 128, 16),
        "hh": (0.1, 1.0, 10.0, 32, 4),
    }
    ablated = {name: "tried" in one.settings["k1"][1] for name, one in PRESETS.items()}
    assert ablated == {"sd15": True, "sdxl": False, "hh": False}


def test_a_flag_overrides_a_preset_and_a_preset_a_default():
    found = settled("image", named="sd15", objective="adaptive-dpo", batch=64)
    assert (found.beta, found.rho, found.k1, found.batch) == (1000.0, 15.0, 10.0, 64)
    assert (found.learning_rate, found.schedule, found.lora_r) == (1e-5, "constant", 8)
    plain = settled("text", objective="ln-dpo", lora_r=4)
    assert (plain.beta, plain.lora_alpha, plain.rho) == (2.0, 8.0, 1.0)
    assert settled("image", is_xl=True).beta == 2500.0
    text = settled("text", named="hh")
    assert text.full
    assert text.warmup_share(1000) == 0.15
    assert not settled("text", named="hh", full=False).full


def test_unfitting_presets_are_refused():
    with pytest.raises(UsageError, match="one of sd15, sdxl, hh"):
        settled("text", named="sd3")
    with pytest.raises(UsageError, match="is for image pairs, these are text"):
        settled("text", named="sdxl")


@pytest.mark.parametrize(
    ("modality", "flags", "named"),
    [
        ("text", {"weight_decay": -1.0}, "--weight-decay must be 0 or more"),
        ("text", {"seed": -1}, "--seed must be 0 or more"),
        ("text", {"full": True, "layers": 2}, "--layers is about adapters"),
        ("text", {"full": True, "targets": ("q_proj",)}, "--targets is about adapters"),
        ("text", {"named": "hh", "lora_r": 8}, "--lora-r is about adapters"),
        ("image", {"targets": ("to_q",)}, "--targets is about text models"),
        (
            "text",
            {"objective": "distilled-dpo", "online": "ema"},
            "--online is for adaptive-dpo and",
        ),
        ("text", {"online_replicas": 6}, "--online-replicas is about --online replicas"),
    ],
)
def test_flags_that_cannot_be_or_would_do_nothing_are_named(modality, flags, named):
    with pytest.raises(UsageError, match=named):
        settled(modality, **flags)


def test_u_of_zero_without_shift_makes_adaptive_dpo_dpo():
    weight, gamma = adaptive_weights(np.zeros(3), WeightConfig(k2=0.0, c2=0.0))
    ratio = torch.tensor([-2.0, 0.0, 5.0], dtype=torch.float64)
    adapted = PairValues(ratio, weight=torch.from_numpy(weight), gamma=torch.from_numpy(gamma))
    assert torch.equal(AdaptiveDPO()(adapted), DPO()(PairValues(ratio)))


def test_weights_that_say_nothing_are_known():
    flat = PairWeights(np.full(5, 0.7), np.zeros(5), "flat")
    assert flat.even
    assert not PairWeights(np.linspace(0.5, 1, 5), np.zeros(5), "a ramp").even
    assert not PairWeights(np.ones(5), np.linspace(-1, 0, 5), "shifts").even


def test_distilled_dpo_takes_beliefs_and_is_validated_on_labels():
    assert settled("text", objective="distilled-dpo").weighting == "margin"
    assert settled("text", objective="adaptive-dpo").weighting == "u"
    assert settled("text", objective="soft-dpo").weighting == "soft"
    assert settled("text", objective="forward-dpo").weighting == "prior"
    assert judged_by(ForwardDPO(0.3)) == DPO(0.3)
    assert judged_by(SoftDPO(0.3)) == DPO(0.3)
    for objective, scheme in (
        ("soft-dpo", "margin"),
        ("forward-dpo", "soft"),
        ("distilled-dpo", "soft"),
        ("dpo", "prior"),
    ):
        with pytest.raises(UsageError, match=f"{objective} does not work with .* with {scheme}"):
            settled("text", objective=objective).check_scheme(scheme)


def test_the_paper_s_settings_choose_its_objective():
    assert default_objective(None, None, {"k1": None, "epochs": 2.0}) == "forward-dpo"
    assert default_objective("hh", None, {}) == "adaptive-dpo"
    assert default_objective(None, 1.0, {}) == "adaptive-dpo"
    assert default_objective(None, None, {"online": "ema"}) == "adaptive-dpo"
    assert default_objective(None, None, {}, "none") == "dpo"
    assert default_objective(None, None, {}, "runs/a-run") == "forward-dpo"
    assert judged_by(DistilledDPO(0.3)) == DPO(0.3)
    assert judged_by(CDPO(0.3)) == CDPO(0.3)


def test_the_help_states_the_learning_rates_that_are_taken() -> None:
    hints = get_type_hints(LoopOptions, include_extras=True)
    shown = hints["learning_rate"].__metadata__[0].show_default
    rates = {
        (modality, full): settled(modality, full=full).learning_rate
        for modality in ("text", "image")
        for full in (None, True)
    }
    adapters, *weights = re.fullmatch(
        r"(.+); with --full (.+) for text, (.+) for images", shown
    ).groups()
    assert rates["text", None] == rates["image", None] == float(adapters)
    assert [rates["text", True], rates["image", True]] == list(map(float, weights))
