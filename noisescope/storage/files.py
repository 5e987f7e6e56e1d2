"""Write files that are whole or absent, and lock the directories they are in.

write_atomic(path, content)          # temporary name, fsync, rename
with locked(directory): ...          # one process at a time; a kill releases the lock
write_sealed(path, tensors, facts)   # safetensors with a checksum
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

#: Temporary names start so; an interrupted write leaves at most one such file behind.
TEMPORARY_PREFIX = ".partial-"
#: Hint of a damaged file of tensors.
_AGAIN = "Remove it and run the same command again: its contents are made again."


def slug(name: str) -> str:
    """A dataset's name as a file name: never empty, hidden, or with a separator."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "dataset"


def write_atomic(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Write `content` (or what a callable writes to the path it gets) to `path` atomically.

    Readers see the old file or the new one, never a part. Raises RunError if the directory cannot
    be written, the disk is full, or `path` is a symbolic link; an earlier file is then unchanged.
    """
    refuse_link(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=TEMPORARY_PREFIX, suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        _publish(temporary, path)
    except OSError as error:
        raise unwritten(path, error, content) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def append(descriptor: int, data: bytes) -> None:
    """Write all of `data` to the end of an open file and sync it, or none: raises OSError."""
    size = os.fstat(descriptor).st_size
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(descriptor, size)
        raise


def refuse_link(path: Path, option: str = "--output") -> None:
    """Raise RunError if `path`, an output, is a symbolic link.

    Its parent directories may be links. `option` is the option that names another path.
    """
    if path.is_symlink():
        raise RunError(
            f"{path} is a symbolic link: nothing is written through one, or in its place",
            hint=f"Remove it, or name its target with {option}.",
        )


def sweep(directory: Path) -> None:
    """Remove temporary files of interrupted writes below `directory`. Hold its lock."""
    for path in list(directory.rglob(f"{TEMPORARY_PREFIX}*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def unwritten(path: Path, error: OSError, content: object = None) -> RunError:
    """The error of a failed write; on a full disk, with the space needed."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"cannot write {path}: {error.strerror or error}",
            hint="Free some disk space, or choose a place you may write to.",
        )
    size = len(content) if isinstance(content, bytes | str) else 0
    needed = f", {size / 1e6:,.1f} MB needed for this file" if size else ""
    return RunError(
        f"cannot write {path}: the disk is full{needed}",
        hint="Free some space and run the same command again: what is finished is kept.",
    )


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically. Raises RunError as `write_atomic` does."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}

    def save(temporary: Path) -> None:
        try:
            save_file(held, temporary, metadata=dict(metadata or {"format": "pt"}))
        except SafetensorError as error:  # its text alone has the system's error number
            full = f"os error {errno.ENOSPC}" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error

    write_atomic(path, save)


def write_sealed(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts (JSON) to a safetensors file, with a checksum over both."""
    held = json.dumps(dict(facts))
    sealed = {"facts": held, "sha256": _digest(tensors, held)}
    write_tensors(path, tensors, {"sealed": json.dumps(sealed)})  # one: several have no order


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_sealed` wrote, tensors mapped. Raises RunError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            sealed = json.loads(file.metadata()["sealed"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        whole = sealed["sha256"] == _digest(tensors, sealed["facts"])
        facts = json.loads(sealed["facts"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}", hint=_AGAIN) from error
    if not whole:
        raise RunError(f"{path} is damaged: its checksum differs", hint=_AGAIN)
    return tensors, facts


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    """SHA-256 of tensors (names, types, shapes, bytes) and the text beside them."""
    import torch

    sha = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _publish(temporary: Path, path: Path) -> None:
    """Flush `temporary` to disk, give it ordinary permissions, and rename it to `path`."""
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    temporary.replace(path)


#: Names the process that writes a directory; emptied when it is done, and free when it dies.
LOCK = ".lock"


@contextlib.contextmanager
def locked(directory: Path, *, elsewhere: str = "--run-dir") -> Iterator[None]:
    """Keep other processes from writing `directory` inside the block.

    An advisory lock (flock), which the system releases with the process: a kill leaves none behind.
    `elsewhere` is the option that names another directory. Raises RunError naming the holder.
    """
    try:
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunError(
            f"cannot write to {directory}: {error.strerror}",
            hint=f"Choose a place you may write to with {elsewhere}.",
        ) from error
    _take(directory, descriptor, elsewhere)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.truncate(descriptor, 0)
            os.close(descriptor)


def hold(owner: object, directory: Path, *, elsewhere: str) -> None:
    """`locked` for as long as `owner` lives."""
    stack = contextlib.ExitStack()
    stack.enter_context(locked(directory, elsewhere=elsewhere))
    weakref.finalize(owner, stack.close)


def _take(directory: Path, descriptor: int, elsewhere: str) -> None:
    """Lock the open file and write this process' number into it. Raises RunError if held."""
    try:
        import fcntl
    except ImportError:  # Windows has no `flock`; concurrent runs are not protected there
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return  # a file system without locks
        holder = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise RunError(
            f"{directory} is being written by another process ({holder})",
            hint=f"Wait until it is done, or write elsewhere with {elsewhere}.",
        ) from error
    with contextlib.suppress(OSError):  # a full disk: the lock is held without a name
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
