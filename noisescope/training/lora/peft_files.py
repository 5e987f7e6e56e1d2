"""Read and write LoRA adapters as PEFT directories: a safetensors file and a JSON file.

    save_peft(adapters, replica, directory, base="models/tiny-lm", weights=learner.trainable())
    attach_peft(model, [Path("theirs/0"), Path("theirs/1")])   # one replica a directory

The configuration is read and written by peft. External adapters are read only if they are plain
LoRA: any setting beyond `PLAIN` that differs from peft's default is refused by name, and so are
settings that the installed peft does not know. Weights are read from safetensors alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import ModelError, first_five
from noisescope.models.checkpoint import ADAPTER_CONFIG as ADAPTER_CONFIG
from noisescope.models.checkpoint import ADAPTER_WEIGHTS as ADAPTER_WEIGHTS
from noisescope.storage.checksums import require_written
from noisescope.storage.files import write_tensors

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from noisescope.training.lora.adapters import Adapters

PICKLED_WEIGHTS = "adapter_model.bin"
PEFT_PREFIX = "base_model.model."

#: Settings of plain LoRA: they do not add weights, or are applied here. All others must be as peft
#: has them by default.
PLAIN = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "ephemeral_gpu_offload",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "peft_type",
        "peft_version",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
#: Initialisations that also change the weights of the base model.
BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
ONLY = "Only the A and B matrices of plain LoRA on linear layers can be scored."


@final
@dataclass(frozen=True)
class PeftAdapter:
    """Contents of one directory: A [r, I], B [O, r] and scale by layer name."""

    layers: dict[str, tuple[Tensor, Tensor]]
    scales: dict[str, float]


def adapter_directories(places: Sequence[Path]) -> list[Path]:
    """The adapter directories among `places`: each is one, or contains some as `replicas/<m>/`.

    Raises ModelError for a place without any, and for weights that are pickled.
    """
    found: list[Path] = []
    for place in places:
        inner = [path.parent for path in place.glob(f"*/{ADAPTER_CONFIG}")]
        if (place / ADAPTER_CONFIG).is_file() or not inner:
            _require_files(place)
            found.append(place)
        else:
            inner.sort(key=lambda path: (len(path.name), path.name))  # 2 before 10
            for path in inner:
                _require_files(path)
            found += inner
    same = [path.resolve() for path in found]
    twice = sorted({str(path) for path in same if same.count(path) > 1})
    if twice:
        raise ModelError(
            f"the same adapter was given twice: {first_five(twice)}",
            hint="Each adapter may appear only once.",
        )
    return found


def _require_files(directory: Path) -> None:
    """Raise ModelError naming what is missing, or a pickle in its place; RunError for a changed
    file of a finished run."""
    if not directory.is_dir():
        raise ModelError(
            f"{directory} is not a directory",
            hint="Give the directory of a PEFT adapter, or one that contains several.",
        )
    missing = [n for n in (ADAPTER_WEIGHTS, ADAPTER_CONFIG) if not (directory / n).is_file()]
    if ADAPTER_WEIGHTS in missing and (directory / PICKLED_WEIGHTS).is_file():
        raise ModelError(
            f"{directory} holds {PICKLED_WEIGHTS}, a pickle, which is never opened",
            hint="Save it again with model.save_pretrained(DIR, safe_serialization=True).",
        )
    if missing:
        raise ModelError(
            f"{' and '.join(missing)} missing in {directory}",
            hint="PEFT writes both with model.save_pretrained(DIR).",
        )
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        require_written(directory / name)


def adapter_fingerprint(directory: Path) -> str:
    """20 hex digits over the bytes of both files of an adapter directory."""
    _require_files(directory)
    state = hashlib.sha256()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        with (directory / name).open("rb") as stream:
            state.update(hashlib.file_digest(stream, "sha256").digest())
    return state.hexdigest()[:20]


def read_peft(directory: Path) -> PeftAdapter:
    """Matrices and scales of a PEFT LoRA directory.

    Raises ModelError naming what is not plain safetensors LoRA (pickle, DoRA, full modules).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _require_files(directory)
    special = _special(_read_config(directory / ADAPTER_CONFIG))
    halves: dict[str, dict[str, Tensor]] = {}
    try:
        tensors = load_file(directory / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{directory / ADAPTER_WEIGHTS} cannot be read: {error}",
            hint="Copy the adapter again from where it was trained.",
        ) from error
    for key, tensor in tensors.items():
        name, found, part = key.removeprefix(PEFT_PREFIX).rpartition(".lora_")
        part = part.removesuffix(".weight").removesuffix(".default")
        if not found or part not in ("A", "B") or tensor.ndim != 2:
            special.append(key)
            continue
        halves.setdefault(name, {})[part] = tensor.float()
    special += [f"{name} without its other half" for name, h in halves.items() if len(h) != 2]
    if special or not halves:
        raise ModelError(
            f"{directory} is not a plain LoRA adapter: {first_five(special) or 'it is empty'}",
            hint=ONLY,
        )
    odd = [n for n, h in halves.items() if not all(bool(t.isfinite().all()) for t in h.values())]
    if odd:
        raise ModelError(f"{directory} holds numbers that are not finite: {first_five(odd)}")
    layers = {name: (h["A"], h["B"]) for name, h in halves.items()}
    return PeftAdapter(layers, _scales(directory, {n: len(a) for n, (a, _) in layers.items()}))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(facts, dict):
        raise ModelError(f"{path} is not a JSON object")
    return facts


