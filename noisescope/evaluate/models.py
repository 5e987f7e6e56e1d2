"""Find the two models of an evaluation: kind, base model and fingerprint.

    find_model("trained/hh-rlhf-dpo-1a2b3c4d")    # output of `noisescope train`
    find_model("models/tiny-lm"), find_model("stable-diffusion-v1-5/...")

The kind follows from the files: a transformers model, a PEFT adapter, a diffusers pipeline, or
LoRA weights or a denoiser for one. No weights are loaded; only safetensors files are accepted.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from noisescope.errors import ModelError, RunError, UsageError
from noisescope.models.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, UNET_LORA_WEIGHTS
from noisescope.pairs import Modality, digest
from noisescope.storage.checksums import require_written

Kind = Literal["model", "adapter", "pipeline", "lora", "denoiser"]

#: Roles of a denoiser in a pipeline, and its folder in an output of `noisescope train --full`.
DENOISERS = ("unet", "transformer")
#: Files downloaded from a Hub repository to find its kind, and the weights of an adapter.
SMALL_FILES = (
    "model_index.json",
    "config.json",
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    UNET_LORA_WEIGHTS,
)
MODALITY: dict[Kind, Modality] = {
    "model": "text",
    "adapter": "text",
    "pipeline": "image",
    "lora": "image",
    "denoiser": "image",
}
BASE_HINT = "Give the model it was trained from: --base PATH_OR_NAME."


@final
@dataclass(frozen=True)
class ModelSpec:
    """One of the two models: `base` is loaded, then the directory `adapter` (PEFT, LoRA or UNet)
    is applied to it.

    `dataset` is the name of the dataset it was trained on, if `noisescope train` made it.
    """

    name: str
    kind: Kind
    base: str
    adapter: Path | None
    fingerprint: str
    dataset: str | None = None

    @property
    def modality(self) -> Modality:
        return MODALITY[self.kind]

    @property
    def short(self) -> str:
        """The last part of the name, safe for a file name."""
        return re.sub(r"[^\w.-]+", "-", Path(self.name).name or "model").strip("-.") or "model"

    def to_json(self) -> dict[str, str | None]:
        """JSON object of plans and manifests."""
        return {
            "name": self.name,
            "kind": self.kind,
            "base": self.base if self.adapter else None,
            "fingerprint": self.fingerprint,
        }


def find_model(name: str, *, base: str | None = None, root: Path | None = None) -> ModelSpec:
    """Find a model by directory or Hub name.

    `base` overrides the base model that an adapter names; paths of adapters may be relative to
    `root`. Raises ModelError for what cannot be used, RunError for an unfinished training.
    """
    path = Path(name).expanduser()
    directory = path if path.is_dir() else _download(name)
    kind = _kind(name, directory)
    plan = _plan(directory)
    if kind in ("model", "pipeline"):
        return ModelSpec(name, kind, name, None, _whole(kind, name), plan.get("dataset"))
    chosen = base or _base(name, directory, kind, plan)
    if root is not None and not Path(chosen).exists() and (root / chosen).exists():
        chosen = str(root / chosen)
    weights = {"adapter": ADAPTER_WEIGHTS, "lora": UNET_LORA_WEIGHTS}.get(kind)
    if weights and not (directory / weights).is_file():
        raise ModelError(
            f"{name} has no {weights}; pickled weights are refused",
            hint="Save it again with safetensors: save_pretrained(..., safe_serialization=True).",
        )
    whole = _whole("model" if kind == "adapter" else "pipeline", chosen)
    fingerprint = digest(whole, _content(directory, kind))
    return ModelSpec(name, kind, chosen, directory, fingerprint, plan.get("dataset"))


def base_of(spec: ModelSpec) -> ModelSpec:
    """Return the base model of an adapter. Raises UsageError for a whole model."""
    if spec.adapter is None:
        raise UsageError(
            f"{spec.name} is a whole model: it has no base model to be compared with",
            hint="Give the opponent with --against, for example the model it was trained from.",
        )
    return find_model(spec.base)


def _kind(name: str, directory: Path) -> Kind:
    """Determine the kind from the files of a directory."""
    files: tuple[tuple[str, Kind], ...] = (
        ("model_index.json", "pipeline"),
        (ADAPTER_CONFIG, "adapter"),
        (UNET_LORA_WEIGHTS, "lora"),
        *((f"{role}/config.json", "denoiser") for role in DENOISERS),
        ("config.json", "model"),
    )
    for file, kind in files:
        if (directory / file).is_file():
            return kind
    if (directory / "plan.json").is_file():
        raise RunError(
            f"{name} contains an unfinished training",
            hint="Finish it first: the same `noisescope train` command continues it.",
        )
    raise ModelError(
        f"{name} is not a model: it contains none of {', '.join(file for file, _ in files)}",
        hint="Give an output of `noisescope train`, a transformers or diffusers directory, or a "
        "PEFT adapter.",
    )


def _base(name: str, directory: Path, kind: Kind, plan: dict[str, Any]) -> str:
    """Return the base model that the training or the adapter's config names."""
    found = plan.get("model")
    if not found and kind == "adapter":
        found = _object(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(found, str) or not found:
        raise ModelError(f"{name} does not name its base model", hint=BASE_HINT)
    return found


def _plan(directory: Path) -> dict[str, Any]:
    """Read the plan.json of `noisescope train`; empty if there is none."""
    path = directory / "plan.json"
    return _object(path) if path.is_file() else {}


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="Save it again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object", hint="Save it again.")
    return value


def _whole(kind: Kind, name: str) -> str:
    """Check the files of a whole model and return their fingerprint."""
    if kind == "model":
        from noisescope.models.checkpoint import find_checkpoint, fingerprint

        return fingerprint(find_checkpoint(name), {})
    from noisescope.models.pipeline_files import find_pipeline

    return find_pipeline(name).fingerprint({})


def _content(directory: Path, kind: Kind) -> str:
    """Hash the files that are applied to a base model."""
    names = {"adapter": (ADAPTER_CONFIG, ADAPTER_WEIGHTS), "lora": (UNET_LORA_WEIGHTS,)}.get(kind)
    folders = [directory / role for role in DENOISERS if (directory / role).is_dir()]
    files = (
        [directory / name for name in names]
        if names
        else sorted(file for folder in folders for file in folder.iterdir())
    )
    sha = hashlib.sha256()
    for file in files:
        require_written(file)
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()


def _download(name: str) -> Path:
    """Download the small files of a Hub repository, or find them in the local cache."""
    from noisescope.models.hub import fetch

    hint = "Check the name, or give a local directory."
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no such model directory: {name}", hint=hint)
    return fetch(name, SMALL_FILES, hint=hint)
