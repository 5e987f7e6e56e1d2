"""A run directory: one dataset, one model, one way of gathering evidence, and what came of it.

    runs/<dataset>-<fingerprint8>/
      plan.json            written first: which evidence this directory is for
      pairs.parquet        the pairs judged
      margins/part-*.parquet
      scores.parquet       the verdicts
      replicas/<m>/        safetensors only
      averages/part-*.parquet  margins of averaged copies of the replicas (--ema)
      .lock                held by the one process that writes here
      manifest.json        written last: evidence complete, and the scores too unless it says so

The directory's name is a function of its plan, so the same command finds its own directory
again and continues; a directory of another plan is refused, never mixed.
"""

from __future__ import annotations

import json
import platform
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
    seal,
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
    """What determines a run's evidence: change any of it and it is another run."""

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
        """20 hex digits over the dataset's and model's fingerprints and the evidence settings."""
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


#: Key of the manifest that numbers the runs beside each other.
ORDER = "order"


@final
@dataclass(frozen=True)
class Run:
    """Paths of one run directory and what its two JSON files say."""

    directory: Path

    def is_of(self, dataset: str) -> bool:
        """Whether it was named after the dataset `dataset`."""
        return self.directory.name.rpartition("-")[0] == slug(dataset)

    def read(self, path: str) -> bool:
        """Whether what it audited was read from `path`, as it was written then."""
        resolved = self.manifest().get("resolved")
        return isinstance(resolved, str) and Path(resolved) == Path(path)

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
    def replicas_directory(self) -> Path:
        return self.directory / "replicas"

    @property
    def complete(self) -> bool:
        """Whether the manifest, written last, is there: the evidence is whole."""
        return self.manifest_path.is_file()

    @property
    def evidence_only(self) -> bool:
        """Whether the replicas are done and no scores were made yet (`noisescope fine-tune`)."""
        return self.complete and self.evidence_manifest().get("scores") == "absent"

    @property
    def evidence_complete(self) -> bool:
        """Whether every file of margins that the manifest names is there."""
        if not self.complete:
            return False
        named = self.evidence_manifest().get("evidence_files")
        if not isinstance(named, list):
            return bool(self.margin_parts())
        return bool(named) and all((self.directory / str(name)).is_file() for name in named)

    def evidence_files(self) -> list[str]:
        """Files of margins, relative to the directory, in order."""
        found = [*self.margin_parts(), *sorted(self.averages_directory.glob("part-*.parquet"))]
        return [path.relative_to(self.directory).as_posix() for path in found]

    def plan(self) -> dict[str, Any]:
        """Contents of `plan.json`. Raises RunError if absent, damaged or of another FORMAT."""
        hint = f"Remove {self.directory} and run `noisescope score` again (features stay cached)."
        return read_json(self.plan_path, hint, FORMAT)

    def manifest(self) -> dict[str, Any]:
        """Contents of `manifest.json`. Raises RunError if the run is unfinished or damaged."""
        content = self.evidence_manifest()
        if content.get("scores") == "absent":
            raise RunError(
                f"{self.directory} has replicas and no scores yet",
                hint="Make them: the noisescope fine-tune command again, with score for fine-tune.",
            )
        return content

    def evidence_manifest(self) -> dict[str, Any]:
        """`manifest`, also where the scores are still to be made."""
        if not self.complete:
            raise RunError(
                f"{self.directory} is not a finished run (it has no manifest.json)",
                hint="Type the command that began it again: it continues where it stopped.",
            )
        hint = "Remove it and run `noisescope score` to make it again."
        return read_json(self.manifest_path, hint)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write `manifest.json`, which marks the run complete, with checksums of its files."""
        stated = {**manifest, ORDER: _order(self), CHECKSUMS: checksums(self.directory)}
        text = json.dumps(seal(without_secrets(stated)), indent=2, ensure_ascii=False)
        write_atomic(self.manifest_path, text + "\n")

    def drop_damaged(self) -> list[str]:
        """Remove files that are not as the manifest states them, to be made again; their names."""
        return drop_damaged(self.directory, self.evidence_manifest()) if self.complete else []

    def margin_parts(self) -> list[Path]:
        """Evidence files, in order."""
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
    return OwnedDirectory(run.directory, "run", "--runs-dir or --run-dir", sealed=True)


def find_run(name: str | None, runs_directory: Path, *, check: bool = True) -> Run:
    """The run a user means: a path, a name under `runs_directory`, the dataset that it audited (its
    name, or its path as written then), or None for the latest.

    Its data files are read and must be those that were written, unless the caller sees to that
    (`check`). Raises RunError listing what there is when nothing, or more than one thing, matches.
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
            f"{what} under {runs_directory}", hint="Make one first: noisescope score DATASET"
        )
    return _sound(runs[-1], check)


def _sound(run: Run, check: bool) -> Run:
    """`run`. Raises RunError where its files are links or (`check`) not those that were written."""
    manifest = run.evidence_manifest() if run.complete else {}
    require_sound(run.directory, manifest, PATTERNS if check else ())
    return run


def finished_runs(runs_directory: Path) -> list[Run]:
    """Runs under `runs_directory` with scores, in the order they were finished, whatever the
    clock said then (its word counts for runs of versions that did not number them)."""
    found = [Run(path.parent) for path in runs_directory.glob("*/manifest.json")]
    runs = [run for run in found if not run.evidence_only]

    def place(run: Run) -> tuple[int, int, str]:
        return _number(run), run.manifest_path.stat().st_mtime_ns, run.directory.name

    return sorted(runs, key=place)


def _order(run: Run) -> int:
    """One more than any run beside `run` has: it is the latest now."""
    others = run.directory.resolve().parent.glob("*/manifest.json")
    mine = run.manifest_path.resolve()
    return 1 + max((_number(Run(path.parent)) for path in others if path != mine), default=0)


def _number(run: Run) -> int:
    """The order its manifest states; 0 where it states none, or cannot be read."""
    try:
        stated = run.evidence_manifest().get(ORDER, 0)
    except RunError:
        return 0
    return stated if isinstance(stated, int) else 0


def versions() -> dict[str, str]:
    """Versions of noisescope, Python and the libraries that decide numbers."""
    from importlib import metadata

    from noisescope import __version__

    names = ("torch", "transformers", "diffusers", "numpy", "scipy", "duckdb", "pyarrow")
    return {"noisescope": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in names
    }
