"""Whether a run's files are the ones that were written: checksums, and no links out of it.

The manifest states the SHA-256 of every data file and of itself (`seal`). A file that reads
otherwise is damaged: `score` makes it again, everything else refuses it by name. This finds
accidents; who can write the run can also write fitting checksums.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from noisescope.errors import RunError, first_five

#: Key of a JSON object's own checksum, taken over everything else in it.
SEAL = "checksum"
#: Key of the manifest's checksums of files.
CHECKSUMS = "checksums"
#: Files of a run directory by what they hold: what verdicts rest on, the verdicts, and adapters.
#: Its JSON files, shards' records and training states carry checksums of their own.
PATTERNS = {
    "pairs": ("pairs.parquet",),
    "scores": ("scores.parquet",),
    "margins": ("margins/part-*.parquet",),
    "averages": ("averages/part-*.parquet",),
    "replicas": tuple(
        f"replicas/{folder}/{name}"
        for folder in ("*", "*/ema-*")
        for name in ("adapter_*.json", "adapter_*.safetensors", "pytorch_lora_*.safetensors")
    ),
}

#: Folders of margins: a file of theirs that is gone is missed.
FOLDERS = ("margins", "averages")


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with its own checksum."""
    rest = {name: value for name, value in content.items() if name != SEAL}
    return rest | {SEAL: _seal_of(rest)}


def unsealed(content: Mapping[str, Any], path: Path, hint: str) -> dict[str, Any]:
    """`content` without its checksum. Raises RunError naming `path` where they do not agree."""
    rest = {name: value for name, value in content.items() if name != SEAL}
    if SEAL in content and content[SEAL] != _seal_of(rest):
        raise RunError(f"{path} is damaged: its checksum differs", hint=hint)
    return rest


def _seal_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def checksums(directory: Path, tables: Collection[str] = tuple(PATTERNS)) -> dict[str, str]:
    """SHA-256 of every data file of a run, by its name relative to `directory`."""
    patterns = [glob for name, globs in PATTERNS.items() if name in tables for glob in globs]
    paths = [path for pattern in patterns for path in sorted(directory.glob(pattern))]
    return {path.relative_to(directory).as_posix(): _checksum(path) for path in paths}


def _checksum(path: Path) -> str:
    """Raises RunError for a file that cannot be read."""
    try:
        about = path.stat()
        times = about.st_mtime_ns, about.st_ctime_ns  # the second cannot be set
        return _digest(path, about.st_ino, about.st_size, *times)
    except OSError as error:
        raise RunError(
            f"{path} cannot be read: {error.strerror or error}", hint="May you read it? ls -l"
        ) from error


@lru_cache(maxsize=1 << 12)
def _digest(path: Path, *_version: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damaged(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Data files that are not as `manifest` states them; none where it states nothing.

    Only files of the run's own layout are opened, whatever names the manifest holds.
    """
    stated = _stated(manifest)
    return [
        name for name, found in checksums(directory).items() if stated.get(name, found) != found
    ]


def drop_damaged(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Remove the files that `damaged` names; the names.

    Without one of its adapters the run is unfinished, so its manifest goes, too: whoever is killed
    while making it again leaves no run that only seems whole.
    """
    names = damaged(directory, manifest)
    for name in names:
        (directory / name).unlink(missing_ok=True)
    if any(name.startswith("replicas/") for name in names):
        (directory / "manifest.json").unlink(missing_ok=True)
    return names


def _stated(manifest: Mapping[str, Any]) -> dict[str, str]:
    stated = manifest.get(CHECKSUMS)
    return stated if isinstance(stated, dict) else {}


def require_sound(
    directory: Path, manifest: Mapping[str, Any], tables: Collection[str] = tuple(PATTERNS)
) -> None:
    """Raise RunError naming data files that are damaged, links, or margins that are gone.

    Only files of `tables` are read: hashing takes about a second a gigabyte.
    """
    refuse_links(directory)
    stated, here = _stated(manifest), checksums(directory, tables)
    names = [name for name, found in here.items() if stated.get(name, found) != found]
    gone = tuple(f"{folder}/" for folder in FOLDERS if folder in tables)
    names += [f"{name} (gone)" for name in stated if name.startswith(gone) and name not in here]
    if names:
        raise RunError(
            f"{directory}: damaged since it was written: {first_five(names)}",
            hint="Type the `noisescope score` command of this run again: it makes them anew.",
        )


def require_written(path: Path) -> None:
    """Raise RunError where `path` is an adapter of a finished run, and not as it was written."""
    for directory in list(path.resolve().parents)[2:4]:  # replicas/<m>/, or ema-* below it
        manifest = directory / "manifest.json"
        if not manifest.is_file() or not (directory / "plan.json").is_file():
            continue
        hint = "Type the `noisescope score` command of that run again: it makes it anew."
        try:
            content = unsealed(json.loads(manifest.read_text("utf-8")), manifest, hint)
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise RunError(f"{manifest} cannot be read: {error}", hint=hint) from error
        name = path.resolve().relative_to(directory).as_posix()
        if _stated(content).get(name, found := _checksum(path)) != found:
            raise RunError(f"{path} is damaged since it was written", hint=hint)


def refuse_links(directory: Path, *, elsewhere: str = "--run-dir") -> None:
    """Raise RunError if anything in a directory of results is a symbolic link: it could lead
    anywhere. `elsewhere` is the option that names another directory.

    The directory itself may be a link.
    """
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            raise RunError(
                f"{path} is a symbolic link: only ordinary files are read and written here",
                hint=f"Replace it by the file itself, or choose another place with {elsewhere}.",
            )
