"""What the shell offers for an argument: datasets, runs, models and choices known here.

Where nothing known fits what was typed, a shell offers files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from noisescope.errors import NoisescopeError
from noisescope.storage.workspace import HUB_NAMES, Workspace, find_workspace


def datasets(incomplete: str) -> list[str]:
    """Names of datasets that begin like `incomplete`."""
    workspace = _workspace()
    return _matching([*(workspace.datasets if workspace else ()), *HUB_NAMES], incomplete)


def runs(incomplete: str) -> list[str]:
    """Names of the finished runs under `runs` that begin like `incomplete`."""
    found = Path("runs").glob("*/manifest.json")
    return _matching(sorted(path.parent.name for path in found), incomplete)


def datasets_and_runs(incomplete: str) -> list[str]:
    """Both, for commands that take either."""
    return [*datasets(incomplete), *runs(incomplete)]


def models(incomplete: str) -> list[str]:
    """The workspace's models that begin like `incomplete`."""
    workspace = _workspace()
    return _matching(workspace.models.values() if workspace else (), incomplete)


def formats(incomplete: str) -> list[str]:
    """Names of the dataset formats that begin like `incomplete`."""
    from noisescope.datasets import ADAPTERS

    return _matching(ADAPTERS, incomplete)


def objectives(incomplete: str) -> list[str]:
    """Names of the training objectives that begin like `incomplete`."""
    from noisescope.training.objectives import OBJECTIVES

    return _matching(OBJECTIVES, incomplete)


def among(*choices: str) -> Callable[[str], list[str]]:
    """The `choices` that begin like what was typed."""

    def matching(incomplete: str) -> list[str]:
        return _matching(choices, incomplete)

    return matching


def _workspace() -> Workspace | None:
    try:
        return find_workspace()
    except NoisescopeError:
        return None


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
