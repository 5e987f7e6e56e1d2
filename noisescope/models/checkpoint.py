"""Find, check, fingerprint and load a causal language model: directory, Hub name or GGUF file.

    found = find_checkpoint("HuggingFaceTB/SmolLM2-135M-Instruct")
    model, tokenizer = load_model(found, device, dtype)

Checkpoints are untrusted: only safetensors and GGUF weights are read, a checkpoint that brings
its own code is refused, and every fault is a ModelError raised before a weight is touched.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import ModelError, first_line
from noisescope.models.hub import fetch

if TYPE_CHECKING:
    import torch

    from noisescope.models.placement import Placement

#: Bytes of each block, and blocks of each weight file, that the fingerprint reads.
BLOCK, BLOCKS = 4096, 64

CONVERT_HINT = (
    'Convert it once, where you trust it: python -c "from transformers import AutoModelForCausalLM'
    " as M; M.from_pretrained('{0}').save_pretrained('{0}-safe')\", and copy its tokenizer files."
)


@final
@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint: its directory, the GGUF file in it if it is one, where it came from."""

    name: str
    directory: Path
    revision: str | None = None
    gguf: str | None = None

    @property
    def weights(self) -> list[Path]:
        """Weight files, sorted by name."""
        if self.gguf is not None:
            return [self.directory / self.gguf]
        return sorted(self.directory.glob("*.safetensors"))


def shard_names(index: Mapping[str, Any], name: str) -> list[str]:
    """Files of a weight index. Raises ModelError for any but safetensors files beside it."""
    listed = index.get("weight_map")
    names = sorted({str(file) for file in listed.values()}) if isinstance(listed, dict) else []
    for file in names:
        if Path(file).name != file or Path(file).suffix != ".safetensors":
            raise ModelError(
                f"{name}: its weight index names {file!r}, refused: safetensors files of the same "
                "directory are all it may name",
                hint=CONVERT_HINT.format(name),
            )
    return names


def read_header(path: Path) -> bytes:
    """The safetensors header of `path`; ModelError where header and file size disagree."""
    broken = ModelError(
        f"{path} is broken or cut short", hint="Download it again: its size and header disagree."
    )
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise broken
        header = stream.read(length)
    try:
        tensors = json.loads(header)
        ends = [entry["data_offsets"][1] for key, entry in tensors.items() if key != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise broken from error
    if 8 + length + max(ends, default=0) != size:
        raise broken
    return header


def fingerprint(found: Checkpoint, settings: dict[str, object]) -> str:
    """20 hex digits over config, tokenizer, weights (sizes, headers, sampled blocks), settings."""
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    if found.gguf is None:
        for path in sorted(found.directory.iterdir()):
            if path.suffix in (".json", ".jinja", ".model", ".txt") and path.is_file():
                _feed(sha, path.name.encode(), path.read_bytes())
    for path in found.weights:
        head = read_header(path) if found.gguf is None else b""
        _feed(sha, path.name.encode(), head, str(path.stat().st_size).encode(), _sample(path))
    return sha.hexdigest()[:20]


def _feed(sha: hashlib._Hash, *parts: bytes) -> None:
    """Hash length-prefixed parts."""
    for part in parts:
        sha.update(len(part).to_bytes(8, "little") + part)


def _sample(path: Path) -> bytes:
    """BLOCKS blocks evenly spread over a file, its first and last included."""
    size = path.stat().st_size
    last = max(0, size - BLOCK)
    with path.open("rb") as stream:
        blocks = []
        for index in range(BLOCKS):
            stream.seek(last * index // (BLOCKS - 1))
            blocks.append(stream.read(BLOCK))
    return b"".join(blocks)


#: Files of a Hub repository worth downloading; nothing pickled, nothing in sub-folders.
CONFIGS = ("config.json", "adapter_config.json", "tokenizer_config.json")
WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
UNWANTED = ("*/*", "consolidated*", "training_args*")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: Files of a PEFT adapter. transformers loads the model that the first one names.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: The file that diffusers' `load_lora_weights` reads.
UNET_LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
BROKEN_HINT = "Its files do not fit together, or this transformers is too old: download it again."
#: Packages that transformers needs to read a quantised checkpoint, by quant_method.
QUANTISERS = {
    "gptq": "gptqmodel optimum",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
    "aqlm": "aqlm",
    "eetq": "eetq",
}
OFFLINE_HINT = "Give a local directory instead: --model path/to/model"


def find_checkpoint(name: str, check: Callable[[Checkpoint], object] | None = None) -> Checkpoint:
    """Resolve `name` and check the files there; `check` a configuration before its weights are
    downloaded. Raises ModelError naming what is wrong."""
    try:
        path = Path(name).expanduser()
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"no such model directory: {name}", hint="Check the path.") from error
    if path.suffix == ".gguf":
        return _find_gguf(name, path)
    if path.is_dir():
        found = Checkpoint(name, path)
        _check_code(found)
    else:
        found = _download(name, check)
    check_files(found)
    return found


def find_converted(name: str, convert: str, tokenizer_hint: str | None = None) -> Checkpoint:
    """Find and check a checkpoint that is no causal language model. Raises ModelError.

    `convert` is the hint if its weights are pickled, `tokenizer_hint` if it has no tokenizer.
    """
    try:
        return find_checkpoint(name)
    except ModelError as error:
        is_pickle = "pickled" in error.message or "holds no weights" in error.message
        needs_tokenizer = tokenizer_hint is not None and "no tokenizer" in error.message
        own = "Give a local directory in its place." if error.hint == OFFLINE_HINT else error.hint
        hint = convert if is_pickle else tokenizer_hint if needs_tokenizer else own
        raise ModelError(error.message, hint=hint) from error


def _find_gguf(name: str, path: Path) -> Checkpoint:
    """A GGUF file, which transformers reads through the `gguf` package."""
    if not path.is_file():
        raise ModelError(f"no such file: {name}", hint="Check the path of the GGUF file.")
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{name}: reading GGUF needs the gguf package",
            hint="pip install 'noisescope[gguf]'",
        )
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"{name} is not a GGUF file", hint="Download it again.")
    return Checkpoint(name, path.parent, gguf=path.name)


