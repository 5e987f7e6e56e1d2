"""Pipelines with a transformer through replicas, train and evaluate: what diffusers loads back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers.tiny_diffusion import CAPTIONS, pairs_table, pictures
from helpers.tiny_transformers import SCHEDULES, transformer_pipeline

from noisescope.auditing.train import train
from noisescope.datasets.images import StoredImages
from noisescope.errors import UsageError
from noisescope.evaluate.comparison import Prompt
from noisescope.evaluate.generate import GenerationSettings
from noisescope.evaluate.images import ImageGenerator
from noisescope.evaluate.models import find_model
from noisescope.models.diffusion import DiffusionPolicy
from noisescope.pairs import Facts, PreferenceDataset, dataset_fingerprint
from noisescope.replicas.config import DiffusionLoraConfig
from noisescope.replicas.lora_image import diffusion_replicas, train_diffusion_lora
from noisescope.training.policy.run import fine_tune
from noisescope.training.policy.settings import settled

pytestmark = pytest.mark.slow

PICTURES = pictures(24)
TABLE = pairs_table(list(PICTURES))
IMAGES = StoredImages(PICTURES)
DATASET = PreferenceDataset(
    "pictures", "pictures", "test", "image", TABLE, Facts(), dataset_fingerprint(TABLE), IMAGES
)


@pytest.fixture(scope="module", params=list(SCHEDULES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = str(request.param)
    return transformer_pipeline(kind, tmp_path_factory.mktemp(kind) / kind)


def load(folder: Path) -> DiffusionPolicy:
    return DiffusionPolicy.load(str(folder), IMAGES, device="cpu", dtype="float32", image_size=16)


def silent(done: float, total: float, note: str | None) -> None:
    """Progress that nobody watches."""


def test_replicas_start_at_zero_learn_their_half_and_are_independent(
    folder: Path, tmp_path: Path
) -> None:
    config = DiffusionLoraConfig(
        replicas=2, rank=2, batch=6, draws=2, steps=6, learning_rate=1e-2, warmup=0.0, beta=100
    )
    policy = load(folder)
    learner = diffusion_replicas(policy, TABLE, config)
    learner.measure_reference(None, silent)
    start = learner.margins()
    assert abs(start).max() < 1e-3
    torch.manual_seed(0)
    for layer in learner.adapters.layers.values():
        torch.nn.init.normal_(layer.b, std=2.0)
    both = learner.margins()
    with torch.no_grad():
        for layer in learner.adapters.layers.values():
            layer.b[0] = 0
    alone = learner.margins()
    assert abs(alone[0]).max() < 1e-3 < abs(both[0]).max()
    np.testing.assert_array_equal(alone[1], both[1])
    learner.detach()
    train_diffusion_lora(policy, TABLE, config, tmp_path)
    margins = pq.read_table(tmp_path / "margins").to_pandas()
    assert margins[~margins["held_out"]]["margin"].mean() > 0


def settings(**changes: object):
    chosen = {"objective": "dpo", "steps": 4, "batch": 12, "validation": 0.0, "warmup": 0.0}
    return settled("image", **(chosen | changes))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # DPMSolver
@pytest.mark.parametrize("full", [False, True])
def test_trained_weights_load_into_diffusers_and_generate(
    folder: Path, tmp_path: Path, full: bool
) -> None:
    kind = folder.name
    if kind == "pixart" and not full:
        with pytest.raises(UsageError, match="no LoRA weights into a PixArtSigmaPipeline"):
            train(DATASET, str(folder), objective="dpo", device="cpu", image_size=16)
        return
    policy = load(folder)
    lora = {} if full else {"lora_r": 2, "lora_alpha": 2.0, "checkpointing": True}
    rate = 1e-3 if full else 0.01
    chosen = settings(full=full, learning_rate=rate, **lora)
    done = fine_tune(DATASET, policy, chosen, output=tmp_path / "tuned")
    result = done.manifest()["result"]
    assert result["first"]["margin"] == pytest.approx(0, abs=1e-3)
    assert result["last"]["margin"] > 0
    assert ("transformer=model" in (done.directory / "README.md").read_text()) == full

    prompts = [Prompt(CAPTIONS[0]), Prompt(CAPTIONS[1])]
    ways = GenerationSettings(steps=3, size=16)
    own = ImageGenerator(find_model(str(folder)), ways, "cpu", "own")
    tuned = ImageGenerator(find_model(str(done.directory), base=str(folder)), ways, "cpu", "tuned")
    before, after = own.outputs(prompts), tuned.outputs(prompts)
    assert before == own.outputs(prompts)
    assert before[1] == own.outputs(prompts[1:])[0]  # whatever is beside it
    assert (before != after) or not full
    if not full:  # the same weights by diffusers' own loading
        plain = DiffusionPipeline.from_pretrained(folder)
        plain.load_lora_weights(done.directory)
        found = tuned.pipeline.transformer.state_dict()
        for name, value in plain.transformer.state_dict().items():
            torch.testing.assert_close(found[name], value.to(found[name].dtype))
