"""Files that are whole or absent: write to a temporary name, fsync, rename."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from noisescope.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

#: Temporary names start so; an interrupted write leaves at most one such file behind.
TEMPORARY_PREFIX = ".partial-"


def write_atomic(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    """Write `content` (or what a callable writes to the path it is given) to `path` at once.

    Readers see the old file or the new one, never a half. Raises RunError when the directory
    cannot be written or the disk is full; what stood at `path` before is then untouched.
    """
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
        raise _unwritten(path, content, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _unwritten(path: Path, content: object, error: OSError) -> RunError:
    """What kept `path` from being written; on a full disk, how much it takes."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"cannot write {path}: {error.strerror or error}",
            hint="Free some disk space, or choose a place you may write to.",
        )
    size = len(content) if isinstance(content, bytes | str) else 0
    needed = f", {size / 1e6:,.1f} MB needed for this file" if size else ""
    return RunError(
        f"cannot write {path}: the disk is full{needed}",
        hint="Free some space and type the same command again: what is finished is kept.",
    )


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file at once. Raises RunError as `write_atomic` does."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}

    def save(temporary: Path) -> None:
        try:
            save_file(held, temporary, metadata=dict(metadata or {"format": "pt"}))
        except SafetensorError as error:  # its only word for a full disk
            raise OSError(str(error)) from error

    write_atomic(path, save)


def _publish(temporary: Path, path: Path) -> None:
    """Flush `temporary` to disk, give it ordinary permissions, and rename it to `path`."""
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    temporary.replace(path)
