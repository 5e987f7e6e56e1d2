"""The directory of a flipped copy: whose it is, and what lies in it beside the rows.

with claimed(Path("flipped/hh"), source, plan):      # refuses anything but this plan's own copy
    ...
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.errors import RunError, UsageError
from noisescope.locking import LOCK, hold
from noisescope.pairs import digest
from noisescope.storage import TEMPORARY_PREFIX, refuse_link, sweep, unwritten, write_atomic

if TYPE_CHECKING:
    from noisescope.datasets import Source
    from noisescope.flips import FlipPlan
    from noisescope.rewriting_tables import Decoded

#: Written first; says which plan an unfinished copy is for. Hidden: no data file.
MARK = ".flip.json"
#: Characters of the longest path looked for in a row.
_LONGEST = 1024


@contextmanager
def claimed(out: Path, source: Source, plan: FlipPlan) -> Iterator[None]:
    """`out` made this plan's directory, which no other process writes meanwhile.

    Raises where it is the source, holds anything else or a link, or is being written.
    """
    refuse_link(out, "--out")
    there = out.resolve()
    taken = {file.resolve() for file in source.files} | {
        file.resolve().parent for file in source.files
    }
    if there in taken or (source.root is not None and there == source.root.resolve()):
        raise UsageError(
            f"{out} holds the source: flip never writes over it", hint="Name another --out."
        )
    if out.exists() and not out.is_dir():
        raise _other(out)
    _make(out)
    mark = json.dumps(asdict(plan) | {"source": source.resolved}) + "\n"
    _require_own(out, mark)  # before anything is written into it, or all of it looked through
    _refuse_links(out)
    owner = _Owner()
    hold(owner, out, elsewhere="--out")
    _require_own(out, mark)
    sweep(out)
    write_atomic(out / MARK, mark)
    try:
        yield
    finally:
        del owner


def _refuse_links(out: Path) -> None:
    """The lock file is truncated, and files below are written: a link's target with them."""
    for path in sorted(out.rglob("*")):
        refuse_link(path, "--out")


class _Owner:
    """Holds a directory while it lives."""


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritten(out, error) from error


def _require_own(out: Path, mark: str) -> None:
    """Raise RunError where a directory holds anything but the copy that `mark` tells of."""
    if any(map(_stays, out.iterdir())):
        known = out / MARK
        if not (known.is_file() and known.read_bytes() == mark.encode()):
            raise _other(out)


def _other(out: Path) -> RunError:
    return RunError(
        f"{out} is not empty and no copy of this plan",
        hint="Choose a new or empty directory with --out.",
    )


def _stays(path: Path) -> bool:
    """Whether a file is more than a lock and what a killed write left."""
    return path.name != LOCK and not path.name.startswith(TEMPORARY_PREFIX)


def copy_metadata(source: Source, root: Path, out: Path, plan: FlipPlan) -> None:
    """What a saved dataset's directory says about itself, under a fingerprint of its own.

    Caches of `datasets` go by that fingerprint: with the source's own they would be mixed up.
    """
    for folder in sorted({file.parent for file in source.files}):
        state = folder / "state.json"
        if not state.is_file():
            continue
        target = out / (folder.relative_to(root) if folder.is_relative_to(root) else "")
        content = json.loads(state.read_text("utf-8"))
        content["_fingerprint"] = digest(
            "flip", str(content.get("_fingerprint")), json.dumps(asdict(plan))
        )[:16]
        write_atomic(target / "state.json", json.dumps(content, indent=2) + "\n")
        for name in ("dataset_info.json",):
            if (folder / name).is_file():
                write_atomic(target / name, (folder / name).read_bytes())
        if target != out:
            write_atomic(out / "dataset_dict.json", json.dumps({"splits": [folder.name]}) + "\n")


def copy_images(rows: Sequence[Decoded], folder: Path, target: Path) -> None:
    """Give the copy the image files that rows name by a path relative to their own `folder`.

    They are linked (one file under two names) where the file system can, else copied; paths
    that leave the folder are not followed, as no reader follows them either.
    """
    inside = folder.resolve()
    for _, values, _ in rows:
        for name in _names(values):
            source, copy = folder / name, target / name
            if copy.exists() or not source.is_file():
                continue
            if not source.resolve().is_relative_to(inside) or ".." in Path(name).parts:
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source.resolve(), copy)
            except OSError:
                write_atomic(copy, partial(shutil.copyfile, source))


def _names(value: Any) -> Iterator[str]:
    """Texts in a value that may be paths."""
    if isinstance(value, str):
        if 0 < len(value) <= _LONGEST and value.isprintable() and not Path(value).is_absolute():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _names(part)
    elif isinstance(value, list):
        for part in value:
            yield from _names(part)
