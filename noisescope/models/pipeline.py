"""Find, check and load a diffusers text-to-image pipeline, one part at a time.

    pipeline = load_pipeline("stable-diffusion-v1-5/stable-diffusion-v1-5", device, dtype)

Parts are loaded by the classes that `model_index.json` names, from the list below alone, never
by a pipeline's own code; safetensors only. SD1.5 and SDXL class: a UNet2DConditionModel, a KL
autoencoder, one or two CLIP text encoders. Safety checkers and image encoders are not loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import ModelError, first_line
from noisescope.models.checkpoint import (
    ADAPTER_CONFIG,
    Checkpoint,
    fingerprint,
    read_header,
    shard_names,
)
from noisescope.models.denoising import Schedule, schedule_of
from noisescope.pairs import digest

if TYPE_CHECKING:
    import torch

#: Role -> classes that may fill it.
CLASSES: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
REQUIRED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
#: Parts of a pipeline that take no part in the denoising loss.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
HALF = "fp16"
DOWNLOAD_HINT = "Download the whole pipeline again, or name another with --model."


@final
@dataclass(frozen=True)
class Pipeline:
    """A loaded pipeline's parts, in evaluation mode; `text` holds (tokenizer, encoder) pairs.

    `encoders` fingerprints all but the denoiser: what latents and embeddings depend on.
    """

    unet: Any
    vae: Any
    text: tuple[tuple[Any, Any], ...]
    schedule: Schedule
    empty_is_zero: bool
    encoders: str

    @property
    def reduction(self) -> int:
        """Pixels of an image's side to one of its latent's."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def image_size(self) -> int:
        """Side in pixels of the images the denoiser was made for."""
        return int(self.unet.config.sample_size) * self.reduction

    @property
    def is_xl(self) -> bool:
        """Whether the denoiser takes pooled text and size ids, as SDXL's does."""
        return str(self.unet.config.addition_embed_type) == "text_time"


@final
@dataclass(frozen=True)
class Found:
    """A checked pipeline directory: its index and the weight variant to load."""

    name: str
    directory: Path
    revision: str | None
    index: dict[str, Any]
    variant: str | None

    @property
    def roles(self) -> tuple[str, ...]:
        """Parts to load with weights or vocabularies."""
        return tuple(role for role in CLASSES if _named(self.index, role))

    def fingerprint(self, settings: dict[str, object], *, without: Sequence[str] = ()) -> str:
        """20 hex digits over the parts' configs, vocabularies and weights, and `settings`."""
        parts = [
            fingerprint(Checkpoint(self.name, self.directory / role), settings)
            for role in (*self.roles, "scheduler")
            if role not in without
        ]
        return digest(str(self.variant), *parts)


def find_pipeline(name: str, *, prefer_half: bool = False) -> Found:
    """Resolve a directory or Hub name and check every part. Raises ModelError."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _check(name, path, None, prefer_half)
    return _download(name, path, prefer_half)


def _download(name: str, path: Path, prefer_half: bool) -> Found:
    """Fetch the needed parts of a Hub repository, in one weight variant."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hint = "Give a local directory instead: --model path/to/pipeline"
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or path.parent.is_dir():
        raise ModelError(f"no such pipeline directory: {name}", hint=hint)
    kinds = ("*.json", "*.txt", "*.safetensors")
    patterns = ["model_index.json", "scheduler/*.json"]
    patterns += [f"{role}/{kind}" for role in CLASSES for kind in kinds]
    full = ["*.fp16*", "*non_ema*"]
    half = [
        f"{role}/{stem}*.safetensors" for role in CLASSES for stem in ("model", "diffusion*model")
    ]
    half = [pattern.replace("*.safetensors", ".safetensors") for pattern in half] + ["*non_ema*"]
    fault: ModelError | None = None
    for ignored in (half, full) if prefer_half else (full, half):
        try:
            folder = snapshot_download(name, allow_patterns=patterns, ignore_patterns=ignored)
            return _check(name, Path(folder), Path(folder).name, prefer_half)
        except ModelError as error:
            fault = error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = first_line(error)
            raise ModelError(
                f"{name} is no directory here, and the Hugging Face Hub did not give it: {reason}",
                hint=hint,
            ) from error
    raise fault or ModelError(f"{name}: nothing was downloaded", hint=hint)


def _check(name: str, path: Path, revision: str | None, prefer_half: bool) -> Found:
    """Raise ModelError unless every part is there, of a known class, whole and safe."""
    index = _read_object(
        path / "model_index.json",
        f"{name} has no model_index.json: not a pipeline, which is what judges pictures",
    )
    faults = [f"{role} is missing" for role in REQUIRED if not _named(index, role)]
    if _named(index, "text_encoder_2") != _named(index, "tokenizer_2"):
        faults.append("text_encoder_2 and tokenizer_2 belong together, one of them is missing")
    for role, entry in index.items():
        known = role in CLASSES or role in UNUSED or role == "scheduler" or role.startswith("_")
        if not known and _named(index, role):
            faults.append(f"{role} ({entry[1]}) is not supported")
        elif role in CLASSES and _named(index, role) and entry[1] not in CLASSES[role]:
            faults.append(f"{role} is a {entry[1]}, not a {' or '.join(CLASSES[role])}")
    if faults:
        raise ModelError(
            f"{name}: {'; '.join(faults)}",
            hint="Pipelines of the SD1.5 and SDXL class (a UNet and CLIP text) can be audited.",
        )
    roles = [role for role in CLASSES if _named(index, role)]
    missing = [role for role in (*roles, "scheduler") if not (path / role).is_dir()]
    if missing:
        raise ModelError(f"{name}: {', '.join(missing)} missing", hint=DOWNLOAD_HINT)
    for role in roles:
        if (path / role / ADAPTER_CONFIG).is_file():
            raise ModelError(
                f"{name}: {role} holds {ADAPTER_CONFIG}, which would load another model in its "
                "place: refused",
                hint="Remove that file where the adapter is merged into the weights already.",
            )
    weighted = [role for role in roles if not role.startswith("tokenizer")]
    sets = [
        {variant for variant in (None, HALF) if _weights(path / role, variant)} for role in weighted
    ]
    empty = [role for role, found in zip(weighted, sets, strict=True) if not found]
    if empty:
        raise ModelError(
            f"{name}: no safetensors weights in {', '.join(empty)}; other kinds are refused, "
            "they can run code",
            hint="Choose a revision of the pipeline that has safetensors, or convert it once.",
        )
    shared = set.intersection(*sets)
    order = (HALF, None) if prefer_half else (None, HALF)
    variant = next((kind for kind in order if kind in shared), None)
    if not shared:
        raise ModelError(f"{name}: no one weight variant has every part", hint=DOWNLOAD_HINT)
    for role in weighted:
        for file in _weights(path / role, variant):
            if not file.is_file():
                raise ModelError(f"{name}: {file.name} is missing in {role}", hint=DOWNLOAD_HINT)
            read_header(file)
    return Found(name, path, revision, index, variant)


