"""Diffusion LoRA replicas: l by the book, zero at the start, packed equal to apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers.tiny_diffusion import pairs_table, pictures, save

from noisescope.datasets.images import StoredImages
from noisescope.errors import DataError, RunError, UsageError
from noisescope.models.denoising import DrawConfig, draw_noise
from noisescope.models.diffusion import DiffusionPolicy
from noisescope.replicas.config import DiffusionLoraConfig
from noisescope.replicas.lora_image import (
    diffusion_cost,
    diffusion_replicas,
    train_diffusion_lora,
)
from noisescope.replicas.packed_image import DiffusionReplicas
from noisescope.replicas.reference_errors import ReferenceErrors
from noisescope.training.objectives import DPO
from noisescope.training.state import STATE_FILE

pytestmark = pytest.mark.slow

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


def silent(done: float, total: float, note: str | None) -> None:
    """Progress that nobody watches."""


def judged(policy: DiffusionPolicy, table: pa.Table = TABLE) -> DiffusionReplicas:
    """A learner that knows the reference's errors."""
    learner = diffusion_replicas(policy, table, CONFIG)
    learner.measure_reference(None, silent)
    return learner


@pytest.fixture
def policy(folder: Path) -> DiffusionPolicy:
    images = StoredImages(PICTURES)
    return DiffusionPolicy.load(str(folder), images, device="cpu", dtype="float32")


def test_halves_make_the_whole(policy: DiffusionPolicy) -> None:
    latents, framings = policy.latents(list(PICTURES)[:3])
    told = policy.conditioning(["a red circle"] * 3, framings)
    t = torch.tensor([3, 500, 999])
    with torch.inference_mode():
        whole = policy.pipeline.denoiser(latents, t, told)
        denoiser = policy.pipeline.denoiser
        halves = denoiser.above(denoiser.below(latents, t, told, denoiser.split()))
    torch.testing.assert_close(halves, whole, rtol=0, atol=0)


def test_margins_are_zero_at_the_start(policy: DiffusionPolicy) -> None:
    learner = judged(policy)
    assert len(learner.adapters.layers) == 32
    assert not learner.margins().any()
    assert (learner.held_out.sum(0) == 1).all()


@dataclass
class Plain:
    """Eq. 6 on two whole UNets, the adapters of one replica merged into one of them."""

    policy: DiffusionPolicy
    reference: UNet2DConditionModel
    tuned: UNet2DConditionModel

    @classmethod
    def of(cls, learner: DiffusionReplicas, replica: int, folder: Path) -> Plain:
        reference = UNet2DConditionModel.from_pretrained(folder / "unet")
        tuned = UNet2DConditionModel.from_pretrained(folder / "unet")
        for name, layer in learner.adapters.layers.items():
            with torch.no_grad():
                change = layer.scales[replica] * (layer.b[replica] @ layer.a[replica])
                tuned.get_submodule(name).weight += change
        return cls(learner.noised.policy, reference, tuned)

    def logratio(self, row: dict[str, Any], draw: int) -> float:
        """l of one pair at one of two draws."""
        t, eps = draw_noise(0, row["pair_id"], 2, (4, 8, 8), lambda u: int(u * 1000))
        step, noise = torch.tensor([int(t[draw])]), torch.from_numpy(eps[draw])[None]
        schedule, total = self.policy.pipeline.schedule, 0.0
        for sign, key in ((-1, row["chosen"]), (1, row["rejected"])):
            latent, framings = self.policy.latents([key])
            told = self.policy.conditioning([row["prompt"]], framings)
            noisy, target = (f(latent, step, noise) for f in (schedule.noisy, schedule.target))
            added = dict(told.added) or None
            with torch.inference_mode():
                errors = [
                    (unet(noisy, step, told.text, added_cond_kwargs=added).sample - target)
                    .square()
                    .mean()
                    for unet in (self.tuned, self.reference)
                ]
            total += sign * float(errors[0] - errors[1])
        return total


def disturbed(learner: DiffusionReplicas) -> DiffusionReplicas:
    """The learner as if trained: every B drawn at random."""
    torch.manual_seed(0)
    for layer in learner.adapters.layers.values():
        torch.nn.init.normal_(layer.b, std=0.3)
    return learner


def test_margins_equal_a_plain_transcription(policy: DiffusionPolicy, folder: Path) -> None:
    learner = disturbed(judged(policy))
    margins, plain = learner.margins(), Plain.of(learner, 1, folder)
    for number, row in enumerate(TABLE.slice(0, 3).to_pylist()):
        wanted = (plain.logratio(row, 0) + plain.logratio(row, 1)) / 2
        assert wanted != 0
        assert margins[1, number] / CONFIG.beta == pytest.approx(wanted, abs=1e-5)


def test_the_training_loss_equals_a_plain_transcription(
    policy: DiffusionPolicy, folder: Path
) -> None:
    """-log sigma(beta l) of every pair of a step, each under the draw it trains at."""
    learner, beta = disturbed(judged(policy)), 20.0
    rows = TABLE.to_pylist()
    for batch in learner.batches(0):
        for part, piece in zip(batch, learner.pieces(batch), strict=True):
            plain = Plain.of(learner, part.replica, folder)
            first = learner.data.fold_key[part.pairs] >> np.uint64(8)
            wanted = [
                plain.logratio(rows[pair], int(draw) % 2)
                for pair, draw in zip(part.pairs, first, strict=True)
            ]
            got = DPO(beta=beta)(piece.values).detach().numpy()
            np.testing.assert_allclose(got, np.logaddexp(0, -beta * np.array(wanted)), atol=1e-5)


