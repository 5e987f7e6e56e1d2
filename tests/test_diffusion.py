"""Diffusion policies: the arithmetic of Eq. 6, features, and what loading accepts and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from helpers.tiny_diffusion import CAPTIONS, items, pictures, save
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from noisescope.datasets.images import StoredImages, decode
from noisescope.errors import DataError, ModelError, UsageError
from noisescope.models.denoising import (
    DrawConfig,
    draw_noise,
    generator,
    logratio,
)
from noisescope.models.diffusion import DiffusionPolicy
from noisescope.models.image_features import NEAR, caption_evidence, error_statistics
from noisescope.models.pipeline_files import find_pipeline
from noisescope.models.schedule import schedule_of

PICTURES = pictures(8)
KEYS = list(PICTURES)
IMAGES = StoredImages(PICTURES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "sd": save("sd", root / "sd"),
        "sdxl": save("sdxl", root / "sdxl", prediction="v_prediction"),
    }


def policy(folder: Path, **options: object) -> DiffusionPolicy:
    return DiffusionPolicy.load(str(folder), IMAGES, device="cpu", dtype="float32", **options)


@pytest.fixture(scope="module")
def policies(folders: dict[str, Path]) -> dict[str, DiffusionPolicy]:
    return {kind: policy(folder) for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_errors_equal_a_plain_transcription(kind: str, folders: dict[str, Path]) -> None:
    """Diffusion-DPO's loss as its paper states it, on parts loaded by diffusers itself."""
    ours = policy(folders[kind])
    unet = UNet2DConditionModel.from_pretrained(folders[kind] / "unet")
    vae = AutoencoderKL.from_pretrained(folders[kind] / "vae")
    scheduler = DDPMScheduler.from_pretrained(folders[kind] / "scheduler")
    pixels = np.stack([np.asarray(decode(PICTURES[key])) for key in KEYS[:4]])
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    t, eps = torch.tensor([10, 400, 700, 999]), torch.randn(4, 4, 8, 8)
    with torch.inference_mode():
        latents, framings = ours.latents(KEYS[:4])
        conditioning = ours.conditioning(CAPTIONS[:1] * 4, framings)
        got = ours.pipeline.denoiser.errors(latents, conditioning, t, eps)
        exact = vae.encode(scaled).latent_dist.mode() * vae.config.scaling_factor
        z = exact.half().float()
        noisy = scheduler.add_noise(z, eps, t)
        target = eps if kind == "sd" else scheduler.get_velocity(z, eps, t)
        added = dict(conditioning.added) or None
        answer = unet(noisy, t, conditioning.text, added_cond_kwargs=added).sample
        wanted = ((answer - target) ** 2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(latents, exact, rtol=1e-3, atol=1e-6)  # half precision
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    if kind == "sdxl":
        assert conditioning.added["time_ids"][0].tolist() == [16, 16, 0, 0, 16, 16]


def test_logratio_worked_example() -> None:
    """Chosen got easier by .3 and rejected by .1: l = .3 - .1 = .2."""
    e = [torch.tensor([value]) for value in (0.7, 1.0, 0.8, 0.9)]
    torch.testing.assert_close(logratio(*e), torch.tensor([0.2]))


@given(st.lists(st.floats(0, 4), min_size=4, max_size=4))
def test_logratio_is_antisymmetric_and_zero_at_the_start(values: list[float]) -> None:
    w, w_ref, r, r_ref = (torch.tensor([value], dtype=torch.float64) for value in values)
    assert logratio(w, w_ref, r, r_ref) == -logratio(r, r_ref, w, w_ref)
    assert logratio(w, w, r, r) == 0


@given(seed=st.integers(0, 99), draws=st.integers(1, 9), name=st.text(max_size=8))
@settings(max_examples=30, deadline=None)
def test_draws_are_stratified_antithetic_and_a_function_of_their_names(
    seed: int, draws: int, name: str
) -> None:
    t, eps = draw_noise(seed, name, draws, (1, 2, 2), lambda u: int(u * 1000))
    again, noise = draw_noise(seed, name, draws, (1, 2, 2), lambda u: int(u * 1000))
    assert (t == again).all()
    assert (eps == noise).all()
    couples = (draws + 1) // 2
    part = np.arange(couples)  # t = floor(x), x in [1000 part / couples, 1000 (part + 1) / couples)
    assert ((t[::2] + 1) * couples > 1000 * part).all()
    assert (t[::2] * couples < 1000 * (part + 1)).all()
    assert (t[1::2] == t[::2][: draws // 2]).all()
    assert (eps[1::2] == -eps[::2][: draws // 2]).all()


def test_noise_differs_by_seed_name_and_draw() -> None:
    drawn = {
        generator(*key).standard_normal()
        for key in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a\0001", 0)]
    }
    assert len(drawn) == 5


def test_v_prediction_target() -> None:
    config = {"prediction_type": "v_prediction", "trained_betas": [0.36]}
    schedule = schedule_of("DDPMScheduler", config)
    z, eps = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 5.0)
    t = torch.zeros(1, dtype=torch.long)
    assert schedule.noisy(z, t, eps).item() == pytest.approx(0.8 * 2 + 0.6 * 5)
    assert schedule.target(z, t, eps).item() == pytest.approx(0.8 * 5 - 0.6 * 2)


def test_unknown_prediction_is_refused() -> None:
    with pytest.raises(ModelError, match="prediction_type sample is not supported"):
        schedule_of("DDPMScheduler", {"prediction_type": "sample"})


def test_perfect_denoiser_has_no_error() -> None:
    z, eps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    numbers = error_statistics(eps, eps)
    assert numbers.shape == (2, 10)
    torch.testing.assert_close(numbers[:, 8], torch.ones(2))
    assert caption_evidence(eps, z, eps)[:, 0].gt(0).all()


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_caption_evidence_identity(seed: int) -> None:
    """e_empty - e_caption = 2 <d, target - empty> - <d, d>."""
    draw = torch.Generator().manual_seed(seed)
    guess, empty, target = torch.randn(3, 2, 4, 8, 8, generator=draw)
    gain, power, _ = caption_evidence(guess, empty, target).unbind(1)
    inner = ((guess - empty) * (target - empty)).mean((1, 2, 3))
    torch.testing.assert_close(gain, 2 * inner - power, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_features_do_not_depend_on_batch_mates(
    kind: str, policies: dict[str, DiffusionPolicy]
) -> None:
    asked = items(KEYS)
    whole = policies[kind].features(asked)
    draws = policies[kind].draws
    assert {name: value.shape for name, value in whole.items()} == {
        "error_statistics": (8, 10 * len(draws.times)),
        "caption_pmi": (8, 3 * len(draws.empty)),
        "activations": (8, 48 * len(draws.activations)),
    }
    alone = policies[kind].features([asked[5]])
    backwards = policies[kind].features(asked[::-1])
    for name, value in whole.items():
        np.testing.assert_allclose(alone[name][0], value[5], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(backwards[name][::-1], value, rtol=1e-4, atol=1e-5)
        assert value.dtype == np.float32


def test_distances_to_the_datasets_reference_images(
    policies: dict[str, DiffusionPolicy],
) -> None:
    """Item 0 is its own reference, item 1 has one, item 2 two (their mean), item 3 none."""
    asked = items(KEYS[:4])
    known = {"item0": (KEYS[0],), "item1": (KEYS[5],), "item2": (KEYS[6], KEYS[7])}
    for base in policies.values():

        def measured(references: dict[str, tuple[str, ...]], base: Any = base) -> Any:
            store = StoredImages(PICTURES, references=references)
            found = DiffusionPolicy(base.pipeline, store, base.identity).features(asked)
            return found["reference_distances"], found["reference_logs"]

        apart, logs = measured(known)
        blocks = 2 + 2 + 2 * 2
        assert apart.shape == (4, 4 * (2 * blocks + 1))
        np.testing.assert_allclose(apart[[0, 3]], 0, atol=1e-5)
        assert (apart[1:3, ::4] > 1e-6).all()
        np.testing.assert_allclose(logs, np.log(apart + NEAR), rtol=1e-4, atol=1e-4)
        singles = [measured(known | {"item2": (key,)})[0][2] for key in known["item2"]]
        np.testing.assert_allclose(apart[2], np.mean(singles, 0), rtol=1e-4, atol=1e-5)


@given(st.integers(1, 12))
def test_spread_draws(count: int) -> None:
    draws = DrawConfig.spread(count)
    assert len(draws.times) == count
    assert list(draws.times) == sorted(draws.times)
    assert draws.calls == count + max(1, count - 1)


def test_spread_of_four_is_the_default_and_of_none_an_error() -> None:
    assert DrawConfig.spread(4) == DrawConfig()
    with pytest.raises(UsageError, match="--draws must be at least 1"):
        DrawConfig.spread(0)


def test_latents_and_texts_are_computed_once(folders: dict[str, Path]) -> None:
    loaded = policy(folders["sd"])
    asked = items(KEYS[:4])
    calls = {"vae": 0, "text": 0}
    loaded.pipeline.pipe.vae.encoder.register_forward_hook(
        lambda *_: calls.__setitem__("vae", calls["vae"] + 1)
    )
    loaded.pipeline.pipe.text_encoder.register_forward_hook(
        lambda *_: calls.__setitem__("text", calls["text"] + 1)
    )
    loaded.features(asked)
    once = dict(calls)
    loaded.features(asked)
    assert calls == once == {"vae": 1, "text": 4}  # three captions and the empty one


def test_sizes_and_identity(folders: dict[str, Path], policies: dict[str, DiffusionPolicy]) -> None:
    small, large = policies["sd"], policy(folders["sd"], image_size=32)
    referred = StoredImages(PICTURES, references={"item0": (KEYS[1],)})
    compared = DiffusionPolicy.load(str(folders["sd"]), referred, device="cpu", dtype="float32")
    asked = items(KEYS)
    assert (large.sizes(asked) == 4 * small.sizes(asked)).all()
    assert (compared.sizes(asked) > small.sizes(asked)).all()
    names = {
        small.identity.fingerprint,
        large.identity.fingerprint,
        compared.identity.fingerprint,
        policies["sdxl"].identity.fingerprint,
    }
    assert len(names) == 4
    assert policy(folders["sd"]).identity == small.identity


def test_settings_are_checked(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="multiples of 4"):
        policy(folders["sd"], image_size=18)
    with pytest.raises(UsageError, match="shares of the schedule"):
        DrawConfig(times=(1.5,))
    with pytest.raises(UsageError, match="not all among"):
        DrawConfig(times=(0.5,), empty=(1,))


def test_a_lost_picture_is_named(policies: dict[str, DiffusionPolicy]) -> None:
    with pytest.raises(DataError, match="0123abcd"):
        policies["sd"].features(items(["0123abcd"]))


def test_sharded_and_half_precision_layouts_load_alike(
    folders: dict[str, Path], policies: dict[str, DiffusionPolicy], tmp_path: Path
) -> None:
    wanted = policies["sd"].features(items(KEYS[:2]))
    sharded = save("sd", tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((sharded / "unet").glob("*-of-*.safetensors"))) > 1
    half = save("sd", tmp_path / "half", variant="fp16")
    assert (half / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    both = tmp_path / "both"
    shutil.copytree(folders["sd"], both)
    shutil.copytree(half, both, dirs_exist_ok=True)
    for folder in (sharded, half, both):
        got = policy(folder).features(items(KEYS[:2]))
        for name, value in wanted.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)
    assert find_pipeline(str(half)).variant == "fp16"
    assert find_pipeline(str(both)).variant is None
    assert find_pipeline(str(both), prefer_half=True).variant == "fp16"


def damaged(
    folder: Path, target: Path, *, drop: str = "", index: dict[str, object] | None = None
) -> str:
    shutil.copytree(folder, target)
    if drop:
        gone = target / drop
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    if index is not None:
        path = target / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | index))
    return str(target)


REFUSED = {
    "no index": ({"drop": "model_index.json"}, "no model_index.json"),
    "no unet": ({"drop": "unet"}, "unet missing"),
    "no tokenizer": ({"drop": "tokenizer"}, "tokenizer missing"),
    "no weights": (
        {"drop": "vae/diffusion_pytorch_model.safetensors"},
        "no safetensors weights in vae",
    ),
    "unnamed vae": ({"index": {"vae": [None, None]}}, "vae is missing"),
    "transformer": (
        {"index": {"unet": ["diffusers", "FluxTransformer2DModel"]}},
        "unet is a FluxTransformer2DModel, not a UNet2DConditionModel",
    ),
    "own code": (
        {"index": {"controlnet": ["my_code", "Net"]}},
        "controlnet .Net. is not supported",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_pipelines_are_refused_by_part(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    change, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        policy(Path(damaged(folders["sd"], tmp_path / "copy", **change)))


def test_lost_shard_cut_weights_and_missing_tensors_are_named(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    sharded = save("sd", tmp_path / "sharded", max_shard_size="100KB")
    shard = sorted((sharded / "unet").glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"{shard.name} is missing in unet"):
        policy(sharded)
    copy = Path(damaged(folders["sd"], tmp_path / "copy"))
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match="broken or cut short"):
        policy(copy)
    with pytest.raises(ModelError, match="no such pipeline directory"):
        policy(tmp_path / "nowhere")


SECOND = {"text_encoder_2": [None, None], "tokenizer_2": [None, None]}
REFUSED_XL = {
    "no second encoder": ({"drop": "text_encoder_2"}, "text_encoder_2 missing"),
    "no second vocabulary": ({"index": {"tokenizer_2": [None, None]}}, "tokenizer_2 is missing"),
    "one encoder named": ({"index": SECOND}, "text_time does not go with 1 text encoder"),
    "no second weights": (
        {"drop": "text_encoder_2/model.safetensors"},
        "no safetensors weights in text_encoder_2",
    ),
}


@pytest.mark.parametrize("name", REFUSED_XL)
def test_unusable_sdxl_pipelines_are_refused_by_part(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    change, message = REFUSED_XL[name]
    with pytest.raises(ModelError, match=message):
        policy(Path(damaged(folders["sdxl"], tmp_path / "copy", **change)))


def test_sdxl_in_shards_of_half_precision_loads_alike(
    policies: dict[str, DiffusionPolicy], tmp_path: Path
) -> None:
    options = {"prediction": "v_prediction", "max_shard_size": "100KB", "variant": "fp16"}
    folder = save("sdxl", tmp_path / "both", **options)
    assert list((folder / "unet").glob("*.fp16-*-of-*.safetensors"))
    got = policy(folder).features(items(KEYS[:2]))
    for name, value in policies["sdxl"].features(items(KEYS[:2])).items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


def test_pipelines_for_editing_do_not_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(damaged(folders["sd"], tmp_path / "copy"))
    wider = UNet2DConditionModel.from_pretrained(copy / "unet", low_cpu_mem_usage=False)
    config = dict(wider.config) | {"in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(copy / "unet")
    with pytest.raises(ModelError, match="takes 9 channels"):
        policy(copy)


def test_images_of_any_shape_are_cropped_alike(policies: dict[str, DiffusionPolicy]) -> None:
    wide = decode(PICTURES[KEYS[0]]).resize((64, 32), Image.Resampling.NEAREST)
    framings = policies["sdxl"].latents(KEYS[:1])[1]
    assert framings[0].target == (16, 16)
    assert wide.size == (64, 32)
