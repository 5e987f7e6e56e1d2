"""Where exports go: a file or a directory, whole or absent, never over what is not an export's.

A Parquet file says in its schema metadata that an export made it; a directory holds a hidden mark
that lists its files. Only such places are written again, and a directory only while it holds
nothing else.
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
#: In every directory that an export writes: what it is and the files it holds.
MARK = ".export.json"


def claim(out: Path) -> None:
    """Raise UsageError where something stands at `out` that no export made, RunError at a link."""
    refuse_link(out)
    if out.is_dir():
        known = _marked(out)
        here = {p.relative_to(out).as_posix() for p in out.rglob("*") if not p.is_dir()}
        foreign = sorted(here - known)
        if foreign:
            raise UsageError(
                f"{out} holds what no export made: {foreign[0]}",
                hint="Choose a new or empty place with --output.",
            )
    elif out.exists() and not _is_ours(out):
        raise UsageError(
            f"{out} exists and no export made it", hint="Choose another file with --output."
        )


def _marked(out: Path) -> set[str]:
    """Files that the mark of a directory lists, itself included."""
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
    """Make the directory `out` of what `fill` writes to the path it is given, all at once.

    `facts` go into its mark. Raises UsageError where `out` is not an export's, RunError where it
    cannot be written; what stood there before is then untouched.
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
    """Put `fresh` where `out` is; an earlier export there is set aside first, then removed."""
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
