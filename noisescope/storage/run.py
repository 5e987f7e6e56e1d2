"""Read and write run directories: one dataset, one model, one way to make margins.

    with open_run(Path("runs"), plan) as run: ...    # written by this process alone
    find_run("hh-rlhf", Path("runs")).manifest()     # the latest finished run of a dataset

    runs/<dataset>-<fingerprint8>/
      plan.json            written first: what determines the margins
      pairs.parquet        the pairs
      margins/part-*.parquet
      scores.parquet
      replicas/<m>/        safetensors only
      averages/part-*.parquet  margins of averaged copies of the replicas (--ema)
      .lock                held by the one process that writes here
      manifest.json        written last: margins complete, scores too unless "scores" is "absent"

The directory's name is a function of its plan, so the same command finds its own directory
again and continues; the directory of a different plan is refused.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

from noisescope.errors import RunError
from noisescope.pairs import Modality, digest
from noisescope.storage.checksums import (
    CHECKSUMS,
    PATTERNS,
    checksums,
    drop_damaged,
    require_sound,
    with_checksum,
)
from noisescope.storage.files import LOCK as LOCK
from noisescope.storage.files import slug, write_atomic
from noisescope.storage.owned import OwnedDirectory, read_json
from noisescope.storage.redact import without_secrets

#: Version of the file formats of a run directory; raised when a reader must change.
FORMAT = 1


@final
@dataclass(frozen=True)
class Plan:
    """What determines a run's margins: a change to any of it makes another run."""

    dataset: str
    dataset_fingerprint: str
    model: str
    model_fingerprint: str
    evidence: Mapping[str, Any]
    modality: Modality = "text"

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """The plan in the contents of a `plan.json`. Raises KeyError."""
        return cls(**{field.name: content[field.name] for field in fields(cls)})

    @property
    def fingerprint(self) -> str:
        """20 hex digits over the fingerprints of dataset and model and the settings."""
        settings = json.dumps(dict(self.evidence), sort_keys=True)
        return digest("plan", self.dataset_fingerprint, self.model_fingerprint, settings)

    @property
    def directory_name(self) -> str:
        """Name of its run directory."""
        return f"{slug(self.dataset)}-{self.fingerprint[:8]}"

    def to_json(self) -> dict[str, Any]:
        """JSON object of `plan.json`."""
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "dataset": self.dataset,
            "dataset_fingerprint": self.dataset_fingerprint,
            "model": self.model,
            "model_fingerprint": self.model_fingerprint,
            "modality": self.modality,
            "evidence": dict(self.evidence),
        }


#: Key of the manifest with the path of the dataset as seen from the run directory.
FROM_RUN = "dataset_from_run"
#: Key of the manifest that numbers the runs beside each other.
ORDER = "order"


