"""Recognise an audit that is finished and of which no input has changed since.

    before = Repeat.of("pairs.jsonl", model, options, Path("runs"))
    if before and (run := before.reuse()): ...         # its result, in a fraction of a second
    before.keep(run)                                   # after an audit

An input is anything that decides a number: the options, noisescope.toml, the code of this package
and the versions of its libraries, the files of dataset and model (inode, size and times, taken
before they are read) and people's judgements. `<runs>/.cache/finished/<key>.json` records them with
the digest of the run's manifest. Whatever comes from the Hub or another service has no such record.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, final

from noisescope.datasets.sources import open_source
from noisescope.errors import NoisescopeError, RunError
from noisescope.pairs import Modality, PreferenceDataset, digest
from noisescope.storage.checksums import file_digest, file_version
from noisescope.storage.files import write_atomic
from noisescope.storage.reviews import FILE as REVIEWS
from noisescope.storage.run import Plan, Run, find_run, finished_runs, open_run, versions
from noisescope.storage.workspace import FILE_NAME, default_model, find_workspace, resolve

#: Most files of a folder that are looked at; larger ones have no record.
MOST_FILES = 10_000
#: A model that names a base model elsewhere.
_ADAPTER = "adapter_config.json"


@final
@dataclass(frozen=True)
class Repeat:
    """One audit as it was typed: `inputs` is the digest of its files by modality."""

    key: str
    inputs: Mapping[str, str]
    runs_directory: Path

    @classmethod
    def of(
        cls,
        dataset: str | PreferenceDataset,
        model: str | None,
        options: Mapping[str, Any],
        runs_directory: Path,
    ) -> Repeat | None:
        """The audit of `dataset` (pairs in memory: by their content) by `model` (None: the
        workspace's) with all `options`; None if files of this machine do not decide its result.

        Raises DataError for a dataset that is not there.
        """
        from noisescope.models.load import packaged_model

        workspace = find_workspace()
        files = [workspace.root / FILE_NAME] if workspace else []
        root = None
        if isinstance(dataset, str):
            if resolve(dataset, workspace).kind == "hub":
                return None
            source = open_source(dataset, split=options.get("split"), workspace=workspace)
            root = source.root
            files += [*source.files, *_existing((root or Path()) / "README.md")]
        try:
            inputs: dict[str, str] = {}
            modalities: tuple[Modality, ...] = ("text", "image", "vision")
            for modality in modalities:
                named = default_model(model, modality, workspace) or packaged_model(modality)
                judge = _model_files(Path(named)) if named else None
                shown = _below(root, runs_directory) if root and modality != "text" else []
                if judge and shown is not None:
                    inputs[modality] = _stamp([*files, *judge, *shown])
            stated = json.dumps(dict(options), sort_keys=True, default=str)
            named = dataset if isinstance(dataset, str) else _content(dataset)
            key = digest(named, str(Path.cwd()), stated, json.dumps(versions()), _code())
        except (NoisescopeError, OSError):
            return None
        return cls(key, inputs, runs_directory) if inputs else None

    @property
    def path(self) -> Path:
        """Where the record is."""
        return self.runs_directory / ".cache" / "finished" / f"{self.key}.json"

    def reuse(self) -> Run | None:
        """The finished run, as the latest of its directory; None if it must be made."""
        try:
            record = json.loads(self.path.read_text("utf-8"))
            run, modality = Run(Path(record["run"])), record["modality"]
            same = record["inputs"] == self.inputs[modality] and record["result"] == _result(run)
            if not (same and run.scores_path.is_file() and run.evidence_complete):
                return None
            find_run(str(run.directory), self.runs_directory)
            if finished_runs(run.directory.parent)[-1].directory.name != run.directory.name:
                plan = Plan.from_json(run.plan())
                with open_run(self.runs_directory, plan, run.directory):
                    run.write_manifest(run.manifest())
                self.keep(run, modality)
        except (OSError, ValueError, LookupError, TypeError, RunError):
            return None
        return run

    def keep(self, run: Run, modality: str) -> None:
        """Record that `run` is the result."""
        if modality in self.inputs:
            record = {"run": str(run.directory), "modality": modality, "result": _result(run)}
            record |= {"inputs": self.inputs[modality]}
            write_atomic(self.path, json.dumps(record) + "\n")


def _result(run: Run) -> str:
    """Digest of a run's manifest and of all judgements in and beside it."""
    here = run.directory.resolve()
    reviews = dict.fromkeys([*_existing(here / REVIEWS), *sorted(here.parent.glob(f"*/{REVIEWS}"))])
    return digest(*map(file_digest, [run.manifest_path, *reviews]))


def _content(dataset: PreferenceDataset) -> str:
    """Digest of pairs in memory, and of how they were read; pictures have content keys."""
    sha = hashlib.sha256()
    for batch in dataset.table.to_batches():
        sha.update(batch.serialize())
    facts = json.dumps(dataset.facts.to_json(), sort_keys=True, default=str)
    return digest(dataset.name, dataset.resolved, dataset.adapter, facts, sha.hexdigest())


def _existing(path: Path) -> list[Path]:
    return [path] if path.is_file() else []


def _model_files(model: Path) -> list[Path] | None:
    """The files of a local model; None for any other."""
    if model.is_file():
        return [model]
    found = _below(model, None) if model.is_dir() else None
    return None if found is None or any(path.name == _ADAPTER for path in found) else found


def _below(folder: Path | None, but: Path | None) -> list[Path] | None:
    """All files below `folder`, without hidden ones and those below `but`; None if too many."""
    found: list[Path] = []
    for path in _walk(folder or Path(), but and but.resolve()):
        found.append(path)
        if len(found) > MOST_FILES:
            return None
    return found


def _walk(folder: Path, but: Path | None) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        at = Path(here)
        folders[:] = sorted(
            name for name in folders if name[0] != "." and (at / name).resolve() != but
        )
        yield from (at / name for name in sorted(names) if name[0] != ".")


def _stamp(paths: Sequence[Path]) -> str:
    """Digest of the names and versions of files. Raises OSError."""
    return digest(*(f"{path.resolve()} {file_version(path)}" for path in paths))


@lru_cache(maxsize=1)
def _code() -> str:
    """The version of this package's code: a change to it may change any number."""
    here = Path(__file__).parents[1]
    return _stamp(sorted(path for path in here.rglob("*.py")))
