"""Diffusion LoRA replicas: l by the book, zero at the start, packed equal to apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_diffusion import pairs_table, pictures, save

from noisescope.errors import UsageError
from noisescope.images import StoredImages
from noisescope.policies.denoising import draw_noise
from noisescope.policies.diffusion import DiffusionPolicy
from noisescope.policies.unet_halves import decode, encode
from noisescope.replicas.lora_diffusion import DiffusionLoraConfig, diffusion_replicas

PICTURES = pictures(24)
TABLE = pairs_table(list(PICTURES))
SWAPPED = TABLE.rename_columns({"chosen": "rejected", "rejected": "chosen"}).select(
    TABLE.column_names
)
CONFIG = DiffusionLoraConfig(replicas=2, rank=2, batch=4, draws=2, rows=12, steps=3)


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = str(request.param)
    prediction = "epsilon" if kind == "sd" else "v_prediction"
    return save(kind, tmp_path_factory.mktemp(kind) / kind, prediction=prediction)


@pytest.fixture
def policy(folder: Path) -> DiffusionPolicy:
    images = StoredImages(PICTURES)
    return DiffusionPolicy.load(str(folder), images, device="cpu", dtype="float32")


def test_halves_make_the_whole(policy: DiffusionPolicy) -> None:
    latents, framings = policy.latents(list(PICTURES)[:3])
    told = policy.conditioning(["a red circle"] * 3, framings)
    t = torch.tensor([3, 500, 999])
    with torch.inference_mode():
        whole = policy.denoise(latents, t, told)
        halves = decode(policy.pipeline.unet, encode(policy.pipeline.unet, latents, t, told))
    torch.testing.assert_close(halves, whole, rtol=0, atol=0)


def test_margins_are_zero_at_the_start(policy: DiffusionPolicy) -> None:
    learner = diffusion_replicas(policy, TABLE, CONFIG)
    assert len(learner.adapters.layers) == 32
    assert not learner.margins().any()
    assert (learner.held_out.sum(0) == 1).all()


def test_margins_equal_a_plain_transcription(policy: DiffusionPolicy, folder: Path) -> None:
    """Eq. 6 on two whole UNets, the adapters merged into one of them."""
    learner = diffusion_replicas(policy, TABLE, CONFIG)
    for layer in learner.adapters.layers.values():
        torch.nn.init.normal_(layer.b, std=0.3)
    margins = learner.margins()
    reference = UNet2DConditionModel.from_pretrained(folder / "unet")
    tuned = UNet2DConditionModel.from_pretrained(folder / "unet")
    for name, layer in learner.adapters.layers.items():
        weight = tuned.get_submodule(name).weight
        with torch.no_grad():
            weight += layer.scales[1] * (layer.b[1] @ layer.a[1])
    schedule = policy.pipeline.schedule
    for number, row in enumerate(TABLE.slice(0, 3).to_pylist()):
        t, eps = draw_noise(0, row["pair_id"], 2, (4, 8, 8), 1000)
        total = 0.0
        for draw in range(2):
            step, noise = torch.tensor([int(t[draw])]), torch.from_numpy(eps[draw])[None]
            for sign, key in ((-1, row["chosen"]), (1, row["rejected"])):
                latent, framings = policy.latents([key])
                told = policy.conditioning([row["prompt"]], framings)
                noisy = schedule.noisy(latent, step, noise)
                target = schedule.target(latent, step, noise)
                added = dict(told.added) or None
                with torch.inference_mode():
                    errors = [
                        (unet(noisy, step, told.text, added_cond_kwargs=added).sample - target)
                        .square()
                        .mean()
                        for unet in (tuned, reference)
                    ]
                total += sign * float(errors[0] - errors[1]) / 2
        assert total != 0
        assert margins[1, number] / CONFIG.beta == pytest.approx(total, abs=1e-5)


def test_reference_errors_are_computed_once(policy: DiffusionPolicy) -> None:
    learner = diffusion_replicas(policy, TABLE, CONFIG)
    rows: list[int] = []
    hook = policy.pipeline.unet.conv_out.register_forward_hook(
        lambda module, arguments, output: rows.append(len(output))
    )
    first, computed = learner.margins(), sum(rows)
    again, more = learner.margins(), sum(rows) - computed
    hook.remove()
    np.testing.assert_array_equal(first, again)
    each = 2 * TABLE.num_rows * CONFIG.draws
    assert (computed, more) == ((CONFIG.replicas + 1) * each, CONFIG.replicas * each)


def test_swapping_the_sides_negates_margins(policy: DiffusionPolicy) -> None:
    def margins(table: object) -> np.ndarray:
        learner = diffusion_replicas(policy, table, CONFIG)
        torch.manual_seed(0)
        for layer in learner.adapters.layers.values():
            torch.nn.init.normal_(layer.b, std=0.3)
        found = learner.margins()
        learner.detach()
        return found

    forward = margins(TABLE)
    np.testing.assert_allclose(margins(SWAPPED), -forward, rtol=1e-4, atol=1e-3)


def test_training_fits_its_own_half_and_repeats_itself(
    policy: DiffusionPolicy, tmp_path: Path
) -> None:
    config = DiffusionLoraConfig(
        replicas=2, rank=2, batch=6, draws=2, steps=6, learning_rate=3e-3, warmup=0.0
    )

    def run(directory: Path) -> tuple[np.ndarray, np.ndarray]:
        learner = diffusion_replicas(policy, TABLE, config)
        try:
            return learner.run(directory), learner.held_out
        finally:
            learner.detach()

    margins, held_out = run(tmp_path / "one")
    again, _ = run(tmp_path / "two")
    np.testing.assert_array_equal(margins, again)
    assert margins[~held_out].mean() > 0
    saved = tmp_path / "one" / "1" / "pytorch_lora_weights.safetensors"
    assert saved.read_bytes() == (tmp_path / "two" / "1" / saved.name).read_bytes()


def test_impossible_settings_are_named_together() -> None:
    with pytest.raises(UsageError, match=r"--replicas.*--draws.*--beta"):
        DiffusionLoraConfig(replicas=1, draws=0, beta=0)
