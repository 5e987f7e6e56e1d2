"""The two models of an evaluation: what a name means, which base an adapter stands on, identity.

    find_contender("trained/hh-rlhf-dpo-1a2b3c4d")    # what `noisescope train` wrote
    find_contender("models/tiny-lm"), find_contender("stable-diffusion-v1-5/...")

A directory says by its files what it is: a transformers model, a PEFT adapter, a diffusers
pipeline, LoRA weights or a whole UNet for one. Nothing is loaded here; safetensors only.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from noisescope.errors import ModelError, RunError, UsageError
from noisescope.pairs import Modality, digest
from noisescope.storage.checksums import require_written

Kind = Literal["model", "adapter", "pipeline", "lora", "unet"]

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
#: Small files that tell what a Hub repository holds, and what an adapter of it needs.
TELLING = ("model_index.json", "config.json", ADAPTER_CONFIG, ADAPTER_WEIGHTS, LORA_WEIGHTS)
MODALITY: dict[Kind, Modality] = {
    "model": "text",
    "adapter": "text",
    "pipeline": "image",
    "lora": "image",
    "unet": "image",
}
BASE_HINT = "Name the model it was trained from: --base PATH_OR_NAME."


@final
@dataclass(frozen=True)
class Contender:
    """One of the two models. `base` is loaded, then `place` (adapter, LoRA, UNet) put on it.

    `dataset` is what it was trained on, by name, where `noisescope train` made it.
    """

    name: str
    kind: Kind
    base: str
    place: Path | None
    fingerprint: str
    dataset: str | None = None

    @property
    def modality(self) -> Modality:
        return MODALITY[self.kind]

    @property
    def short(self) -> str:
        """The name's last part, safe for a file name."""
        return re.sub(r"[^\w.-]+", "-", Path(self.name).name or "model").strip("-.") or "model"

    def to_json(self) -> dict[str, str | None]:
        """JSON object of plans and manifests."""
        return {
            "name": self.name,
            "kind": self.kind,
            "base": self.base if self.place else None,
            "fingerprint": self.fingerprint,
        }


def find_contender(name: str, *, base: str | None = None, root: Path | None = None) -> Contender:
    """What `name` is. `base` overrides an adapter's own; `root` is where its paths may start.

    Raises ModelError for what cannot be used, RunError for an unfinished training.
    """
    path = Path(name).expanduser()
    place = path if path.is_dir() else _download(name)
    kind = _kind(name, place)
    plan = _plan(place)
    if kind in ("model", "pipeline"):
        return Contender(name, kind, name, None, _whole(kind, name), plan.get("dataset"))
    chosen = base or _base(name, place, kind, plan)
    if root is not None and not Path(chosen).exists() and (root / chosen).exists():
        chosen = str(root / chosen)
    weights = {"adapter": ADAPTER_WEIGHTS, "lora": LORA_WEIGHTS}.get(kind)
    if weights and not (place / weights).is_file():
        raise ModelError(
            f"{name} has no {weights}; pickled weights are refused",
            hint="Save it again with safetensors: save_pretrained(..., safe_serialization=True).",
        )
    whole = _whole("model" if kind == "adapter" else "pipeline", chosen)
    mark = digest(whole, _content(place, kind))
    return Contender(name, kind, chosen, place, mark, plan.get("dataset"))


def base_of(contender: Contender) -> Contender:
    """The model an adapter stands on, as an opponent. Raises UsageError for a whole model."""
    if contender.place is None:
        raise UsageError(
            f"{contender.name} is a whole model: against which other?",
            hint="Name the opponent with --against, such as the model it was trained from.",
        )
    return find_contender(contender.base)


def _kind(name: str, place: Path) -> Kind:
    """By the files of a directory."""
    files: tuple[tuple[str, Kind], ...] = (
        ("model_index.json", "pipeline"),
        (ADAPTER_CONFIG, "adapter"),
        (LORA_WEIGHTS, "lora"),
        ("unet/config.json", "unet"),
        ("config.json", "model"),
    )
    for file, kind in files:
        if (place / file).is_file():
            return kind
    if (place / "plan.json").is_file():
        raise RunError(
            f"{name} holds an unfinished training",
            hint="Finish it first: the same `noisescope train` command continues it.",
        )
    raise ModelError(
        f"{name} is no model: none of {', '.join(file for file, _ in files)} is in it",
        hint="Name what `noisescope train` wrote, a transformers or diffusers directory, or a "
        "PEFT adapter.",
    )


def _base(name: str, place: Path, kind: Kind, plan: dict[str, Any]) -> str:
    """The base that a training or an adapter's config names."""
    found = plan.get("model")
    if not found and kind == "adapter":
        found = _object(place / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(found, str) or not found:
        raise ModelError(f"{name} does not say which model it changes", hint=BASE_HINT)
    return found


def _plan(place: Path) -> dict[str, Any]:
    """plan.json of `noisescope train`, empty where there is none."""
    return _object(place / "plan.json") if (place / "plan.json").is_file() else {}


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="Save it again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object", hint="Save it again.")
    return value


def _whole(kind: Kind, name: str) -> str:
    """Fingerprint of a whole model's files; they are checked on the way."""
    if kind == "model":
        from noisescope.models.checkpoint import find_checkpoint, fingerprint

        return fingerprint(find_checkpoint(name), {})
    from noisescope.models.pipeline import find_pipeline

    return find_pipeline(name).fingerprint({})


def _content(place: Path, kind: Kind) -> str:
    """Hash of what is put on a base."""
    names = {"adapter": (ADAPTER_CONFIG, ADAPTER_WEIGHTS), "lora": (LORA_WEIGHTS,)}.get(kind)
    files = [place / n for n in names] if names else sorted((place / "unet").iterdir())
    sha = hashlib.sha256()
    for file in files:
        require_written(file)
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()


def _download(name: str) -> Path:
    """The telling files of a Hub repository (or of its copy in the local cache)."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hint = "Give a local directory instead, or check the name."
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no such model directory: {name}", hint=hint)
    try:
        return Path(snapshot_download(name, allow_patterns=list(TELLING)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{name} is no directory here, and the Hugging Face Hub did not give it: {reason}",
            hint=hint,
        ) from error