def _download(name: str, check: Callable[[Checkpoint], object] | None) -> Checkpoint:
    """Fetch a Hub repository (or find it in the local Hub cache); the revision is its commit.

    Its configuration comes first, and `check` of it.
    """
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no such model directory: {name}", hint="Check the path.")
    small = fetch(name, CONFIGS, hint=OFFLINE_HINT)
    found = Checkpoint(name, small, revision=small.name)
    _check_code(found)
    if check is not None:
        check(found)
    directory = fetch(name, WANTED, UNWANTED, hint=OFFLINE_HINT)
    return Checkpoint(name, directory, revision=directory.name)


def check_files(found: Checkpoint) -> None:
    """Raise ModelError unless the directory holds safe whole weights and a tokenizer."""
    _check_weights(found)
    names = {path.name for path in found.directory.iterdir()}
    if not names.intersection(TOKENIZER_FILES) and not any(n.endswith(".model") for n in names):
        raise ModelError(
            f"{found.name} has no tokenizer ({', '.join(TOKENIZER_FILES)} or *.model)",
            hint="Copy the tokenizer files of the model it was made from.",
        )


def _check_code(found: Checkpoint) -> None:
    """Note code that a checkpoint brings and that is not run, or raise ModelError if transformers
    has no class of its own to run instead, or there is no configuration."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    config = _read_config(found)
    settings = _read_json(found.directory / "tokenizer_config.json", default={})
    if "auto_map" not in config and "auto_map" not in settings:
        return
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING_NAMES:
        raise ModelError(
            f"{found.name} needs to run code of its own (auto_map), which is refused: transformers "
            f"has no {kind}",
            hint="Use a model whose architecture transformers itself has.",
        )
    logging.getLogger("noisescope").warning(
        "%s brings code of its own (auto_map), which is not run: transformers' %s is used instead",
        found.name,
        kind,
    )


def _read_config(found: Checkpoint) -> dict[str, Any]:
    """config.json as a dict, or raise a ModelError that names what it holds instead."""
    whole = (found.directory / "config.json").is_file()
    adapter = (found.directory / ADAPTER_CONFIG).is_file()
    if whole and adapter:
        raise ModelError(
            f"{found.name} holds {ADAPTER_CONFIG} beside its config.json, which would load another "
            "model in its place: refused",
            hint="Remove that file where the adapter is merged into the weights already.",
        )
    if whole:
        return _read_json(found.directory / "config.json", default={})
    if adapter:
        raise ModelError(
            f"{found.name} is an adapter, not a whole model",
            hint="Merge it into its base model first, or name the base model.",
        )
    raise ModelError(
        f"{found.name} has no config.json: not a transformers model",
        hint="Name the directory that save_pretrained wrote, or a .gguf file.",
    )


def _read_json(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    """A JSON object from `path`, `default` where there is no file."""
    if not path.is_file():
        return default
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}", hint="Download it again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object", hint="Download it again.")
    return value


def _check_weights(found: Checkpoint) -> None:
    """Whole safetensors files, all that the index names; pickles are refused."""
    index = _read_json(found.directory / "model.safetensors.index.json", default={})
    named = {found.directory / name for name in shard_names(index, found.name)}
    absent = sorted(path.name for path in named if not path.is_file())
    if absent:
        raise ModelError(
            f"{found.name} is missing the weight files {', '.join(absent)}",
            hint="Download them again.",
        )
    if not found.weights:
        pickles = sorted(p.name for p in found.directory.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise ModelError(
                f"{found.name} has only pickled weights ({pickles[0]}): refused",
                hint=CONVERT_HINT.format(found.name),
            )
        raise ModelError(
            f"{found.name} holds no weights (*.safetensors)",
            hint="Download them again; where a repository has only pickled weights, which are "
            "refused, choose a conversion of it to safetensors.",
        )
    for path in found.weights:
        read_header(path)


def load_model(
    found: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    placement: Placement | None = None,
    *,
    pictures: bool = False,
) -> tuple[Any, Any]:
    """(transformers model in evaluation mode, tokenizer). Raises ModelError and UsageError.

    With `pictures`, a model of images and text, and its processor in the place of a tokenizer.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    from noisescope.models.placement import Placement

    placement = placement or Placement()
    loader = loader_of(found, pictures=pictures)
    source: dict[str, Any] = {} if found.gguf is None else {"gguf_file": found.gguf}
    if pictures:
        from noisescope.models.vision_processor import load_processor

        prepares = load_processor(found)
        tokenizer = prepares.tokenizer
    else:
        prepares = tokenizer = _load_tokenizer(found, source)
    if found.gguf is None:
        source["use_safetensors"] = True
    placed = placement.arguments(found, device, dtype)
    try:
        model, notes = loader.from_pretrained(
            found.directory,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
            **source,
            **placed,
        )
    except Exception as error:  # transformers raises many kinds; all mean "does not load"
        raise ModelError(
            f"{found.name} does not load: {first_line(error)}", hint=_load_hint(found, error)
        ) from error
    lacking = sorted(notes["missing_keys"])
    if lacking:
        raise ModelError(
            f"{found.name} is missing the weights of {len(lacking)} tensors, first {lacking[0]}",
            hint=BROKEN_HINT,
        )
    _check_vocabulary(found, model, tokenizer)
    return (model if placed else model.to(device)).eval(), prepares


