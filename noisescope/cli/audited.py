"""The audit that a command needs of a dataset: found, or made as `noisescope score` makes it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.cli.console import Terminal

if TYPE_CHECKING:
    from noisescope.run import Run


def audited(
    dataset: str | None, typed: Mapping[str, Any], runs_dir: Path, terminal: Terminal
) -> Run:
    """The dataset's run, made if missing: the one that `score` makes with the same [score].

    `typed` are options of `score` by name; those that are None are left to [score].
    """
    from noisescope.auditing import audit
    from noisescope.cli.options import EvidenceOptions, SourceOptions
    from noisescope.gate.caches import other_caches
    from noisescope.workspace import find_workspace

    workspace = find_workspace()
    stated: dict[str, Any] = dict(workspace.sections.get("score", {})) if workspace else {}
    stated |= {name: value for name, value in typed.items() if value is not None}
    stated |= {"runs_dir": runs_dir}
    if "from_adapters" in stated:
        stated["from_adapters"] = [Path(path) for path in stated["from_adapters"]]
    source = SourceOptions(**_of_group(SourceOptions, stated))
    config = EvidenceOptions(**_of_group(EvidenceOptions, stated)).config()
    pairs, judge = source.read(dataset, terminal, lambda pairs: config.check(pairs.modality))
    for remark in other_caches(runs_dir, judge.identity.fingerprint):
        terminal.note(remark)
    return audit(
        pairs,
        judge,
        evidence=config,
        runs_directory=runs_dir,
        command=shlex.join(["noisescope", *sys.argv[1:]]),
        reporter=terminal,
    ).run


def _of_group(group: type[Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are options of this group."""
    return {field.name: stated[field.name] for field in fields(group) if field.name in stated}
