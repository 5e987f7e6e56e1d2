"""What to type once a policy is trained: a comparison with its base that works as printed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noisescope.pairs import Modality
    from noisescope.workspace import Workspace


def next_command(
    directory: Path, dataset: str, modality: Modality, workspace: Workspace | None
) -> str:
    """`noisescope evaluate` of a result: by the judge that the workspace gives the dataset, else
    by the labels themselves (text) or PickScore (pictures)."""
    words = ["noisescope", "evaluate", "--policy", str(directory)]
    entries = workspace.datasets if workspace else {}
    if dataset in entries and entries[dataset].judge:
        return shlex.join([*words, "--prompts", dataset])
    if modality == "image":
        return shlex.join([*words, "--prompts", dataset, "--judge", "pickscore"])
    return shlex.join([*words, "--prompts", dataset, "--labelled", dataset])
