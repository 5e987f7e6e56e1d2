"""A checkpoint's files: which weights it names, whether they are whole, and its fingerprint.

    header = read_header(path)           # ModelError where header and file size disagree
    fingerprint(checkpoint, settings)    # 20 hex digits

Only safetensors (and GGUF) files are ever named here.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from noisescope.errors import ModelError

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
