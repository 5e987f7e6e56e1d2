"""The audit that a command needs of a dataset: found, or made as `noisescope score` makes it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.cli.console import Terminal
from noisescope.cli.evidence_options import EvidenceOptions
from noisescope.cli.options import ConstantOptions, SourceOptions

if TYPE_CHECKING:
    from noisescope.auditing.ranks import World
    from noisescope.auditing.repeat import Repeat
    from noisescope.models import Policy
    from noisescope.pairs import PreferenceDataset
    from noisescope.replicas.gather import EvidenceConfig
    from noisescope.replicas.partition import Share
    from noisescope.storage.run import Run
    from noisescope.storage.workspace import Workspace


def other_caches(runs_directory: Path, fingerprint: str) -> list[str]:
    """A remark for each cache beside the runs that another model, or other settings, made.

    Features are kept by the content of a response under the fingerprint of their model; a cache
    under another fingerprint never matches. No note is made if the right one exists too.
    """
    caches = runs_directory / ".cache" / "features"
    if (caches / fingerprint).is_dir() or not caches.is_dir():
        return []
    return [
        f"ignored: the cached features {path.name} belong to another model or other settings "
        f"(this one is {fingerprint})"
        for path in sorted(caches.iterdir())
        if path.is_dir()
    ]


def read_inputs(
    source: SourceOptions,
    evidence: EvidenceOptions,
    dataset: str | None,
    terminal: Terminal,
    world: World,
    share: Share | None = None,
) -> tuple[PreferenceDataset, Policy, EvidenceConfig]:
    """Read pairs and model, after a check of the options: before any model is loaded.

    Raises what `SourceOptions.read` does, and UsageError for work that cannot be divided.
    """
    from noisescope.auditing.shards import require_divisible

    config = evidence.config()
    require_divisible(world, config, share)
    pairs, policy = source.read(dataset, terminal, lambda pairs: config.check(pairs.modality))
    return pairs, policy, config


def typed_before(
    source: SourceOptions,
    evidence: EvidenceOptions,
    constants: ConstantOptions,
    dataset: str | None,
) -> Repeat | None:
    """The same command as it may have been typed before; None if it must be computed."""
    from noisescope.auditing.repeat import Repeat
    from noisescope.models.device import launched
    from noisescope.storage.workspace import default_dataset, find_workspace

    if launched() or evidence.evidence or evidence.from_adapters:
        return None
    options = asdict(source) | asdict(evidence) | asdict(constants)
    named = default_dataset(dataset, find_workspace())
    return Repeat.of(named, source.model, options, source.runs_dir)


def finished(target: str | None, workspace: Workspace | None, runs_dir: Path) -> Run | None:
    """The finished run that `target` names; None where it is a dataset to be audited.

    A dataset's name comes before a run's: its audit finds the run again where nothing changed.
    """
    from noisescope.errors import DataError, UsageError
    from noisescope.storage.run import find_run, finished_runs
    from noisescope.storage.workspace import resolve

    if target is None:
        if workspace and workspace.dataset:
            return None
        if not finished_runs(runs_dir):
            raise UsageError(
                f"no dataset was given, and there is no finished run under {runs_dir}",
                hint="Name a dataset; `noisescope datasets` lists those known here.",
            )
        return find_run(None, runs_dir)
    if (Path(target) / "plan.json").is_file():
        return find_run(target, runs_dir)
    if any(run.directory.name == target for run in finished_runs(runs_dir)):
        return find_run(target, runs_dir)
    try:
        resolve(target, workspace)
    except DataError:
        if not any(run.is_of(target) for run in finished_runs(runs_dir)):
            raise
        return find_run(target, runs_dir)
    return None


def audited(
    dataset: str | None, typed: Mapping[str, Any], runs_dir: Path, terminal: Terminal
) -> Run:
    """The dataset's run, made if missing: the one that `score` makes with the same [score].

    `typed` are options of `score` by name; those that are None are left to [score].
    """
    from noisescope.storage.workspace import find_workspace

    workspace = find_workspace()
    stated: dict[str, Any] = dict(workspace.sections.get("score", {})) if workspace else {}
    stated |= {name: value for name, value in typed.items() if value is not None}
    stated |= {"runs_dir": runs_dir}
    if "from_adapters" in stated:
        stated["from_adapters"] = [Path(path) for path in stated["from_adapters"]]
    source = SourceOptions(**_of_group(SourceOptions, stated))
    evidence = EvidenceOptions(**_of_group(EvidenceOptions, stated))
    constants = ConstantOptions(**_of_group(ConstantOptions, stated))
    before = typed_before(source, evidence, constants, dataset)
    if before and (run := before.reuse()):
        return run
    from noisescope.auditing.audit import audit
    from noisescope.scoring.score import ScoreConfig

    config = evidence.config()
    pairs, judge = source.read(dataset, terminal, lambda pairs: config.check(pairs.modality))
    for remark in other_caches(runs_dir, judge.identity.fingerprint):
        terminal.note(remark)
    run = audit(
        pairs,
        judge,
        evidence=config,
        score=ScoreConfig(**vars(constants)),
        runs_directory=runs_dir,
        command=shlex.join(["noisescope", *sys.argv[1:]]),
        reporter=terminal,
    ).run
    if before:
        before.keep(run, pairs.modality)
    return run


def _of_group(group: type[Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are options of this group."""
    return {field.name: stated[field.name] for field in fields(group) if field.name in stated}
