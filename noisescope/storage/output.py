"""Write exports, whole or not at all, and never over files that no export made.

An exported Parquet file is marked in its schema metadata, an exported directory by a hidden file
that lists its contents. Only marked outputs are overwritten, a directory only if it contains no
other file.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from noisescope.errors import RunError, UsageError
from noisescope.storage.files import TEMPORARY_PREFIX, refuse_link, write_atomic

#: Metadata key of every Parquet file that an export writes.
KEY = b"noisescope.export"
#: File in every exported directory that describes it and lists its files.
MARK = ".export.json"


def claim(out: Path) -> None:
    """Raise UsageError if `out` exists and no export made it, RunError if it is a link."""
    refuse_link(out)
    if out.is_dir():
        known = _marked(out)
        here = {p.relative_to(out).as_posix() for p in out.rglob("*") if not p.is_dir()}
        foreign = sorted(here - known)
        if foreign:
            raise UsageError(
                f"{out} holds a file that no export made: {foreign[0]}",
                hint="Choose a new or empty place with --output.",
            )
    elif out.exists() and not _is_ours(out):
        raise UsageError(
            f"{out} exists and no export made it", hint="Choose another file with --output."
        )


def require_ending(out: Path, *endings: str) -> None:
    """Raise UsageError unless the name ends as its kind does: a dataset is never written over."""
    if out.suffix.lower() not in endings:
        raise UsageError(
            f"--output {out} must end in {' or '.join(endings)}",
            hint=f"Such as --output {out.with_suffix(endings[0])}.",
        )


def _marked(out: Path) -> set[str]:
    """Files that a directory's mark lists, and the mark itself."""
    try:
        listed = json.loads((out / MARK).read_text("utf-8"))["files"]
        return {MARK, *map(str, listed)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _is_ours(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def write_directory(
    out: Path, facts: Mapping[str, Any], fill: Callable[[Path], object]
) -> list[Path]:
    """Make the directory `out` from what `fill` writes to the path it gets, atomically.

    `facts` are added to its mark. Raises UsageError if no export made `out`, RunError if it cannot
    be written; an earlier export is then unchanged.
    """
    claim(out)
    temporary: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=out.parent))
        fill(temporary)
        files = sorted(p.relative_to(temporary) for p in temporary.rglob("*") if p.is_file())
        mark = {**facts, "files": [file.as_posix() for file in files]}
        write_atomic(temporary / MARK, json.dumps(mark, indent=2, ensure_ascii=False) + "\n")
        temporary.chmod(0o755)
        _replace(temporary, out)
    except OSError as error:
        raise RunError(
            f"cannot write {out}: {error.strerror or error}",
            hint="Free some disk space, or choose another place with --output.",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return [out / file for file in files]


def _replace(fresh: Path, out: Path) -> None:
    """Move `fresh` to `out`; an earlier export is moved away first, then removed."""
    if not out.exists():
        fresh.rename(out)
        return
    aside = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=out.parent))
    try:
        out.rename(aside / "old")
        try:
            fresh.rename(out)
        except OSError:
            (aside / "old").rename(out)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
