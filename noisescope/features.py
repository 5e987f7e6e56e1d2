"""Features of every distinct response, computed once, cached, resumable after a kill.

    features = compute_features(policy, items, cache_directory, progress)  # group -> [n, D_g]

Items not yet cached are ordered by (prompt, key) and cut into chunks of about CHUNK units of
work; each chunk becomes one safetensors part, `<cache>/<policy fingerprint>/<chunk>.safetensors`,
whole or absent. A chunk's end depends on its own items alone and its name on their keys, so a
killed run continues with the same chunks and the same bytes, and two processes at once merely
write the same files. Values are float32, as computed: half the size would overflow on the
middle layers of some models, and a part is small beside the model that made it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from noisescope.pairs import digest
from noisescope.policies import Item, Policy
from noisescope.storage import write_atomic

Float = NDArray[np.float32]
#: Work of a chunk, in the policy's units (tokens, denoiser calls): what a kill can cost.
CHUNK = 16_384
#: Share of the machine's matrix product rate that a feature pass reaches, for estimates.
EFFICIENCY = 0.6
HEADER = "noisescope"


class Progress(Protocol):
    """Told after each chunk: work done, all work, and a remark where something happened."""

    def __call__(self, done_work: float, total_work: float, note: str | None) -> None: ...


def compute_features(
    policy: Policy, items: Sequence[Item], cache_directory: Path, progress: Progress
) -> dict[str, Float]:
    """Feature groups of `items`, in their order: group -> [n, D_g] float32.

    Only keys that no sound part holds are computed. A damaged part is computed again, which
    `progress` is told. Raises RunError where the cache cannot be written.
    """
    directory = cache_directory / policy.identity.fingerprint
    parts, damaged = _scan(directory)
    missing = _missing(items, parts)
    sizes = policy.sizes(missing)
    total = float(sizes.sum())
    for path in damaged:
        progress(0.0, total, f"{path.name} in the feature cache is damaged: computing it again")
        path.unlink(missing_ok=True)
    done = 0.0
    for chunk in plan_chunks(missing, sizes):
        path = directory / f"{digest(*(item.key for item in chunk.items))}.safetensors"
        part = _open(path) if path.is_file() else None
        if part is None:
            write_atomic(path, _serialise(chunk.items, policy.features(chunk.items)))
            part = Part(path, tuple(item.key for item in chunk.items))
        parts.append(part)
        done += chunk.work
        progress(done, total, None)
    return _gather(parts, [item.key for item in items])


def uncached(policy: Policy, items: Sequence[Item], cache_directory: Path) -> list[Item]:
    """The distinct items that `compute_features` would have to compute."""
    return _missing(items, _scan(cache_directory / policy.identity.fingerprint)[0])


def _missing(items: Sequence[Item], parts: Sequence[Part]) -> list[Item]:
    cached = {key for part in parts for key in part.keys}
    return [item for key, item in {item.key: item for item in items}.items() if key not in cached]


@final
@dataclass(frozen=True)
class Chunk:
    """Items computed together and their work."""

    items: tuple[Item, ...]
    work: float


def plan_chunks(items: Sequence[Item], sizes: NDArray[np.int64]) -> Iterator[Chunk]:
    """Cut items, ordered by (prompt, key), wherever the work since the last cut reaches CHUNK.

    Taking whole chunks away leaves the other chunks as they are. Ordering by the prompt's hash
    keeps responses of a prompt together and mixes long and short, so the ETA is honest.
    """
    order = sorted(range(len(items)), key=lambda i: (digest(items[i].prompt), items[i].key))
    batch: list[Item] = []
    work = 0
    for index in order:
        batch.append(items[index])
        work += int(sizes[index])
        if work >= CHUNK:
            yield Chunk(tuple(batch), work)
            batch, work = [], 0
    if batch:
        yield Chunk(tuple(batch), work)


def estimate_seconds(policy: Policy, items: Sequence[Item], rate: float) -> float:
    """Seconds a feature pass over `items` should take at `rate`, FLOP/s of matrix products."""
    return policy.flops(items) / (EFFICIENCY * rate)


@final
@dataclass(frozen=True)
class Part:
    """A sound part on disk and the keys of its rows."""

    path: Path
    keys: tuple[str, ...]


def _scan(directory: Path) -> tuple[list[Part], list[Path]]:
    """Sound parts and damaged files of a cache directory, by name."""
    paths = sorted(directory.glob("[!.]*.safetensors"))
    found = {path: _open(path) for path in paths}
    sound = [part for part in found.values() if part is not None]
    return sound, [path for path, part in found.items() if part is None]


def _open(path: Path) -> Part | None:
    """A part whose bytes match the checksum in its own header; None for anything else."""
    try:
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        stated = json.loads(header["__metadata__"][HEADER])
        keys = tuple(str(key) for key in stated["keys"])
        rows = {entry["shape"][0] for name, entry in header.items() if name != "__metadata__"}
        whole = stated["sha256"] == hashlib.sha256(content[8 + length :]).hexdigest()
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error):
        return None
    return Part(path, keys) if whole and rows == {len(keys)} else None


def _serialise(items: Sequence[Item], features: Mapping[str, Float]) -> bytes:
    """Safetensors bytes of a part; keys and checksum of the tensor bytes stand in its header."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(features[name], np.float32) for name in sorted(features)}
    plain = save(tensors)
    body = plain[8 + struct.unpack("<Q", plain[:8])[0] :]
    stated = {
        "keys": [item.key for item in items],
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    content: bytes = save(tensors, metadata={HEADER: json.dumps(stated)})
    return content


def _gather(parts: Sequence[Part], keys: Sequence[str]) -> dict[str, Float]:
    """Rows of `keys`, in their order, from the parts that hold them."""
    from safetensors.numpy import load_file

    wanted: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        wanted.setdefault(key, []).append(index)
    result: dict[str, Float] = {}
    for part in parts:
        to, rows = [], []
        for row, key in enumerate(part.keys):
            places = wanted.pop(key, [])
            to += places
            rows += [row] * len(places)
        if not to:
            continue
        for name, values in load_file(part.path).items():
            if name not in result:
                result[name] = np.empty((len(keys), values.shape[1]), np.float32)
            result[name][to] = values[rows]
    return result
