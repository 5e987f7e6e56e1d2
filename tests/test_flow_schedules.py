"""Tables of each scheduler against diffusers' own formulas; unknown ones are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from helpers.tiny_diffusion import items, pictures, save
from hypothesis import given
from hypothesis import strategies as st

from noisescope.datasets.images import StoredImages, decode
from noisescope.errors import ModelError
from noisescope.models.diffusion import DiffusionPolicy
from noisescope.models.pipeline_files import find_pipeline
from noisescope.models.schedule import schedule_of

Z, EPS = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([5, 400, 990])
PICTURES = pictures(2)
KEYS = list(PICTURES)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddpm_tables_are_the_schedulers_own(prediction: str) -> None:
    made = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction)
    schedule = schedule_of("DDIMScheduler", made.config)
    torch.testing.assert_close(schedule.noisy(Z, T, EPS), made.add_noise(Z, EPS, T))
    target = EPS if prediction == "epsilon" else made.get_velocity(Z, EPS, T)
    torch.testing.assert_close(schedule.target(Z, T, EPS), target)
    assert schedule.times.tolist() == list(range(1000))
    assert schedule.at(0.25) == 250
    assert schedule.drawn(0.9999) == 999


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_edm_denoiser_returns_the_image(kind: Any, prediction: str) -> None:
    """precondition_outputs of our target is z, at the noise level that the model is given."""
    made = kind(sigma_data=0.7, prediction_type=prediction)
    schedule = schedule_of(kind.__name__, made.config)
    sigma = (4 * schedule.times[T]).exp().view(-1, 1, 1, 1)
    noisy = Z + sigma * EPS
    wanted = made.precondition_inputs(noisy, sigma)
    torch.testing.assert_close(schedule.noisy(Z, T, EPS), wanted, rtol=1e-4, atol=1e-4)
    found = made.precondition_outputs(noisy, schedule.target(Z, T, EPS), sigma)
    torch.testing.assert_close(found, Z, rtol=1e-3, atol=1e-3)


def flow(**settings: Any) -> Any:
    return FlowMatchEulerDiscreteScheduler(**settings)


def test_flow_tables_are_the_schedulers_own() -> None:
    made = flow(shift=3.0)
    schedule = schedule_of("FlowMatchEulerDiscreteScheduler", made.config)
    times = schedule.times[T]
    torch.testing.assert_close(schedule.noisy(Z, T, EPS), made.scale_noise(Z, times, EPS))
    torch.testing.assert_close(schedule.target(Z, T, EPS), EPS - Z)
    torch.testing.assert_close(schedule.times, 1000 * schedule.noise)


def test_dynamic_shift_is_that_of_the_images_tokens() -> None:
    made = flow(use_dynamic_shifting=True)
    found = [
        schedule_of("FlowMatchEulerDiscreteScheduler", made.config, tokens=tokens).noise[499]
        for tokens in (256, 4096)
    ]
    wanted = [np.exp(mu) / (np.exp(mu) + 1) for mu in (0.5, 1.15)]  # of t = 1/2
    np.testing.assert_allclose([float(value) for value in found], wanted, rtol=1e-5)


def test_flow_sigmas_of_a_solver_are_shifted_as_it_shifts_them() -> None:
    settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    made = UniPCMultistepScheduler(**settings)
    schedule = schedule_of("UniPCMultistepScheduler", made.config)
    made.set_timesteps(999)
    own = made.sigmas[:-1].flip(0)
    np.testing.assert_allclose(schedule.noise[:-1], own, atol=5e-3)
    torch.testing.assert_close(schedule.target(Z, T, EPS), EPS - Z)


@given(st.floats(0, 1, exclude_max=True))
def test_logit_normal_steps(u: float) -> None:
    schedule = schedule_of("FlowMatchEulerDiscreteScheduler", flow().config, density="logit_normal")
    assert 0 <= schedule.drawn(u) < 1000
    assert abs(schedule.drawn(u) + schedule.drawn(1 - u) - 999) <= 1 or u == 0


def test_logit_normal_quartiles() -> None:
    schedule = schedule_of("FlowMatchEulerDiscreteScheduler", flow().config, density="logit_normal")
    drawn = [schedule.drawn((k + 0.5) / 4000) / 1000 for k in range(4000)]
    logits = torch.logit(torch.tensor(drawn) + 0.0005)
    assert float(logits.mean()) == pytest.approx(0, abs=0.01)
    assert float(logits.std()) == pytest.approx(1, abs=0.02)


def test_shares_of_a_flow_are_matched_by_noise_over_signal() -> None:
    known = schedule_of(
        "DDIMScheduler",
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    )
    for schedule in (
        schedule_of("FlowMatchEulerDiscreteScheduler", flow(shift=3.0).config),
        schedule_of("EDMEulerScheduler", EDMEulerScheduler().config),
    ):
        for share in (0.03, 0.25, 0.45, 0.65):
            a, b = known.at(share), schedule.at(share)
            wanted = float(known.noise[a] / known.signal[a])
            assert float(schedule.noise[b] / schedule.signal[b]) == pytest.approx(wanted, rel=0.02)


REFUSED = {
    "unknown": ("DDPMWuerstchenScheduler", {}, "DDPMWuerstchenScheduler is not supported"),
    "continuous": ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type"),
    "sample": ("DDPMScheduler", {"prediction_type": "sample"}, "prediction_type sample"),
    "half a flow": ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "prediction_type"),
    "other half": (
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction"},
        "use_flow_sigmas",
    ),
    "inverted": ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas"),
    "UNet": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "not a UNet"),
    "consistency": ("CMStochasticIterativeScheduler", {}, "is not supported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_processes_are_refused_by_name(name: str) -> None:
    scheduler, config, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        schedule_of(scheduler, config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sdxl", tmp_path_factory.mktemp("sdxl") / "sdxl")


def rescheduled(folder: Path, name: str, **config: Any) -> Path:
    """Give a pipeline another scheduler."""
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", name]}))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return folder


def test_a_pipeline_with_an_unknown_scheduler_is_refused(folder: Path) -> None:
    rescheduled(folder, "DDPMWuerstchenScheduler")
    with pytest.raises(ModelError, match=re.escape(f"{folder}: scheduler: DDPMWuerstchen")):
        find_pipeline(str(folder))


def test_a_unet_with_an_edm_schedule_and_latent_statistics(folder: Path) -> None:
    """Playground v2.5's kind: (z - mean) / std * scale, noised and predicted as EDM does."""
    rescheduled(folder, "EDMEulerScheduler", prediction_type="v_prediction", sigma_data=0.5)
    config = folder / "vae" / "config.json"
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.5, 2.0, 0.5, 1.0]
    statistics = {"latents_mean": mean, "latents_std": std, "scaling_factor": 0.5}
    config.write_text(json.dumps(json.loads(config.read_text()) | statistics))
    policy = DiffusionPolicy.load(
        str(folder), StoredImages(PICTURES), device="cpu", dtype="float32"
    )
    pipe = policy.pipeline.pipe
    pixels = torch.from_numpy(np.stack([np.array(decode(PICTURES[key])) for key in KEYS]))
    t, eps = torch.tensor([300, 900]), torch.randn(2, 4, 8, 8)
    with torch.inference_mode():
        latents, framings = policy.latents(KEYS)
        mode = pipe.vae.encode(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mode()
        spread = torch.tensor(std).view(1, 4, 1, 1)
        wanted = (mode - torch.tensor(mean).view(1, 4, 1, 1)) / spread * 0.5
        torch.testing.assert_close(latents, wanted, rtol=1e-3, atol=1e-3)
        conditioning = policy.conditioning(["a red circle"] * 2, framings)
        found = policy.pipeline.denoiser.errors(latents, conditioning, t, eps)
        scheduler = EDMEulerScheduler.from_pretrained(folder / "scheduler")
        times = scheduler.timesteps.flip(0)[t]
        sigma = scheduler.sigmas[:-1].flip(0)[t].view(-1, 1, 1, 1)
        noisy = latents + sigma * eps
        guess = pipe.unet(
            scheduler.precondition_inputs(noisy, sigma),
            times,
            encoder_hidden_states=conditioning.text,
            added_cond_kwargs=dict(conditioning.added),
        ).sample
        denoised = scheduler.precondition_outputs(noisy, guess, sigma)
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2  # of equation 8
        plain = (weight * (denoised - latents) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4)
    assert all(np.isfinite(group).all() for group in policy.features(items(KEYS)).values())
