"""noisescope sample: a directory to try noisescope in, offline."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from noisescope.cli.console import print_json, print_lines
from noisescope.cli.options import JsonOption
from noisescope.errors import RunError
from noisescope.storage.workspace import FILE_NAME

#: Files of the workspace, relative to its root, with the generators that judges.py imports.
CONTENTS = (
    FILE_NAME,
    "sample_data/hh-rlhf",
    "sample_data/pick-a-pic",
    "sample_data/models",
    "sample_data/prompts",
    "sample_data/judges.py",
    "sample_data/hh_topics.py",
    "sample_data/make_hh_rlhf.py",
    "sample_data/shapes.py",
)


def sample_root() -> Path:
    """Directory of the sample. Raises RunError if this installation has none."""
    package = Path(__file__).parents[1]
    for root in (package / "sample", package.parent):
        if all((root / name).exists() for name in CONTENTS):
            return root
    raise RunError(
        "this installation of noisescope has no sample data",
        hint="Install noisescope from its wheel, or clone its repository.",
    )


def write_sample(directory: Path) -> Path:
    """Copy the sample to a new `directory`, whole or not at all; the directory.

    Raises RunError where `directory` exists and is not an empty directory, or cannot be written.
    """
    source = sample_root()
    if directory.is_symlink() or (directory.exists() and not _is_empty(directory)):
        raise RunError(
            f"{directory} is there already",
            hint="Name a directory that does not exist yet: noisescope sample DIRECTORY",
        )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=directory.parent) as place:
            whole = Path(place) / directory.name
            for name in CONTENTS:
                _copy(source / name, whole / name)
            whole.replace(directory)
    except OSError as error:
        raise RunError(
            f"cannot write {directory}: {error.strerror or error}",
            hint="Name a directory you may write to: noisescope sample DIRECTORY",
        ) from error
    return directory


def _is_empty(directory: Path) -> bool:
    return directory.is_dir() and not any(directory.iterdir())


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def sample(
    directory: Annotated[Path, typer.Argument(help="The directory to make.")] = Path(
        "noisescope-sample"
    ),
    json: JsonOption = False,
) -> None:
    """Write the sample datasets and tiny models into a new directory, to try every command offline.

    Example: noisescope sample && cd noisescope-sample && noisescope score hh-rlhf
    """
    written = write_sample(directory)
    if json:
        print_json({"sample": str(written)})
        return
    print_lines(
        wrote=f"{written}: text and image pairs with known errors, tiny models",
        next=f"cd {shlex.quote(str(written))} && noisescope score hh-rlhf",
    )
