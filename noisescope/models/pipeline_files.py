"""Find and check the files of a diffusers text-to-image pipeline, here or on the Hub.

    found = find_pipeline("stabilityai/stable-diffusion-3.5-medium")

Class, licence gate and size are checked before weights are downloaded, and only the parts of the
pipeline's family in one weight variant are; safetensors only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from noisescope.errors import ModelError
from noisescope.models.checkpoint import (
    ADAPTER_CONFIG,
    Checkpoint,
    fingerprint,
    read_header,
    shard_names,
)
from noisescope.models.families import FAMILIES, SECOND_PARTS, Family
from noisescope.models.hub import fetch
from noisescope.models.schedule import schedule_of
from noisescope.pairs import digest

#: Parts of a pipeline that take no part in the denoising loss.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
HALF = "fp16"
NAME_HINT = "Give a local directory instead: --model path/to/pipeline"
DOWNLOAD_HINT = "Download the whole pipeline again, or name another with --model."


@final
@dataclass(frozen=True)
class Found:
    """A checked pipeline directory: its index and the weight variant to load."""

    name: str
    directory: Path
    revision: str | None
    index: dict[str, Any]
    variant: str | None
    family: Family

    @property
    def roles(self) -> tuple[str, ...]:
        """Parts to load with weights or vocabularies."""
        return tuple(role for role in self.family.parts if _named(self.index, role))

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
    """Fetch the needed parts of a Hub repository in one weight variant, class and size first."""
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or path.parent.is_dir():
        raise ModelError(f"no such pipeline directory: {name}", hint=NAME_HINT)
    small = ["model_index.json", "scheduler/scheduler_config.json"]
    folder = fetch(name, small, hint=NAME_HINT)
    index = _index(name, folder)
    family = _family(name, index)
    _check_scheduler(name, folder, index, family)
    fault: ModelError | None = None
    for half in (prefer_half, not prefer_half):
        found = fetch(name, *_patterns(family, half), hint=NAME_HINT)
        try:
            return _check(name, found, found.name, prefer_half)
        except ModelError as error:
            fault = error
    raise fault or ModelError(f"{name}: nothing was downloaded", hint=NAME_HINT)


def _patterns(family: Family, half: bool) -> tuple[list[str], list[str]]:
    """(allowed, ignored) files of a repository: one weight variant of the family's parts."""
    kinds = ("*.json", "*.txt", "*.model", "*.safetensors")
    allowed = ["model_index.json", "scheduler/*.json"]
    allowed += [f"{role}/{kind}" for role in family.parts for kind in kinds]
    if not half:
        return allowed, [f"*.{HALF}*", "*non_ema*"]
    stems = ("model", "diffusion*model")
    full = [f"{role}/{stem}.safetensors" for role in family.parts for stem in stems]
    return allowed, [*full, "*non_ema*"]


def _index(name: str, path: Path) -> dict[str, Any]:
    """The pipeline's `model_index.json`."""
    return read_object(
        path / "model_index.json",
        f"{name} has no model_index.json: not a pipeline, which is what judges pictures",
    )


def _family(name: str, index: dict[str, Any]) -> Family:
    """The family that a pipeline's index names. Raises ModelError for any other class.

    Pipelines with a UNet are recognised by their text encoders, the others by `_class_name`.
    """
    if not _named(index, "transformer"):
        is_xl = any(_named(index, role) for role in SECOND_PARTS)
        return FAMILIES[f"StableDiffusion{'XL' if is_xl else ''}Pipeline"]
    kind = str(index.get("_class_name"))
    if kind not in FAMILIES or FAMILIES[kind].denoiser != "transformer":
        raise ModelError(
            f"{name}: {kind} is not supported ({index['transformer'][1]})",
            hint=f"Text-to-image pipelines of these classes can be audited: {', '.join(FAMILIES)}.",
        )
    return FAMILIES[kind]


def _check_scheduler(name: str, path: Path, index: dict[str, Any], family: Family) -> None:
    """Raise ModelError for a scheduler whose noise schedule is not known."""
    if not _named(index, "scheduler"):
        raise ModelError(f"{name}: scheduler is missing", hint=DOWNLOAD_HINT)
    config = read_object(path / "scheduler" / "scheduler_config.json", "")
    try:
        schedule = schedule_of(index["scheduler"][1], config, tokens=None if family.lower else 1)
    except ModelError as error:
        raise ModelError(f"{name}: {error.message}", hint=error.hint) from error
    if family.flow_only and schedule.kind != "flow":
        raise ModelError(
            f"{name}: a {family.pipeline} is a flow, and its scheduler, {index['scheduler'][1]}, "
            "samples none",
            hint="Set its scheduler to FlowMatchEulerDiscreteScheduler as the model was published.",
        )


def _check(name: str, path: Path, revision: str | None, prefer_half: bool) -> Found:
    """Raise ModelError unless every part is there, of a known class, whole and safe."""
    index = _index(name, path)
    family = _family(name, index)
    parts = family.parts
    faults = [
        f"{role} is missing"
        for role in (*parts, "scheduler")
        if not _named(index, role) and role not in family.optional
    ]
    for role, entry in index.items():
        known = role in parts or role in UNUSED or role == "scheduler" or role.startswith("_")
        if not known and _named(index, role):
            faults.append(f"{role} ({entry[1]}) is not supported")
        elif role in parts and _named(index, role) and entry[1] not in parts[role]:
            faults.append(f"{role} is a {entry[1]}, not a {' or '.join(parts[role])}")
    if faults:
        raise ModelError(
            f"{name}: {'; '.join(faults)}",
            hint=f"Complete pipelines of these classes can be audited: {', '.join(FAMILIES)}.",
        )
    roles = [role for role in parts if _named(index, role)]
    missing = [role for role in (*roles, "scheduler") if not (path / role).is_dir()]
    if missing:
        raise ModelError(f"{name}: {', '.join(missing)} missing", hint=DOWNLOAD_HINT)
    _check_scheduler(name, path, index, family)
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
    return Found(name, path, revision, index, variant, family)


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
            index = read_object(folder / listing, "")
            return [folder / name for name in shard_names(index, str(folder))]
    single = folder / f"{stem}{dot}.safetensors"
    return [single] if single.is_file() else []


def read_object(path: Path, absent: str) -> dict[str, Any]:
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