def _named(index: dict[str, Any], role: str) -> bool:
    """Whether the index names a class for the role."""
    entry = index.get(role)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def _weights(folder: Path, variant: str | None) -> list[Path]:
    """Weight files of one variant: a single file, or the shards that an index names."""
    stem = "model" if folder.name.startswith("text_encoder") else "diffusion_pytorch_model"
    dot = f".{variant}" if variant else ""
    for listing in (f"{stem}.safetensors.index{dot}.json", f"{stem}{dot}.safetensors.index.json"):
        if (folder / listing).is_file():
            index = _read_object(folder / listing, "")
            return [folder / name for name in shard_names(index, str(folder))]
    single = folder / f"{stem}{dot}.safetensors"
    return [single] if single.is_file() else []


def _read_object(path: Path, absent: str) -> dict[str, Any]:
    """A JSON object. Raises ModelError, with the text `absent` if there is no file."""
    if not path.is_file():
        raise ModelError(absent or f"{path} is missing", hint=DOWNLOAD_HINT)
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}", hint=DOWNLOAD_HINT) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object", hint=DOWNLOAD_HINT)
    return value


def load_pipeline(found: Found, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """Load every part. Raises ModelError naming the part that does not load or does not fit."""
    loaded = {role: _load(found, role, dtype) for role in found.roles}
    config = _read_object(found.directory / "scheduler" / "scheduler_config.json", "")
    unet, vae = loaded["unet"], loaded["vae"]
    if unet.config.in_channels != vae.config.latent_channels:
        raise ModelError(
            f"{found.name}: the unet takes {unet.config.in_channels} channels, the vae gives "
            f"{vae.config.latent_channels}",
            hint="Inpainting and editing pipelines cannot be audited.",
        )
    needed = {"text_time": 2, "None": 1}.get(str(unet.config.addition_embed_type), 0)
    if needed != (given := 1 + ("text_encoder_2" in loaded)):
        raise ModelError(
            f"{found.name}: the unet's addition_embed_type {unet.config.addition_embed_type} does "
            f"not go with {given} text encoder{'s' * (given - 1)}",
            hint="Stable Diffusion has one text encoder, SDXL two (text_encoder_2).",
        )
    for role in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if role in loaded:
            loaded[role].to(device).eval().requires_grad_(False)
    suffixes = ("", "_2") if "text_encoder_2" in loaded else ("",)
    text = tuple((loaded[f"tokenizer{s}"], loaded[f"text_encoder{s}"]) for s in suffixes)
    empty_is_zero = bool(found.index.get("force_zeros_for_empty_prompt", False))
    settings: dict[str, object] = {"dtype": str(dtype), "empty_is_zero": empty_is_zero}
    encoders = found.fingerprint(settings, without=("unet", "scheduler"))
    return Pipeline(unet, vae, text, schedule_of(config), empty_is_zero, encoders)


def _load(found: Found, role: str, dtype: torch.dtype) -> Any:
    """One part by its allowed class."""
    import diffusers
    import torch
    import transformers

    classes: dict[str, Any] = {
        "UNet2DConditionModel": diffusers.UNet2DConditionModel,
        "AutoencoderKL": diffusers.AutoencoderKL,
        "CLIPTextModel": transformers.CLIPTextModel,
        "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection,
        "CLIPTokenizer": transformers.CLIPTokenizer,
        "CLIPTokenizerFast": transformers.CLIPTokenizer,
    }
    name = found.index[role][1]
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    settings: dict[str, Any] = {}
    if role == "vae":
        config = _read_object(found.directory / "vae" / "config.json", "")
        dtype = torch.float32 if config.get("force_upcast", True) else dtype
    if not role.startswith("tokenizer"):
        settings = {"use_safetensors": True, "variant": found.variant}
        settings["dtype" if role.startswith("text") else "torch_dtype"] = dtype
        settings["output_loading_info"] = True
    try:
        part = classes[name].from_pretrained(found.directory / role, **settings)
    except Exception as error:  # the libraries raise many kinds; all mean "does not load"
        reason = first_line(error)
        raise ModelError(f"{found.name}: {role} does not load: {reason}", hint=None) from error
    if not settings:
        return part
    model, notes = part
    absent = sorted(notes["missing_keys"])
    if absent:
        raise ModelError(
            f"{found.name}: {len(absent)} tensors are missing in {role}, first {absent[0]}",
            hint="Its weights do not fit its config.json; download both again.",
        )
    return model
