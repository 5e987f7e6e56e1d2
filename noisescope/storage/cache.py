"""Rows of tensors by key on disk, in parts that are whole or absent: what every cache is made of.

    parts = fill(source, items, directory, progress)  # computes what no sound part holds
    gather(parts, keys)                               # group -> [n, ...], in the order of keys

Items not yet on disk are ordered by (prompt, key) and cut into chunks of about CHUNK units of
work; each chunk becomes one safetensors part, `<directory>/<chunk>.safetensors`. A chunk's end
depends on its own items alone and its name on their keys, so a killed run continues with the
same chunks and the same bytes, and two processes at once merely write the same files. A part
states the model that made it, so that one of another model is known wherever it is copied.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError
from noisescope.pairs import Item, digest
from noisescope.progress import Progress
from noisescope.storage.files import write_atomic
from noisescope.storage.remote import Place

Array = NDArray[Any]
#: Work of a chunk, in the source's units (tokens, denoiser calls): what a kill can cost.
CHUNK = 16_384
HEADER = "noisescope"
#: What a part is called; nothing else is copied.
PART_NAME = re.compile(r"[0-9a-f]{20}\.safetensors")
#: Version of a part's layout; what stands in parts of another one is computed anew.
FORMAT = 1


class Source(Protocol):
    """What computes rows."""

    def sizes(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """Work of each item, [n]."""

    def features(self, items: Sequence[Item]) -> Mapping[str, Array]:
        """Groups of rows, group -> [n, ...]."""


@final
@dataclass(frozen=True)
class Part:
    """A sound part on disk, the keys of its rows and, where it says so, the model it is of."""

    path: Path
    keys: tuple[str, ...]
    made_by: str = ""


@final
@dataclass(frozen=True)
class Chunk:
    """Items computed together and their work."""

    items: tuple[Item, ...]
    work: float


def fill(
    source: Source,
    items: Sequence[Item],
    directory: Path,
    progress: Progress,
    what: str,
    made_by: str = "",
) -> list[Part]:
    """Compute the items that no sound part of `directory` holds; all of its parts.

    A damaged part, or one of another FORMAT or not `made_by` that model, is replaced and its rows
    computed again, which `progress` is told with `what` cache it was. Raises RunError where the
    directory cannot be read or written.
    """
    parts, faulty = scan(directory, made_by)
    todo = missing(items, parts)
    sizes = source.sizes(todo)
    total, done = float(sizes.sum()), 0.0
    for path, fault in faulty.items():
        progress(0.0, total, f"{path.name} in the {what} cache is {fault}: computing it again")
        if fault == DAMAGED and open_part(path) == DAMAGED:  # nobody else mended it since
            path.unlink(missing_ok=True)
    for chunk in plan_chunks(todo, sizes):
        path = directory / f"{digest(*(item.key for item in chunk.items))}.safetensors"
        part = fitting(open_part(path), made_by) if path.is_file() else DAMAGED
        if not isinstance(part, Part):
            keys = tuple(item.key for item in chunk.items)
            write_atomic(path, _serialise(keys, source.features(chunk.items), made_by))
            part = Part(path, keys, made_by)
        parts.append(part)
        done += chunk.work
        progress(done, total, None)
    return parts


def missing(items: Sequence[Item], parts: Sequence[Part]) -> list[Item]:
    """The distinct items that no part holds."""
    known = {key for part in parts for key in part.keys}
    return [item for key, item in {item.key: item for item in items}.items() if key not in known]


def plan_chunks(items: Sequence[Item], sizes: NDArray[np.int64]) -> Iterator[Chunk]:
    """Cut items, ordered by (prompt, key), wherever the work since the last cut reaches CHUNK.

    Taking whole chunks away leaves the other chunks as they are. Ordering by the prompt's hash
    keeps responses of a prompt together and mixes long and short, so the ETA is honest.
    """
    order = sorted(range(len(items)), key=lambda i: place(items[i]))
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


def place(item: Item) -> str:
    """Where an item stands in the order that chunks are cut from: by its prompt's hash, its key."""
    return f"{digest(item.prompt)}-{item.key}"


