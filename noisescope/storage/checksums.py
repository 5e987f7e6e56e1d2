"""Verify that a run's files are unchanged, and that none is a symbolic link.

    manifest = with_checksum({"checksums": checksums(run.directory), ...})
    require_sound(run.directory, manifest)          # RunError naming damaged files

The manifest records the SHA-256 of every data file and of itself. `score` makes a damaged file
again; every other command refuses it by name. Detects accidental damage only: anyone who can write
to the run can also rewrite its checksums.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from noisescope.errors import RunError, first_five

#: Key of a JSON object's own checksum, computed over everything else in it.
OWN_CHECKSUM = "checksum"
#: Key of the manifest's checksums of files.
CHECKSUMS = "checksums"
#: Data files of a run directory. Its JSON files, shard records and training states have checksums
#: of their own.
PATTERNS = {
    "pairs": ("pairs.parquet",),
    "scores": ("scores.parquet",),
    "opinions": ("opinions.parquet",),
    "margins": ("margins/part-*.parquet", "margins/shift.parquet", "margins/outside.parquet"),
    "averages": ("averages/part-*.parquet",),
    "replicas": tuple(
        f"replicas/{folder}/{name}"
        for folder in ("*", "*/ema-*")
        for name in ("adapter_*.json", "adapter_*.safetensors", "pytorch_lora_*.safetensors")
    ),
}
#: Folders whose files are all required: margins, and the adapters of replicas.
FOLDERS = ("margins", "averages", "replicas")


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add a JSON object's own checksum."""
    rest = {name: value for name, value in content.items() if name != OWN_CHECKSUM}
    return rest | {OWN_CHECKSUM: _checksum_of(rest)}


def verified(content: Mapping[str, Any], path: Path, hint: str) -> dict[str, Any]:
    """`content` without its checksum, if any. Raises RunError naming `path` if it differs."""
    rest = {name: value for name, value in content.items() if name != OWN_CHECKSUM}
    if OWN_CHECKSUM in content and content[OWN_CHECKSUM] != _checksum_of(rest):
        raise RunError(f"{path} is damaged: its checksum differs", hint=hint)
    return rest


def _checksum_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def checksums(directory: Path, tables: Collection[str] = tuple(PATTERNS)) -> dict[str, str]:
    """SHA-256 of every data file of a run, by its name relative to `directory`."""
    patterns = [glob for name, globs in PATTERNS.items() if name in tables for glob in globs]
    paths = [path for pattern in patterns for path in sorted(directory.glob(pattern))]
    return {path.relative_to(directory).as_posix(): file_digest(path) for path in paths}


#: What changes with every write to a file: inode, size, and two times.
FileVersion = tuple[int, int, int, int]


def file_version(path: Path) -> FileVersion:
    """The version of a file's contents, for caches of what was read. Raises OSError."""
    about = path.stat()
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns  # ctime cannot be set


def file_digest(path: Path) -> str:
    """SHA-256 of a file; an unchanged file is not read again. Raises RunError."""
    try:
        return _digest(path, file_version(path))
    except OSError as error:
        raise RunError(
            f"{path} cannot be read: {error.strerror or error}",
            hint="Check the file's permissions (`ls -l`).",
        ) from error


@lru_cache(maxsize=1 << 12)
def _digest(path: Path, _version: FileVersion) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damaged(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Data files whose checksums differ from those in `manifest`.

    Only files of the run's own layout are opened, whatever names the manifest contains.
    """
    recorded = _recorded(manifest)
    return [
        name for name, found in checksums(directory).items() if recorded.get(name, found) != found
    ]


def drop_damaged(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Remove the files that `damaged` returns; their names.

    A run that has lost an adapter is unfinished, so its manifest is removed too: a kill while the
    adapter is made again then leaves no run that seems complete.
    """
    names = [*damaged(directory, manifest), *_gone(directory, manifest, ("replicas",))]
    for name in names:
        (directory / name).unlink(missing_ok=True)
    if any(name.startswith("replicas/") for name in names):
        (directory / "manifest.json").unlink(missing_ok=True)
    return names


def _gone(directory: Path, manifest: Mapping[str, Any], folders: Collection[str]) -> list[str]:
    """Files in `folders` that `manifest` records and that do not exist."""
    kept = tuple(f"{folder}/" for folder in folders)
    recorded = (name for name in _recorded(manifest) if name.startswith(kept))
    return [name for name in recorded if not (directory / name).is_file()]


def _recorded(manifest: Mapping[str, Any]) -> dict[str, str]:
    recorded = manifest.get(CHECKSUMS)
    return recorded if isinstance(recorded, dict) else {}


def require_sound(
    directory: Path, manifest: Mapping[str, Any], tables: Collection[str] = tuple(PATTERNS)
) -> None:
    """Raise RunError naming data files that are damaged, links, or (margins, adapters) gone.

    Only files of `tables` are read: hashing takes about a second a gigabyte.
    """
    refuse_links(directory)
    recorded, here = _recorded(manifest), checksums(directory, tables)
    names = [name for name, found in here.items() if recorded.get(name, found) != found]
    gone = _gone(directory, manifest, [folder for folder in FOLDERS if folder in tables])
    names += [f"{name} (gone)" for name in gone]
    if names:
        raise RunError(
            f"{directory}: damaged since it was written: {first_five(names)}",
            hint="Run the `noisescope score` command of this run again: it makes them again.",
        )


def require_written(path: Path) -> None:
    """Raise RunError if `path` is an adapter of a finished run, and has changed since."""
    for directory in list(path.resolve().parents)[2:4]:  # replicas/<m>/, or ema-* below it
        manifest = directory / "manifest.json"
        if not manifest.is_file() or not (directory / "plan.json").is_file():
            continue
        hint = "Run the `noisescope score` command of that run again: it makes it again."
        try:
            content = verified(json.loads(manifest.read_text("utf-8")), manifest, hint)
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise RunError(f"{manifest} cannot be read: {error}", hint=hint) from error
        name = path.resolve().relative_to(directory).as_posix()
        if _recorded(content).get(name, found := file_digest(path)) != found:
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