def _special(facts: Mapping[str, Any]) -> list[str]:
    """Settings that make an adapter more than plain LoRA, and those that peft does not know."""
    from peft import LoraConfig

    kind = facts.get("peft_type")
    found = [] if kind == "LORA" else [f"peft_type {kind}"]
    defaults = LoraConfig().to_dict()
    for name in sorted(facts.keys() - PLAIN):
        if name not in defaults:
            found.append(f"{name}, which this peft does not know")
        elif (facts[name] or None) != (defaults[name] or None):
            found.append(name)
    if facts.get("bias", "none") != "none":
        found.append(f"bias {facts['bias']}")
    start = facts.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(BASE_CHANGING):
        found.append(f"init_lora_weights {start}, which changes the base")
    return found


def _scales(directory: Path, ranks: Mapping[str, int]) -> dict[str, float]:
    """alpha / r of each layer, or alpha / sqrt(r) with rsLoRA (2312.03732); `ranks` of its A.

    A key of `alpha_pattern` applies if it matches the end of the layer's name, as in peft.
    """
    from peft import LoraConfig

    try:
        config = LoraConfig.from_pretrained(str(directory))
        scales = {}
        for layer, rank in ranks.items():
            patterns = (config.alpha_pattern or {}).items()
            own = [value for key, value in patterns if re.fullmatch(rf"(.*\.)?({key})", layer)]
            alpha = float(own[0] if own else config.lora_alpha)
            if not math.isfinite(alpha):
                raise ValueError(f"lora_alpha {alpha}")
            scales[layer] = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    except (AttributeError, KeyError, TypeError, ValueError, re.error) as error:
        path = directory / ADAPTER_CONFIG
        raise ModelError(f"{path}: no usable lora_alpha ({error})") from error
    return scales


def stated_base(directories: Sequence[Path]) -> str | None:
    """The base model that the directories name, if any. Raises ModelError if they disagree."""
    named = {
        str(d): _read_config(d / ADAPTER_CONFIG).get("base_model_name_or_path") for d in directories
    }
    bases = sorted({str(base) for base in named.values() if base})
    if len(bases) > 1:
        raise ModelError(
            f"the adapters were trained on different models: {first_five(bases)}",
            hint="Score those of one base at a time.",
        )
    return bases[0] if bases else None


def attach_peft(model: PreTrainedModel, directories: Sequence[Path]) -> Adapters:
    """Attach external LoRA directories, one a replica, with ranks padded by zeros.

    Raises ModelError if they do not fit `model`, layer by layer.
    """
    import torch

    from noisescope.models.anatomy import anatomy
    from noisescope.training.lora.adapters import Adapters, linear_names
    from noisescope.training.lora.check import check_adapters

    read = [read_peft(directory) for directory in directories]
    names = sorted({name for one in read for name in one.layers})
    prefix = anatomy(model).name + "."
    known = set(linear_names(model, 0, ()))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ModelError(
            f"layers that this model's blocks do not have are adapted: {first_five(unknown)}",
            hint="Give --model the base the adapters were trained on.",
        )
    rank = max(len(a) for one in read for a, _ in one.layers.values())
    first = min(int(name[len(prefix) :].split(".")[0]) for name in names)
    model.requires_grad_(False)
    model.eval()
    adapters = Adapters(model, len(read), rank, first)
    adapters.attach(names)
    try:
        check_adapters(adapters)
        for m, one in enumerate(read):
            for name, (a, b) in one.layers.items():
                layer = adapters.layers[name]
                if a.shape[1] != layer.inputs or b.shape[0] != layer.outputs:
                    raise ModelError(
                        f"{directories[m]}: {name} has a different shape from this model's layer",
                        hint="Give --model the base the adapters were trained on.",
                    )
                with torch.no_grad():
                    layer.a[m, : len(a)] = a.to(layer.a.device)
                    layer.b[m, :, : b.shape[1]] = b.to(layer.b.device)
        for name, layer in adapters.layers.items():
            layer.scales = tuple(one.scales.get(name, 0.0) for one in read)
    except ModelError:
        adapters.detach()
        raise
    return adapters


def save_peft(
    adapters: Adapters, replica: int, directory: Path, *, base: str, weights: Mapping[str, Tensor]
) -> list[str]:
    """Write one replica as a directory that `peft.PeftModel.from_pretrained` loads; its files.

    `weights` are stacked tensors by the names of `Adapters.parameters` (live ones or averages).
    """
    from peft import LoraConfig

    layers = adapters.layers
    one = next(iter(layers.values()))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=adapters.rank,
        lora_alpha=one.scales[replica] * adapters.rank,
        fan_in_fan_out=one.transposed,
        inference_mode=True,
    )
    config.target_modules = sorted(layers)  # a set of them would be written in any order
    tensors = {}
    for name in layers:
        for part in "ab":
            key = f"{PEFT_PREFIX}{name}.lora_{part.upper()}.weight"
            tensors[key] = weights[f"{name}.{part}"][replica]
    write_tensors(directory / ADAPTER_WEIGHTS, tensors)
    config.save_pretrained(str(directory))
    return [ADAPTER_WEIGHTS, ADAPTER_CONFIG]
