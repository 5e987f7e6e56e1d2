"""One process writes a directory at a time: an advisory lock that dies with its process.

    hold(run, run.directory)

keeps others out until `run` is let go, or the process ends in whatever way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from pathlib import Path

from noisescope.errors import RunError

#: Names the process that writes a directory; emptied when it is done, and free when it dies.
LOCK = ".lock"

#: Directories this process writes: the open lock file, and how many owners hold it.
_held: dict[Path, tuple[int, int]] = {}


def hold(owner: object, directory: Path, *, elsewhere: str = "--run-dir") -> None:
    """Keep other processes from writing `directory` while `owner` lives.

    An advisory lock (flock), which the system drops with the process: a kill leaves none behind.
    `elsewhere` is the option that names another directory. Raises RunError naming the holder.
    """
    place = directory.resolve()
    descriptor, holders = _held.get(place, (-1, 0))
    if not holders:
        try:
            descriptor = os.open(place / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunError(
                f"cannot write to {directory}: {error.strerror}",
                hint=f"Choose a place you may write to with {elsewhere}.",
            ) from error
        _take(directory, descriptor, elsewhere)
    _held[place] = descriptor, holders + 1
    weakref.finalize(owner, _release, place)


def _take(directory: Path, descriptor: int, elsewhere: str) -> None:
    """Lock the open file and write this process' number into it."""
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks; runs there are one user's own care
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
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())


def _release(place: Path) -> None:
    """One owner less; the last one empties the lock file and gives it free."""
    descriptor, holders = _held.pop(place)
    if holders > 1:
        _held[place] = descriptor, holders - 1
        return
    with contextlib.suppress(OSError):
        os.truncate(descriptor, 0)
        os.close(descriptor)
