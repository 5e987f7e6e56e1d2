"""noisescope train on tiny diffusion pipelines: l by the book, and what diffusers loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from helpers.tiny_diffusion import pairs_table, pictures, save
from transformers import CLIPTextModel, CLIPTokenizer

from noisescope.datasets.images import StoredImages
from noisescope.models.denoising import generator
from noisescope.models.diffusion import DiffusionPolicy
from noisescope.pairs import Facts, PreferenceDataset, dataset_fingerprint
from noisescope.progress import Silent
from noisescope.training.pair_data import pair_data
from noisescope.training.policy.images import ImageSpace, image_adapters
from noisescope.training.policy.pair_weights import PairWeights
from noisescope.training.policy.run import fine_tune
from noisescope.training.policy.settings import settled

PICTURES = pictures(24)
TABLE = pairs_table(list(PICTURES))
IMAGES = StoredImages(PICTURES)
DATASET = PreferenceDataset(
    "pictures", "pictures", "test", "image", TABLE, Facts(), dataset_fingerprint(TABLE), IMAGES
)
RAMP = PairWeights(np.linspace(0.2, 1, 12), np.linspace(-0.5, 0, 12), "a ramp")


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = str(request.param)
    return save(kind, tmp_path_factory.mktemp(kind) / kind)


def policy_of(folder: Path) -> DiffusionPolicy:
    return DiffusionPolicy.load(str(folder), IMAGES, device="cpu", dtype="float32")


def trainable_of(policy: DiffusionPolicy, layers: int | None, replicas: int = 1):
    space = ImageSpace(policy, pair_data(TABLE), 0)
    made = image_adapters(
        space,
        replicas=replicas,
        rank=2,
        alpha=2.0,
        seeds=range(replicas),
        layers=layers,
        checkpointing=False,
    )
    torch.manual_seed(0)
    for layer in made.adapters.layers.values():
        torch.nn.init.normal_(layer.b, std=1.0)
    return made


@pytest.mark.parametrize("layers", [None, 1])
def test_l_equals_a_plain_transcription(folder: Path, layers: int | None) -> None:
    """Eq. 6 on two whole UNets, adapters merged into one, the same (t, eps) for all four errors."""
    policy = policy_of(folder)
    policy_in_training = trainable_of(policy, layers, replicas=2)
    pairs = np.array([2, 5])
    with torch.no_grad():
        found = policy_in_training.pair_logps(pairs, 3, (0, 1)).logratios
    reference = UNet2DConditionModel.from_pretrained(folder / "unet")
    schedule = policy.pipeline.schedule
    data = policy_in_training.data
    wanted = np.zeros((2, 2))
    for replica in (0, 1):
        tuned = UNet2DConditionModel.from_pretrained(folder / "unet")
        for name, layer in policy_in_training.adapters.layers.items():
            weight = tuned.get_submodule(name).weight
            with torch.no_grad():
                weight += layer.scales[replica] * (layer.b[replica] @ layer.a[replica])
        for column, pair in enumerate(pairs):
            source = generator(0, data.pair_ids[pair], 3)
            t = torch.tensor([int(source.random() * 1000)])
            eps = torch.from_numpy(source.standard_normal(policy.latent_shape, np.float32))[None]
            error = {}
            for side, index in (("w", data.chosen[pair]), ("l", data.rejected[pair])):
                latent, framing = policy.latents([data.items[index].response])
                told = policy.conditioning([data.items[index].prompt], framing)
                for name, unet in (("policy", tuned), ("reference", reference)):
                    with torch.inference_mode():
                        guess = unet(
                            schedule.noisy(latent, t, eps),
                            t,
                            encoder_hidden_states=told.text,
                            added_cond_kwargs=dict(told.added) or None,
                        ).sample
                    error[side, name] = (guess - eps).square().mean()
            gaps = {side: error[side, "policy"] - error[side, "reference"] for side in "wl"}
            wanted[replica, column] = float(-(gaps["w"] - gaps["l"]))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-5)
    assert abs(wanted).max() > 1e-3


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("sd", tmp_path_factory.mktemp("one") / "sd")


def quick(**changes: object):
    """Four quick steps with all pairs in each."""
    settings = {"objective": "adaptive-dpo", "steps": 4, "batch": 12, "learning_rate": 0.02}
    settings |= {"validation": 0.0, "warmup": 0.0}
    settings |= {} if changes.get("full") else {"lora_r": 2, "lora_alpha": 2.0}
    return settled("image", **(settings | changes))


def test_lora_training_is_saved_as_diffusers_loads_it(sd: Path, tmp_path: Path) -> None:
    policy = policy_of(sd)
    done = fine_tune(DATASET, policy, quick(), weights=RAMP, output=tmp_path / "tuned")
    result = done.manifest()["result"]
    assert result["first"]["margin"] == 0
    assert result["last"]["margin"] > 0
    assert "load_lora_weights" in (done.directory / "README.md").read_text()
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(sd / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(sd / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(sd / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(sd / "unet"),
        scheduler=DDPMScheduler.from_pretrained(sd / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    latents, framings = policy.latents(list(PICTURES)[:2])
    told = policy.conditioning(["a red circle"] * 2, framings)
    t = torch.tensor([3, 500])
    with torch.inference_mode():
        before = pipeline.unet(latents, t, encoder_hidden_states=told.text).sample
        pipeline.load_lora_weights(done.directory)
        after = pipeline.unet(latents, t, encoder_hidden_states=told.text).sample
    layers = [m for m in pipeline.unet.modules() if type(m).__module__.startswith("peft.tuners")]
    assert layers
    assert not torch.allclose(before, after, atol=1e-4)


def test_the_whole_unet_trains_and_loads(sd: Path, tmp_path: Path) -> None:
    settings = quick(full=True, learning_rate=1e-3)
    done = fine_tune(DATASET, policy_of(sd), settings, weights=RAMP, output=tmp_path / "tuned")
    assert done.manifest()["result"]["last"]["margin"] > 0
    tuned = UNet2DConditionModel.from_pretrained(done.directory, subfolder="unet")
    base = UNet2DConditionModel.from_pretrained(sd / "unet")
    moved = [
        not torch.equal(*both) for both in zip(tuned.parameters(), base.parameters(), strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)


@pytest.mark.parametrize("online", ["replicas", "ema"])
def test_online_weights_for_images(sd: Path, tmp_path: Path, online: str) -> None:
    count = {"online_replicas": 2} if online == "replicas" else {}
    settings = quick(online=online, validation=0.3, **count)
    done = fine_tune(DATASET, policy_of(sd), settings, output=tmp_path / "tuned")
    result = done.manifest()["result"]
    assert np.isfinite(result["validation"]["loss"])
    assert result["last"]["margin"] > 0


class Recomputed(Silent):
    """Whether the UNet recomputes activations while it trains."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.unet, self.seen = unet, set[bool]()

    def note(self, text: str) -> None:
        self.seen.add(bool(self.unet.is_gradient_checkpointing))


@pytest.mark.parametrize("full", [False, True])
def test_recomputed_activations_change_nothing(sd: Path, tmp_path: Path, full: bool) -> None:
    written = []
    for name, saving in (("plain", False), ("saving", True)):
        settings = quick(checkpointing=saving, steps=2, full=full, learning_rate=1e-3)
        policy = policy_of(sd)
        recomputed = Recomputed(policy.pipeline.model)
        done = fine_tune(
            DATASET, policy, settings, weights=RAMP, output=tmp_path / name, reporter=recomputed
        )
        assert recomputed.seen == {saving}
        history = (done.directory / "history.jsonl").read_text()
        written.append([float(part.split(",")[0]) for part in history.split('"loss": ')[1:]])
    np.testing.assert_allclose(*written, rtol=1e-4)
