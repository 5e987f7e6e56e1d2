"""What a command works on when its arguments leave it open: workspace defaults, said aloud."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from noisescope.errors import UsageError
from noisescope.workspace import Workspace

if TYPE_CHECKING:
    from noisescope.pairs import Modality


def chosen_dataset(dataset: str | None, workspace: Workspace | None) -> str:
    """The DATASET argument, else the workspace's default. Raises UsageError when neither is."""
    named = dataset or (workspace and workspace.dataset)
    if not named:
        raise UsageError(
            "which dataset?",
            hint="Name one (a path, a glob, a Hub name), or give noisescope.toml a default: "
            '[workspace] dataset = "NAME". `noisescope datasets` lists what is known here.',
        )
    return named


def chosen_model(model: str | None, modality: Modality, workspace: Workspace | None) -> str | None:
    """The --model option, else the workspace's model for this modality, else None.

    A path below the working directory is given relative to it, as a user would type it.
    """
    named = model or (workspace.models.get(modality) if workspace else None)
    if named and Path(named).is_absolute() and Path(named).is_relative_to(Path.cwd()):
        return str(Path(named).relative_to(Path.cwd()))
    return named
