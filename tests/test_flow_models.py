"""Transformers with a flow: features, log-ratio and gradient against plain steps of diffusers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers.hub import Hub
from helpers.tiny_diffusion import CAPTIONS, items, pairs_table, pictures
from helpers.tiny_transformers import SCHEDULES, transformer_pipeline
from peft import LoraConfig, inject_adapter_in_model

from noisescope.datasets.images import StoredImages, decode
from noisescope.errors import ModelError, UsageError
from noisescope.models.diffusion import DiffusionPolicy
from noisescope.models.pipeline_files import find_pipeline
from noisescope.training.objectives import DPO, PairValues
from noisescope.training.pair_data import pair_data
from noisescope.training.policy.images import ImageSpace, image_adapters

PICTURES = pictures(8)
KEYS = list(PICTURES)
IMAGES = StoredImages(PICTURES)
ITEMS = items(KEYS)
TABLE = pairs_table(KEYS)


def load(folder: Path) -> DiffusionPolicy:
    return DiffusionPolicy.load(str(folder), IMAGES, device="cpu", dtype="float32", image_size=16)


@pytest.fixture(scope="module", params=list(SCHEDULES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = str(request.param)
    return transformer_pipeline(kind, tmp_path_factory.mktemp(kind) / kind)


@pytest.fixture
def policy(folder: Path) -> DiffusionPolicy:
    return load(folder)


def half(tensor: torch.Tensor) -> torch.Tensor:
    """Rounded as the caches of latents and embeddings round."""
    return tensor.half().float()


@dataclass
class Plain:
    """A training step as diffusers' scripts write it, on a pipeline that diffusers itself loads."""

    pipe: Any
    kind: str

    @classmethod
    def of(cls, folder: Path) -> Plain:
        return cls(DiffusionPipeline.from_pretrained(folder), folder.name)

    def latent(self, key: str) -> torch.Tensor:
        """[1, C, h, w] of a picture, scaled as the pipeline undoes it."""
        pixels = torch.from_numpy(np.array(decode(PICTURES[key]))).permute(2, 0, 1)[None]
        pixels, vae = pixels.float() / 127.5 - 1, self.pipe.vae
        with torch.no_grad():
            if self.kind == "qwen":
                mode = vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]
                mean, std = (torch.tensor(vae.config[n]) for n in ("latents_mean", "latents_std"))
                return (mode - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
            mode = vae.encode(pixels).latent_dist.mode()
            return (mode - (vae.config.shift_factor or 0)) * vae.config.scaling_factor

    def velocity(self, noisy: torch.Tensor, sigma: torch.Tensor, prompt: str) -> torch.Tensor:
        """The model's prediction for one noisy latent."""
        return {
            "sd3": self._sd3,
            "flux": self._flux,
            "qwen": self._qwen,
            "pixart": self._pixart,
        }[self.kind](noisy, sigma, prompt)

    def _sd3(self, noisy: torch.Tensor, sigma: torch.Tensor, prompt: str) -> torch.Tensor:
        with torch.no_grad():
            text, _, pooled, _ = self.pipe.encode_prompt(prompt, prompt, prompt)
        return self.pipe.transformer(noisy, half(text), half(pooled), sigma * 1000).sample

    def _flux(self, noisy: torch.Tensor, sigma: torch.Tensor, prompt: str) -> torch.Tensor:
        with torch.no_grad():
            text, pooled, text_ids = self.pipe.encode_prompt(prompt, prompt)
        places = torch.tensor([[0.0, row, column] for row in range(4) for column in range(4)])
        answer = self.pipe.transformer(
            self._patches(noisy),
            half(text),
            half(pooled),
            sigma,
            places,
            text_ids,
            torch.tensor([3.5]),
        ).sample
        return self._picture(answer)

    def _qwen(self, noisy: torch.Tensor, sigma: torch.Tensor, prompt: str) -> torch.Tensor:
        with torch.no_grad():
            text, mask = self.pipe.encode_prompt(prompt)
        answer = self.pipe.transformer(
            self._patches(noisy), half(text), mask, sigma, img_shapes=[[(1, 4, 4)]]
        ).sample
        return self._picture(answer)

    def _pixart(self, noisy: torch.Tensor, sigma: torch.Tensor, prompt: str) -> torch.Tensor:
        with torch.no_grad():
            text, mask, _, _ = self.pipe.encode_prompt(prompt, False)
        none = {"resolution": None, "aspect_ratio": None}
        answer = self.pipe.transformer(
            noisy, half(text), sigma * 1000, none, encoder_attention_mask=mask
        ).sample
        return answer.chunk(2, dim=1)[0]

    @staticmethod
    def _patches(latent: torch.Tensor) -> torch.Tensor:
        """[1, 16, 4 C]: squares of 2 x 2, channel by channel."""
        return torch.nn.functional.unfold(latent, 2, stride=2).transpose(1, 2)

    @staticmethod
    def _picture(patches: torch.Tensor) -> torch.Tensor:
        """The inverse of `_patches`."""
        return torch.nn.functional.fold(patches.transpose(1, 2), 8, 2, stride=2)

    def error(self, key: str, prompt: str, sigma: float, eps: torch.Tensor) -> torch.Tensor:
        """|v_theta - v|^2 of x_t = (1 - t) z + t eps, v = eps - z, mean over the latent."""
        z, t = half(self.latent(key)), torch.tensor([sigma])
        guess = self.velocity((1 - t) * z + t * eps, t, prompt)
        return ((guess - (eps - z)) ** 2).mean()


def test_errors_equal_a_plain_step(folder: Path, policy: DiffusionPolicy) -> None:
    plain, denoiser = Plain.of(folder), policy.pipeline.denoiser
    t, eps = torch.tensor([20, 400, 950]), torch.randn(3, *policy.latent_shape)
    with torch.inference_mode():
        latents, framings = policy.latents(KEYS[:3])
        conditioning = policy.conditioning(CAPTIONS, framings)
        found = denoiser.errors(latents, conditioning, t, eps)
        sigmas = denoiser.schedule.noise[t].tolist()
        wanted = torch.stack(
            [plain.error(*case) for case in zip(KEYS, CAPTIONS, sigmas, eps[:, None], strict=False)]
        )
    torch.testing.assert_close(latents[0], plain.latent(KEYS[0])[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_features_do_not_depend_on_batch_mates(policy: DiffusionPolicy) -> None:
    whole, alone = policy.features(ITEMS), policy.features(ITEMS[5:6])
    shapes = {name: value.shape for name, value in whole.items()}
    assert shapes["error_statistics"] == (8, 4 * (6 + policy.latent_shape[0]))
    assert shapes["caption_pmi"] == (8, 9)
    for name, value in whole.items():
        np.testing.assert_allclose(alone[name][0], value[5], rtol=1e-3, atol=1e-4)
        assert value.std(axis=0).max() > 1e-3


def test_halves_make_the_whole(policy: DiffusionPolicy) -> None:
    denoiser = policy.pipeline.denoiser
    noisy, framings = policy.latents(KEYS[:3])
    conditioning, t = policy.conditioning(CAPTIONS, framings), torch.tensor([3, 500, 999])
    index = torch.tensor([2, 0, 0])
    with torch.inference_mode():
        whole = denoiser(noisy, t, conditioning)
        for split in range(1, len(denoiser.blocks)):
            half = denoiser.below(noisy, t, conditioning, split)
            torch.testing.assert_close(denoiser.above(half), whole, rtol=0, atol=1e-6)
            rows = denoiser.above(half.rows(index))
            torch.testing.assert_close(rows, whole[index], rtol=1e-5, atol=1e-5)


def with_lora(plain: Plain, layers: dict[str, Any]) -> dict[str, Any]:
    """Put ours adapters' values into peft's own layers; these, by name."""
    config = LoraConfig(r=2, lora_alpha=2, target_modules=list(layers))
    inject_adapter_in_model(config, plain.pipe.transformer)
    own = {}
    for name, layer in layers.items():
        peft = plain.pipe.transformer.get_submodule(name)
        with torch.no_grad():
            peft.lora_A["default"].weight.copy_(layer.a[0])
            peft.lora_B["default"].weight.copy_(layer.b[0])
        own[name] = (peft.lora_A["default"].weight, peft.lora_B["default"].weight)
    return own


@pytest.mark.parametrize("layers", [None, 1])
def test_log_ratio_and_gradient_equal_a_plain_step(
    folder: Path, policy: DiffusionPolicy, layers: int | None
) -> None:
    """-log sigmoid(beta l) of two pairs: adapters by peft, step by hand, autograd's gradient."""
    space = ImageSpace(policy, pair_data(TABLE), 0)
    ours = image_adapters(
        space, replicas=1, rank=2, alpha=2.0, seeds=[3], layers=layers, checkpointing=False
    )
    torch.manual_seed(0)
    for layer in ours.adapters.layers.values():
        torch.nn.init.normal_(layer.b, std=5.0)
    assert len(ours.adapters.layers) >= 3
    pairs, beta = np.array([0, 2]), 3.0
    found = ours.pair_logps(pairs, 5).logratios[0]
    DPO(beta=beta)(PairValues(found)).sum().backward()

    reference, plain = Plain.of(folder), Plain.of(folder)
    own = with_lora(plain, ours.adapters.layers)
    wanted = []
    for pair in pairs:
        row = TABLE.slice(int(pair), 1).to_pylist()[0]
        drawn = space.noised(np.array([pair]), 5)
        sigma = float(policy.pipeline.schedule.noise[drawn.t[0]])
        z = policy.latents([row["chosen"]])[0]
        eps = drawn.target[:1] + z
        errors = {}
        for name, model in (("policy", plain), ("reference", reference)):
            for side in ("chosen", "rejected"):
                errors[name, side] = model.error(row[side], row["prompt"], sigma, eps)
        gaps = {
            s: errors["policy", s] - errors["reference", s].detach() for s in ("chosen", "rejected")
        }
        wanted.append(-(gaps["chosen"] - gaps["rejected"]))
    ratio = torch.stack(wanted)
    (-torch.nn.functional.logsigmoid(beta * ratio)).sum().backward()
    torch.testing.assert_close(found, ratio, rtol=1e-3, atol=1e-6)
    assert ratio.abs().max() > 1e-4
    for name, layer in ours.adapters.layers.items():
        a, b = own[name]
        assert float(b.grad.abs().max()) > 0
        torch.testing.assert_close(layer.a.grad[0], a.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(layer.b.grad[0], b.grad, rtol=1e-3, atol=1e-5)
    ours.detach()


def edited(folder: Path, target: Path, **index: object) -> Path:
    """The small files of a pipeline with other entries in its index."""
    own = json.loads((folder / "model_index.json").read_text())
    (target / "scheduler").mkdir()
    (target / "model_index.json").write_text(json.dumps(own | index))
    (target / "scheduler" / "scheduler_config.json").write_text("{}")
    return target


def test_a_flow_with_a_sampler_of_ddpm_is_refused(folder: Path, tmp_path: Path) -> None:
    if folder.name == "pixart":
        pytest.skip("PixArt's own models are sampled as DDPM's")
    for role in json.loads((folder / "model_index.json").read_text()):
        (tmp_path / role).mkdir() if (folder / role).is_dir() and role != "scheduler" else None
    edited(folder, tmp_path, scheduler=["diffusers", "DDIMScheduler"])
    with pytest.raises(ModelError, match="is a flow, and its scheduler, DDIMScheduler, samples no"):
        find_pipeline(str(tmp_path))


def test_other_classes_and_sizes_are_refused(folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(
        json.dumps(index | {"_class_name": "FluxKontextPipeline"})
    )
    with pytest.raises(ModelError, match="FluxKontextPipeline is not supported"):
        find_pipeline(str(tmp_path))
    with pytest.raises(UsageError, match=r"--image-size 18: .* takes multiples of 4"):
        DiffusionPolicy.load(str(folder), IMAGES, device="cpu", image_size=18)
    if folder.name == "sd3":
        with pytest.raises(UsageError, match=r"--image-size 36: .* takes 32 at most"):
            DiffusionPolicy.load(str(folder), IMAGES, device="cpu", image_size=36)


def test_class_licence_and_size_come_before_a_download(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(edited(folder, tmp_path, _class_name="SanaPipeline"), monkeypatch)
    with pytest.raises(ModelError, match="SanaPipeline is not supported"):
        find_pipeline("somebody/something")
    small = ("model_index.json", "scheduler/scheduler_config.json")
    assert hub.fetched == [small]
    gated = Hub(folder, monkeypatch, gated=True)
    with pytest.raises(ModelError, match="is gated") as caught:
        find_pipeline("somebody/something")
    assert "hf auth login" in str(caught.value.hint)
    assert gated.fetched == []
    large = Hub(folder, monkeypatch, size=10**18)
    with pytest.raises(ModelError, match=r"1000000000\.0 GB to download"):
        find_pipeline("somebody/something")
    assert large.fetched == [small]