def scan(directory: Path, made_by: str = "") -> tuple[list[Part], dict[Path, str]]:
    """Sound parts of a cache directory by name, and what is wrong with the others.

    Raises RunError where the directory or a file cannot be read: that is no damage.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".safetensors")
        found = {
            path: fitting(open_part(path), made_by)
            for path in paths
            if not path.name.startswith(".")
        }
    except (FileNotFoundError, NotADirectoryError):
        return [], {}
    except OSError as error:
        raise RunError(
            f"cannot read the cache {error.filename or directory}: {error.strerror or error}",
            hint="Make it readable, or remove it: what it held is computed again.",
        ) from error
    faulty = {path: part for path, part in found.items() if isinstance(part, str)}
    return [part for part in found.values() if isinstance(part, Part)], faulty


def copy_parts(
    source: Place, directory: Path, made_by: str, wanted: set[str], faults: list[str]
) -> int:
    """Copy sound parts with `wanted` keys, and remove those keys from the set; how many parts.

    What is wrong with others is added to `faults`.
    """
    copied = 0
    for path in source.files():
        if not wanted or not PART_NAME.fullmatch(path.name):
            continue
        target, content = directory / path.name, path.read()
        part = fitting(check(target, content), made_by)
        if not isinstance(part, Part):
            faults.append(f"{path} is {part}")
        elif wanted & set(part.keys):
            write_atomic(target, content)
            wanted.difference_update(part.keys)
            copied += 1
    return copied


#: What `open_part` says of a file whose bytes are not what their checksum states.
DAMAGED = "damaged"


def fitting(part: Part | str, made_by: str) -> Part | str:
    """`part`, or what is wrong with it where it states another model than `made_by`."""
    if isinstance(part, str) or not made_by or part.made_by in ("", made_by):
        return part
    return f"of another model ({part.made_by[:20]})"


def open_part(path: Path) -> Part | str:
    """A part whose bytes match the checksum in its own header, or what is wrong with the file.

    A file that did not change since it was last opened is not read again. Raises OSError.
    """
    try:
        about = path.stat()
        times = about.st_mtime_ns, about.st_ctime_ns  # the second cannot be set
        return _checked(path, about.st_ino, about.st_size, *times)
    except FileNotFoundError:  # another process removed it just now
        return DAMAGED


@lru_cache(maxsize=1 << 16)
def _checked(path: Path, *_version: int) -> Part | str:
    return check(path, path.read_bytes())


def check(path: Path, content: bytes) -> Part | str:
    """The part that `content`, of `path`, holds, or what is wrong with it."""
    try:
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        stated = json.loads(header["__metadata__"][HEADER])
        if stated.get("format", FORMAT) != FORMAT:
            return "of another version of noisescope"
        keys = tuple(str(key) for key in stated["keys"])
        made_by = str(stated.get("made_by", ""))
        rows = {entry["shape"][0] for name, entry in header.items() if name != "__metadata__"}
        whole = stated["sha256"] == hashlib.sha256(content[8 + length :]).hexdigest()
        labels = _labels(header, list(keys))
        whole = whole and stated.get("labels", labels) == labels
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        return DAMAGED
    return Part(path, keys, made_by) if whole and rows == {len(keys)} else DAMAGED


def _labels(header: Mapping[str, Any], keys: list[str]) -> str:
    """Checksum of what the tensors and their rows are called, and of their types and shapes."""
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return hashlib.sha256(json.dumps([tensors, keys], sort_keys=True).encode()).hexdigest()


def _serialise(keys: Sequence[str], groups: Mapping[str, Array], made_by: str = "") -> bytes:
    """Safetensors bytes of a part; keys and checksum of the tensor bytes stand in its header."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(groups[name]) for name in sorted(groups)}
    plain = save(tensors)
    body = plain[8 + struct.unpack("<Q", plain[:8])[0] :]
    checksum = hashlib.sha256(body).hexdigest()
    labels = _labels(json.loads(plain[8 : len(plain) - len(body)]), list(keys))
    stated = {"format": FORMAT, "keys": list(keys), "sha256": checksum, "labels": labels}
    stated |= {"made_by": made_by} if made_by else {}
    content: bytes = save(tensors, metadata={HEADER: json.dumps(stated)})
    return content


def gather(parts: Sequence[Part], keys: Sequence[str]) -> dict[str, Array]:
    """Rows of `keys`, in their order, from the parts that hold them."""
    from safetensors.numpy import load_file

    wanted: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        wanted.setdefault(key, []).append(index)
    result: dict[str, Array] = {}
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
                result[name] = np.empty((len(keys), *values.shape[1:]), values.dtype)
            result[name][to] = values[rows]
    return result


@final
class Rows:
    """Single rows of parts, read as they are asked for: for caches larger than memory."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._places = {
            key: (part.path, row) for part in parts for row, key in enumerate(part.keys)
        }

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def get(self, key: str) -> dict[str, Array] | None:
        """The key's row of every group, group -> [...]; None where it is lost or not finite."""
        from safetensors import SafetensorError, safe_open

        if key not in self._places:
            return None
        path, row = self._places[key]
        try:
            with safe_open(path, framework="np") as file:
                names = file.keys()
                found = {name: np.asarray(file.get_slice(name)[row]) for name in names}
        except (OSError, SafetensorError):
            return None
        return found if all(np.isfinite(values).all() for values in found.values()) else None
