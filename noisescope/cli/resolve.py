"""Fill in missing arguments from the workspace, and the flags of suggested commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from noisescope.storage.workspace import Workspace

if TYPE_CHECKING:
    from noisescope.pairs import Modality


def run_word(run: str | None, runs_dir: Path, directory: Path) -> str:
    """The ` RUN` that a suggested command needs for the run in `directory`: what was typed, or the
    directory itself where that is looked for elsewhere than in runs.
    """
    named = run if runs_dir == Path("runs") else str(directory)
    return "" if named is None else f" {shlex.quote(named)}"


def model_flag(
    modality: Modality, dataset: str, workspace: Workspace | None, runs_dir: Path
) -> str:
    """The ` --model ...` that a suggested command needs: none where the workspace has one for this
    modality, that of the dataset's latest run, else a word to be filled in.
    """
    from noisescope.errors import RunError
    from noisescope.storage.run import find_run

    if workspace and workspace.models.get(modality):
        return ""
    try:
        judged = find_run(dataset, runs_dir, check=False).manifest().get("model")
    except RunError:
        judged = None
    return f" --model {shlex.quote(str(judged))}" if judged else " --model MODEL"