def test_reference_errors_are_computed_once_and_found_by_a_flipped_copy(
    policy: DiffusionPolicy, tmp_path: Path
) -> None:
    rows: list[int] = []
    hook = policy.pipeline.model.conv_out.register_forward_hook(
        lambda module, arguments, output: rows.append(len(output))
    )
    learner = diffusion_replicas(policy, TABLE, CONFIG)
    each = 2 * TABLE.num_rows * CONFIG.draws
    assert ReferenceErrors.of(learner.noised, 12).unknown(tmp_path) == TABLE.num_rows
    learner.measure_reference(tmp_path, silent)
    assert sum(rows) == each
    learner.margins()
    assert sum(rows) == (CONFIG.replicas + 1) * each
    learner.detach()
    other = diffusion_replicas(policy, SWAPPED, CONFIG)
    assert ReferenceErrors.of(other.noised, 12).unknown(tmp_path) == 0
    other.measure_reference(tmp_path, silent)
    hook.remove()
    assert sum(rows) == (CONFIG.replicas + 1) * each
    np.testing.assert_array_equal(other.reference, learner.reference[::-1])
    assert learner.reference.shape == (2, TABLE.num_rows, CONFIG.draws)


def test_swapping_the_sides_negates_margins(policy: DiffusionPolicy) -> None:
    def margins(table: object) -> np.ndarray:
        learner = disturbed(judged(policy, table))
        found = learner.margins()
        learner.detach()
        return found

    forward = margins(TABLE)
    np.testing.assert_allclose(margins(SWAPPED), -forward, rtol=1e-4, atol=1e-3)


class KilledError(Exception):
    """Stands for a kill between two steps."""


def train(policy: DiffusionPolicy, directory: Path, *, dies_at: int = 0) -> dict[str, bytes]:
    """Six steps in `directory`, two checkpoints; the files it leaves."""
    config = DiffusionLoraConfig(
        replicas=2,
        rank=2,
        batch=6,
        draws=2,
        steps=6,
        learning_rate=3e-3,
        warmup=0.0,
        checkpoints=2,
        save_every=2,
    )

    def report(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == dies_at:
            raise KilledError

    torch.rand(torch.randint(9, (1,)).item())  # a process has drawn who knows how many before
    train_diffusion_lora(policy, TABLE, config, directory / "run", directory / "cache", report)
    return files(directory)


def files(directory: Path) -> dict[str, bytes]:
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def test_training_fits_its_own_half_and_a_killed_run_ends_in_the_same_bytes(
    policy: DiffusionPolicy, tmp_path: Path
) -> None:
    whole = train(policy, tmp_path / "whole")
    margins = pq.read_table(tmp_path / "whole" / "run" / "margins")
    assert sorted(set(margins["step"].to_pylist())) == [3, 6]
    last = margins.filter(pa.compute.equal(margins["step"], 6))
    own = last.filter(pa.compute.invert(last["held_out"]))["margin"].to_numpy()
    assert own.mean() > 0
    for step in (1, 5):
        place = tmp_path / f"killed at {step}"
        with pytest.raises(KilledError):
            train(policy, place, dies_at=step)
        assert train(policy, place) == whole
    lost = tmp_path / "whole" / "run" / "margins" / "part-000003.parquet"
    lost.unlink()
    assert train(policy, tmp_path / "whole") == whole
    assert f"run/replicas/{STATE_FILE}" in whole
    assert "run/replicas/1/pytorch_lora_weights.safetensors" in whole


def test_other_settings_do_not_continue_a_run(policy: DiffusionPolicy, tmp_path: Path) -> None:
    train_diffusion_lora(policy, TABLE, CONFIG, tmp_path)
    with pytest.raises(RunError, match="other settings"):
        train_diffusion_lora(policy, TABLE, replace(CONFIG, rank=3), tmp_path)


def test_cost_by_hand(policy: DiffusionPolicy, tmp_path: Path) -> None:
    """Reference, training and scoring share E and D: two equations give them, the third checks."""
    learner = diffusion_replicas(policy, TABLE, CONFIG)
    cost = diffusion_cost(learner, 3, [3], tmp_path)
    pairs, k, m = TABLE.num_rows, CONFIG.draws, CONFIG.replicas
    whole, wide = cost.reference / (pairs * k), cost.scoring / (pairs * k)
    d = (wide - whole) / (m - 1)
    e = whole - d
    assert 0 < e < d
    assert cost.training == pytest.approx(3 * m * CONFIG.batch * (e + 2 * d))
    learner.measure_reference(tmp_path, silent)
    assert diffusion_cost(learner, 3, [3], tmp_path).reference == 0
    learner.detach()


def test_draws_are_the_policys_own_unless_given(folder: Path) -> None:
    images = StoredImages(PICTURES)
    policy = DiffusionPolicy.load(str(folder), images, device="cpu", draws=DrawConfig.spread(3))
    learner = diffusion_replicas(policy, TABLE, replace(CONFIG, draws=None))
    assert learner.noised.draws == 3
    learner.detach()


def test_too_few_pairs_are_said(policy: DiffusionPolicy) -> None:
    with pytest.raises(DataError, match="too few"):
        diffusion_replicas(policy, TABLE.slice(0, 2), CONFIG)


def test_impossible_settings_are_named_together() -> None:
    with pytest.raises(UsageError, match=r"--replicas.*--draws.*--beta"):
        DiffusionLoraConfig(replicas=1, draws=0, beta=0)