@final
@dataclass(frozen=True)
class Run:
    """Paths of one run directory, and the contents of its two JSON files."""

    directory: Path

    def is_of(self, dataset: str) -> bool:
        """Whether the directory is named after the dataset `dataset`."""
        return self.directory.name.rpartition("-")[0] == slug(dataset)

    def read(self, path: str) -> bool:
        """Whether its dataset was read from `path`, spelled the same way."""
        resolved = self.manifest().get("resolved")
        return isinstance(resolved, str) and Path(resolved) == Path(path)

    def dataset_path(self) -> str:
        """Where its dataset is: as it was named; if that is not there, as seen from the run."""
        manifest = self.manifest()
        named = str(manifest["resolved"])
        if FROM_RUN not in manifest:
            return named
        there = Path(os.path.normpath(self.directory / str(manifest[FROM_RUN])))
        same = Path(named).exists() and Path(named).samefile(there) if there.exists() else True
        return named if same else str(there)

    def beside(self, dataset: str) -> dict[str, str]:
        """The entry of the manifest for a dataset named relative to the working directory."""
        local = not Path(dataset).is_absolute() and Path(dataset).exists()
        return {FROM_RUN: os.path.relpath(dataset, self.directory)} if local else {}

    @property
    def plan_path(self) -> Path:
        return self.directory / "plan.json"

    @property
    def manifest_path(self) -> Path:
        return self.directory / "manifest.json"

    @property
    def pairs_path(self) -> Path:
        return self.directory / "pairs.parquet"

    @property
    def margins_directory(self) -> Path:
        return self.directory / "margins"

    @property
    def averages_directory(self) -> Path:
        return self.directory / "averages"

    @property
    def scores_path(self) -> Path:
        return self.directory / "scores.parquet"

    @property
    def opinions_path(self) -> Path:
        return self.directory / "opinions.parquet"

    @property
    def replicas_directory(self) -> Path:
        return self.directory / "replicas"

    @property
    def complete(self) -> bool:
        """Whether there is a manifest, which is written last: the margins are complete."""
        return self.manifest_path.is_file()

    @property
    def evidence_only(self) -> bool:
        """Whether the replicas are finished and there are no scores (`noisescope fine-tune`)."""
        return self.complete and self.evidence_manifest().get("scores") == "absent"

    @property
    def evidence_complete(self) -> bool:
        """Whether every file of evidence that the manifest names exists."""
        if not self.complete:
            return False
        named = self.evidence_manifest().get("evidence_files")
        if not isinstance(named, list):
            return bool(self.margin_parts())
        return bool(named) and all((self.directory / str(name)).is_file() for name in named)

    def evidence_files(self) -> list[str]:
        """Files of margins and opinions, relative to the directory, in order."""
        found = [
            *self.margin_parts(),
            *self.margins_directory.glob("shift.parquet"),
            *self.margins_directory.glob("outside.parquet"),
            *self.directory.glob(self.opinions_path.name),
            *sorted(self.averages_directory.glob("part-*.parquet")),
        ]
        return [path.relative_to(self.directory).as_posix() for path in found]

    def plan(self) -> dict[str, Any]:
        """Contents of `plan.json`. Raises RunError if missing, damaged or in another FORMAT."""
        hint = f"Remove {self.directory} and run `noisescope score` again (features stay cached)."
        return read_json(self.plan_path, hint, FORMAT)

    def manifest(self) -> dict[str, Any]:
        """Contents of `manifest.json`. Raises RunError if the run is unfinished or damaged."""
        content = self.evidence_manifest()
        if content.get("scores") == "absent":
            raise RunError(
                f"{self.directory} has replicas and no scores yet",
                hint="Make them: run the noisescope fine-tune command again with `score` instead.",
            )
        return content

    def evidence_manifest(self) -> dict[str, Any]:
        """`manifest`, also of a run without scores."""
        if not self.complete:
            raise RunError(
                f"{self.directory} is not a finished run (it has no manifest.json)",
                hint="Run the command that began it again: it continues where it stopped.",
            )
        hint = "Remove it and run `noisescope score` to make it again."
        return read_json(self.manifest_path, hint)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write `manifest.json`, which completes the run, with checksums of its files."""
        stated = {**manifest, ORDER: _order(self), CHECKSUMS: checksums(self.directory)}
        text = json.dumps(with_checksum(without_secrets(stated)), indent=2, ensure_ascii=False)
        write_atomic(self.manifest_path, text + "\n")

    def drop_damaged(self) -> list[str]:
        """Remove damaged files, so that they are made again; their names."""
        return drop_damaged(self.directory, self.evidence_manifest()) if self.complete else []

    def margin_parts(self) -> list[Path]:
        """Files of margins, in order."""
        return sorted(self.margins_directory.glob("part-*.parquet"))


@contextmanager
def open_run(runs_directory: Path, plan: Plan, directory: Path | None = None) -> Iterator[Run]:
    """The run directory of `plan`, made if missing, that no other process writes in the block.

    A `directory` given by name must be new, empty, or of the same plan. Raises RunError if it
    holds another plan's run, cannot be written, or another process is writing it.
    """
    run = Run(directory or runs_directory / plan.directory_name)
    with _owned(run).locked(plan.to_json()):
        yield run


def create_run(runs_directory: Path, plan: Plan, directory: Path | None = None) -> Run:
    """`open_run` without its lock, for shards: each writes only files of its own."""
    run = Run(directory or runs_directory / plan.directory_name)
    _owned(run).claim(plan.to_json())
    return run


def _owned(run: Run) -> OwnedDirectory:
    return OwnedDirectory(run.directory, "run", "--runs-dir or --run-dir", checked=True)


def find_run(name: str | None, runs_directory: Path, *, check: bool = True) -> Run:
    """Find the run that `name` means: a path, a name under `runs_directory`, a dataset (by name, or
    by path as it was spelled), or None for any; the latest if several match.

    With `check`, its data files are compared with their checksums. Raises RunError if there is no
    such finished run, or it is damaged.
    """
    if name is not None and (Path(name) / "plan.json").is_file():
        return _sound(Run(Path(name)), check)
    runs = finished_runs(runs_directory)
    if name is not None:
        named = [run for run in runs if run.directory.name == name or run.is_of(name)]
        runs = named or [run for run in runs if run.read(name)]
    if not runs:
        what = f"no finished run called {name!r}" if name else "no finished run"
        raise RunError(
            f"{what} under {runs_directory.absolute()}",
            hint="If it is elsewhere: --runs-dir DIRECTORY, or the path of the run. Else make one: "
            "noisescope score DATASET",
        )
    return _sound(runs[-1], check)


def _sound(run: Run, check: bool) -> Run:
    """`run`. Raises RunError if one of its files is a link or (`check`) damaged."""
    manifest = run.evidence_manifest() if run.complete else {}
    require_sound(run.directory, manifest, PATTERNS if check else ())
    return run


def finished_runs(runs_directory: Path) -> list[Run]:
    """Runs under `runs_directory` with scores, in the order in which they were finished.

    Runs of versions that did not number them are ordered by time."""
    found = [Run(path.parent) for path in runs_directory.glob("*/manifest.json")]
    runs = [run for run in found if not run.evidence_only]

    def place(run: Run) -> tuple[int, int, str]:
        return _number(run), run.manifest_path.stat().st_mtime_ns, run.directory.name

    return sorted(runs, key=place)


def _order(run: Run) -> int:
    """The next number among the runs beside `run`."""
    others = run.directory.resolve().parent.glob("*/manifest.json")
    mine = run.manifest_path.resolve()
    return 1 + max((_number(Run(path.parent)) for path in others if path != mine), default=0)


def _number(run: Run) -> int:
    """The number in its manifest; 0 if there is none or it cannot be read."""
    try:
        stated = run.evidence_manifest().get(ORDER, 0)
    except RunError:
        return 0
    return stated if isinstance(stated, int) else 0


def dataset_words(manifest: Mapping[str, Any], dataset: str | None = None) -> str:
    """The words of a command line that read a run's dataset (or a copy of it) as the run did."""
    words = [str(manifest["resolved"]) if dataset is None else dataset]
    reading = dict(manifest.get("reading", {}))
    if "reading" not in manifest and manifest.get("adapter") == "columns":  # of an older version
        reading["columns"] = manifest["columns"]
    if columns := reading.get("columns"):
        reading["columns"] = ",".join(f"{role}={at}" for role, at in columns.items())
    words += [part for name, at in reading.items() for part in (f"--{name}", str(at))]
    return shlex.join(words)


def filled(suggestion: str, dataset: str, run: str) -> str:
    """A command with the words to type for its dataset and its run in place of DATASET and RUN."""
    names = {"DATASET": dataset, "RUN": run}
    return re.sub(r"\b(DATASET|RUN)\b", lambda found: names[found[0]], suggestion)


def versions() -> dict[str, str]:
    """Versions of noisescope, Python and the libraries that decide numbers."""
    from importlib import metadata

    from noisescope import __version__

    names = ("torch", "transformers", "diffusers", "numpy", "scipy", "duckdb", "pyarrow")
    return {"noisescope": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in names
    }
