"""Cache rows of tensors by key, in chunks: the mechanism of every cache.

    chunks = compute_missing(source, items, directory, progress, "feature")
    gather(chunks, keys)                               # group -> [n, ...], in the order of keys

Items that are not cached are ordered by (prompt, key) and cut into chunks of about CHUNK units of
work; each chunk becomes one file, `<directory>/<chunk>.safetensors`. A chunk ends where its own
items say and is named after their keys, so a killed run continues with the same chunks and bytes,
and two processes at once write the same files. A chunk records the model that made it, so that a
chunk of another model is recognised wherever it is copied.
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
from noisescope.progress import Progress, inside
from noisescope.storage.checksums import FileVersion, file_version
from noisescope.storage.files import write_atomic
from noisescope.storage.remote import Place

Array = NDArray[Any]
#: Work of a chunk, in the source's units (tokens, denoiser calls): what a kill can cost.
CHUNK = 16_384
HEADER = "noisescope"
#: Names of chunks; no other file is copied.
CHUNK_NAME = re.compile(r"[0-9a-f]{20}\.safetensors")
#: Version of a chunk's layout; chunks of other versions are computed again.
FORMAT = 1


class Source(Protocol):
    """A model, or anything else that computes rows."""

    def sizes(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """Work of each item, [n]."""

    def features(self, items: Sequence[Item]) -> Mapping[str, Array]:
        """Groups of rows, group -> [n, ...]."""


@final
@dataclass(frozen=True)
class Chunk:
    """A sound chunk on disk, the keys of its rows and, if recorded, the model that made it."""

    path: Path
    keys: tuple[str, ...]
    made_by: str = ""


@final
@dataclass(frozen=True)
class PlannedChunk:
    """Items to compute together, and their work."""

    items: tuple[Item, ...]
    work: float


def compute_missing(
    source: Source,
    items: Sequence[Item],
    directory: Path,
    progress: Progress,
    what: str,
    made_by: str = "",
) -> list[Chunk]:
    """Compute the items that no sound chunk of `directory` has; return all of its chunks.

    A chunk that is damaged, of another FORMAT or not `made_by` that model is replaced, with a
    remark to `progress` that names the `what` cache. Raises RunError if the directory cannot be
    read or written.
    """
    chunks, faulty = scan(directory, made_by)
    todo = missing(items, chunks)
    sizes = source.sizes(todo)
    total, done = float(sizes.sum()), 0.0
    for path, fault in faulty.items():
        progress(0.0, total, f"{path.name} in the {what} cache is {fault}: computing it again")
        if fault == DAMAGED and open_chunk(path) == DAMAGED:  # still so
            path.unlink(missing_ok=True)
    progress(done, total, None)
    left = {item.key for item in todo}
    whole = len({item.key for item in items})
    for planned in plan_chunks(todo, sizes):

        def within(share: float, done: float = done, work: float = planned.work) -> None:
            progress(done + share * work, total, None)

        keys = tuple(item.key for item in planned.items)
        path = directory / f"{digest(*keys)}.safetensors"
        chunk = matching(open_chunk(path), made_by) if path.is_file() else DAMAGED
        if not isinstance(chunk, Chunk):
            try:
                with inside(within):
                    groups = source.features(planned.items)
            except BaseException as stop:
                if not isinstance(stop, Exception):  # a signal
                    unit = "responses" if what == "feature" else f"{what}s"
                    stop.add_note(f"{whole - len(left):,} of {whole:,} {unit} are kept.")
                raise
            write_atomic(path, serialise(keys, groups, made_by))
            chunk = Chunk(path, keys, made_by)
        chunks.append(chunk)
        left.difference_update(keys)
        done += planned.work
        progress(done, total, None)
    return chunks


def missing(items: Sequence[Item], chunks: Sequence[Chunk]) -> list[Item]:
    """The distinct items that no chunk has."""
    known = {key for chunk in chunks for key in chunk.keys}
    return [item for key, item in {item.key: item for item in items}.items() if key not in known]


def plan_chunks(items: Sequence[Item], sizes: NDArray[np.int64]) -> Iterator[PlannedChunk]:
    """Cut items, ordered by (prompt, key), wherever the work since the last cut reaches CHUNK.

    Removing whole chunks leaves the other chunks unchanged. Ordering by the prompt's hash keeps
    responses of a prompt together and mixes long and short ones, so the ETA is unbiased.
    """
    order = sorted(range(len(items)), key=lambda i: sort_key(items[i]))
    batch: list[Item] = []
    work = 0
    for index in order:
        batch.append(items[index])
        work += int(sizes[index])
        if work >= CHUNK:
            yield PlannedChunk(tuple(batch), work)
            batch, work = [], 0
    if batch:
        yield PlannedChunk(tuple(batch), work)


def sort_key(item: Item) -> str:
    """The key by which items are ordered before chunks are cut: prompt hash, then item key."""
    return f"{digest(item.prompt)}-{item.key}"


def scan(directory: Path, made_by: str = "") -> tuple[list[Chunk], dict[Path, str]]:
    """The sound chunks of a cache directory by name, and what is wrong with the others.

    Raises RunError if the directory or a file cannot be read, which is no damage.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".safetensors")
        found = {
            path: matching(open_chunk(path), made_by)
            for path in paths
            if not path.name.startswith(".")
        }
    except (FileNotFoundError, NotADirectoryError):
        return [], {}
    except OSError as error:
        raise RunError(
            f"cannot read the cache {error.filename or directory}: {error.strerror or error}",
            hint="Make it readable, or remove it: its contents are computed again.",
        ) from error
    faulty = {path: chunk for path, chunk in found.items() if isinstance(chunk, str)}
    return [chunk for chunk in found.values() if isinstance(chunk, Chunk)], faulty


