"""Fill in missing arguments from the workspace, and the flags of suggested commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.storage.workspace import Workspace

if TYPE_CHECKING:
    from noisescope.pairs import Modality
    from noisescope.storage.run import Run


def run_word(run: str | None, runs_dir: Path, directory: Path) -> str:
    """The ` RUN` that a suggested command needs for the run in `directory`: what was typed, or the
    directory itself where that is looked for elsewhere than in runs.
    """
    named = run if runs_dir == Path("runs") else str(directory)
    return "" if named is None else f" {shlex.quote(named)}"


def note_run(run: Run, named: str | None, runs_dir: Path) -> None:
    """Note which run a command reads; and the others of its dataset, where none was named."""
    from noisescope.cli.console import print_note
    from noisescope.storage.printable import printable
    from noisescope.storage.run import finished_runs

    line = f"run: {run.directory}"
    if named is None or (run.directory.name != named and not (Path(named) / "plan.json").is_file()):
        dataset = run.directory.name.rpartition("-")[0]
        others = [
            other
            for other in finished_runs(runs_dir)
            if other.is_of(dataset) and other.directory.resolve() != run.directory.resolve()
        ]
        if others:
            also = "; ".join(f"{other.directory} ({made_by(other)})" for other in others[:-4:-1])
            more = f"; and {len(others) - 3:,} more" if len(others) > 3 else ""
            line += f" ({made_by(run)}); to use another, name it: {also}{more}"
    print_note(printable(line))


def made_by(run: Run) -> str:
    """What was typed after `noisescope score` for a run, without the dataset."""
    words = shlex.split(str(run.manifest().get("command", "")))
    first = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    return shlex.join(words[first:]) or "no options"


def limited(manifest: Mapping[str, Any]) -> bool:
    """Whether a run read only the first rows of its dataset, which cannot be written back clean."""
    limit = dict(manifest.get("reading", {})).get("limit")
    return limit is not None and int(manifest["facts"]["rows"]) >= int(limit)


def score_again(run: Run, manifest: Mapping[str, Any], dataset: str) -> str:
    """The command that scores a copy of a run's dataset as the run was scored."""
    from noisescope.storage.run import dataset_words

    words = f"noisescope score {dataset_words(manifest, dataset)}"
    words += f" --model {shlex.quote(str(manifest['model']))}"
    words += " --pool" if dict(manifest["evidence"]).get("pool") else ""
    parent = run.directory.parent
    named = parent.resolve() != Path("runs").resolve()
    return words + (f" --runs-dir {shlex.quote(str(parent))}" if named else "")


def reading_flags(reading: Mapping[str, object]) -> str:
    """The ` --format ... --columns ...` that a suggested command needs, as they were typed."""
    return "".join(
        f" --{flag} {shlex.quote(str(text))}" for flag, text in reading.items() if text is not None
    )


def model_flag(
    modality: Modality, dataset: str, workspace: Workspace | None, runs_dir: Path
) -> str:
    """The ` --model ...` that a suggested command needs: none where the workspace or an installed
    package has one for this modality, that of the dataset's latest run, else a word to fill in.
    """
    from noisescope.errors import RunError
    from noisescope.models.load import packaged_model
    from noisescope.storage.run import find_run

    if workspace and workspace.models.get(modality):
        return ""
    try:
        judged = find_run(dataset, runs_dir, check=False).manifest().get("model")
    except RunError:
        judged = None
    installed = packaged_model(modality)
    if installed and judged in (None, installed):
        return ""
    return f" --model {shlex.quote(str(judged))}" if judged else " --model MODEL"
