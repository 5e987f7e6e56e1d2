"""Read the pairs that an audit is about, and word what a reader should know of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noisescope.errors import UsageError
from noisescope.pairs import PreferenceDataset
from noisescope.progress import Reporter


def read_dataset(
    dataset: Any, reading: Mapping[str, Any], reporter: Reporter, name: str = "pairs"
) -> PreferenceDataset:
    """Load the pairs of `dataset`: the workspace's if None, a name, or a table.

    `reading` holds format, columns, pairs, split and limit. Raises UsageError and DataError.
    """
    from noisescope.datasets import load
    from noisescope.datasets.in_memory import load_table
    from noisescope.storage.workspace import default_dataset, find_workspace, resolve

    if dataset is None or isinstance(dataset, str | Path):
        workspace = find_workspace()
        target = default_dataset(None if dataset is None else str(dataset), workspace)
        reporter.note(resolve(target, workspace).description)
        with reporter.stage("reading pairs"):
            found = load(target, workspace=workspace, **reading)
        reporter.note(f"{len(found):,} {found.modality} pairs, format {found.adapter}")
        for note in reading_notes(found):
            reporter.note(note)
        return found
    given = dict(reading)
    wrong = {"split": given.pop("split", None)}
    wrong |= given if isinstance(dataset, PreferenceDataset) else {}
    if unused := [option for option, value in wrong.items() if value is not None]:
        raise UsageError(
            f"{', '.join(unused)}: the dataset is already in memory",
            hint="Remove that argument, or select the rows yourself.",
        )
    if isinstance(dataset, PreferenceDataset):
        return dataset
    return load_table(dataset, name=name, **given)


def reading_notes(pairs: PreferenceDataset) -> list[str]:
    """Notes on how a dataset was read: unused columns, doubts about its labels."""
    from noisescope.datasets.adapters.names import OWN_IDS

    unused = pairs.facts.unused_columns
    notes = [f"not used: {', '.join(unused)}"] if unused else []
    own = next((name for name in unused if name.lower() in OWN_IDS), None)
    if own and "pair_id" not in (pairs.columns or {}):
        notes.append(f"to keep your own ids in scores and exports: --columns pair_id={own}")
    return notes + list(pairs.facts.notes)