def copy_chunks(
    source: Place, directory: Path, made_by: str, wanted: set[str], faults: list[str]
) -> int:
    """Copy sound chunks with `wanted` keys, and remove those keys from the set; how many chunks.

    Faults of the others are appended to `faults`.
    """
    copied = 0
    for path in source.files():
        if not wanted or not CHUNK_NAME.fullmatch(path.name):
            continue
        target, content = directory / path.name, path.read()
        chunk = matching(check(target, content), made_by)
        if not isinstance(chunk, Chunk):
            faults.append(f"{path} is {chunk}")
        elif wanted & set(chunk.keys):
            write_atomic(target, content)
            wanted.difference_update(chunk.keys)
            copied += 1
    return copied


#: The fault of a file whose bytes do not match their checksum.
DAMAGED = "damaged"


def matching(chunk: Chunk | str, made_by: str) -> Chunk | str:
    """`chunk`, or its fault if another model than `made_by` made it."""
    if isinstance(chunk, str) or not made_by or chunk.made_by in ("", made_by):
        return chunk
    return f"of a different model ({chunk.made_by[:20]})"


def open_chunk(path: Path) -> Chunk | str:
    """The chunk in a file if its bytes match the checksum in its header, else its fault.

    A file that has not changed since it was last opened is not read again. Raises OSError.
    """
    try:
        return _checked(path, file_version(path))
    except FileNotFoundError:  # another process removed it just now
        return DAMAGED


@lru_cache(maxsize=1 << 16)
def _checked(path: Path, _version: FileVersion) -> Chunk | str:
    return check(path, path.read_bytes())


def check(path: Path, content: bytes) -> Chunk | str:
    """The chunk in the `content` of `path`, or its fault."""
    try:
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        recorded = json.loads(header["__metadata__"][HEADER])
        if recorded.get("format", FORMAT) != FORMAT:
            return "of a different version of noisescope"
        keys = tuple(str(key) for key in recorded["keys"])
        made_by = str(recorded.get("made_by", ""))
        rows = {entry["shape"][0] for name, entry in header.items() if name != "__metadata__"}
        whole = recorded["sha256"] == hashlib.sha256(content[8 + length :]).hexdigest()
        labels = _labels(header, list(keys))
        whole = whole and recorded.get("labels", labels) == labels
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        return DAMAGED
    return Chunk(path, keys, made_by) if whole and rows == {len(keys)} else DAMAGED


def _labels(header: Mapping[str, Any], keys: list[str]) -> str:
    """Checksum of the names, types and shapes of the tensors, and of the keys of their rows."""
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return hashlib.sha256(json.dumps([tensors, keys], sort_keys=True).encode()).hexdigest()


def serialise(keys: Sequence[str], groups: Mapping[str, Array], made_by: str = "") -> bytes:
    """The safetensors bytes of a chunk, with keys and checksums in its header."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(groups[name]) for name in sorted(groups)}
    plain = save(tensors)
    body = plain[8 + struct.unpack("<Q", plain[:8])[0] :]
    checksum = hashlib.sha256(body).hexdigest()
    labels = _labels(json.loads(plain[8 : len(plain) - len(body)]), list(keys))
    recorded = {"format": FORMAT, "keys": list(keys), "sha256": checksum, "labels": labels}
    recorded |= {"made_by": made_by} if made_by else {}
    content: bytes = save(tensors, metadata={HEADER: json.dumps(recorded)})
    return content


def gather(chunks: Sequence[Chunk], keys: Sequence[str]) -> dict[str, Array]:
    """The rows of `keys`, in their order, from the chunks that have them."""
    from safetensors.numpy import load_file

    wanted: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        wanted.setdefault(key, []).append(index)
    result: dict[str, Array] = {}
    for chunk in chunks:
        to, rows = [], []
        for row, key in enumerate(chunk.keys):
            places = wanted.pop(key, [])
            to += places
            rows += [row] * len(places)
        if not to:
            continue
        for name, values in load_file(chunk.path).items():
            if name not in result:
                result[name] = np.empty((len(keys), *values.shape[1:]), values.dtype)
            result[name][to] = values[rows]
    return result


@final
class Rows:
    """Single rows of chunks, each read when it is needed: for caches larger than memory."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._rows = {
            key: (chunk.path, row) for chunk in chunks for row, key in enumerate(chunk.keys)
        }

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def get(self, key: str) -> dict[str, Array] | None:
        """The key's row of every group, group -> [...]; None if it is missing or not finite."""
        from safetensors import SafetensorError, safe_open

        if key not in self._rows:
            return None
        path, row = self._rows[key]
        try:
            with safe_open(path, framework="np") as file:
                names = file.keys()
                found = {name: np.asarray(file.get_slice(name)[row]) for name in names}
        except (OSError, SafetensorError):
            return None
        return found if all(np.isfinite(values).all() for values in found.values()) else None