def _load_hint(found: Checkpoint, error: Exception) -> str:
    """Hint for a model that does not load, by its config."""
    if (quantised := quantization(found)) is not None:
        kind = str(quantised.get("quant_method", "")).lower()
        packages = QUANTISERS.get(kind)
        install = f"pip install {packages}" if packages else "Install what is named"
        return f"{install}; or use the model before it was quantised ({kind or 'unknown kind'})."
    if isinstance(error, ImportError):
        return "Install the package that is named."
    return BROKEN_HINT


def quantization(found: Checkpoint) -> Mapping[str, Any] | None:
    """How a checkpoint's weights are quantised, as config.json states it; None if they are not."""
    config = {} if found.gguf else _read_json(found.directory / "config.json", default={})
    stated = config.get("quantization_config")
    return stated if isinstance(stated, dict) else None


def _check_vocabulary(found: Checkpoint, model: Any, tokenizer: Any) -> None:
    """Raise ModelError if the tokenizer can make tokens that have no embedding.

    A padding token alone may have none: texts never hold it.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    outside = {name: place for name, place in tokenizer.get_vocab().items() if place >= rows}
    outside.pop(tokenizer.pad_token, None)
    if outside:
        first = min(outside, key=lambda name: outside[name])
        raise ModelError(
            f"{found.name}: the tokenizer has {max(outside.values()) + 1:,} tokens, the embeddings "
            f"{rows:,} rows: {first!r} and {len(outside) - 1:,} more have none",
            hint="Use the tokenizer that the model was trained with, or resize the embeddings "
            "(resize_token_embeddings), train them and save both.",
        )


def loader_of(found: Checkpoint, *, pictures: bool) -> Any:
    """The transformers class that loads a checkpoint: causal language models, or models of images
    and text, which are read without images unless prompts hold `pictures`.

    Raises ModelError unless the config names one that transformers knows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as auto

    sees = ModelError(
        f"{found.name} reads text alone, and these prompts hold pictures",
        hint="Name a vision-language model, such as HuggingFaceTB/SmolVLM-256M-Instruct; "
        "--columns images= judges plain texts without their pictures.",
    )
    if found.gguf is not None:
        if pictures:
            raise sees
        return AutoModelForCausalLM
    try:
        config = AutoConfig.from_pretrained(found.directory, trust_remote_code=False)
    except Exception as error:  # unknown model types, malformed fields, ...
        raise ModelError(
            f"{found.name}: config.json is not understood: {first_line(error)}",
            hint="A newer transformers may know this architecture.",
        ) from error
    named = config.architectures or []
    causal = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    shown = set(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()).intersection(named)
    if pictures:
        if config.is_encoder_decoder or not shown:
            raise sees
        return AutoModelForImageTextToText
    if not config.is_encoder_decoder:
        if set(causal.values()).intersection(named) or not named:
            return AutoModelForCausalLM
        if shown:
            return AutoModelForImageTextToText
    raise ModelError(
        f"{found.name} is not a causal language model ({', '.join(named) or 'unnamed'})",
        hint="Name a decoder-only model, such as HuggingFaceTB/SmolLM2-135M-Instruct.",
    )


def _load_tokenizer(found: Checkpoint, source: dict[str, Any]) -> Any:
    """The checkpoint's tokenizer, or a ModelError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(found.directory, trust_remote_code=False, **source)
    except Exception as error:  # one of many kinds, by tokenizer family
        raise ModelError(
            f"{found.name}: the tokenizer does not load: {first_line(error)}",
            hint="Copy the tokenizer files of the model it was made from.",
        ) from error
