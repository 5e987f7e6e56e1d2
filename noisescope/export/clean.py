"""Export the dataset in its own files and schema, with pairs dropped or flipped.

    done = export_clean(scores, source, CleanPolicy(drop_above=0.5), Path("cleaned"))

Rows that the audit rejected (ties, unreadable ones) are copied unchanged. `decisions.parquet`
records the action for every pair: pair_id, action, p_wrong. The source must still be what was
judged: its pairs are fingerprinted before anything is written.

`noisescope flip` leaves scores in place, so that they do not give its flips away. In a flipped copy
a correction therefore moves the scores of the other rows only: a row that flip had reversed is
reversed back exactly. Which rows are corrected does not depend on it.
"""

from __future__ import annotations

import hashlib
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from noisescope.datasets.adapters.reverse import flipped
from noisescope.datasets.flip.copy import copy_images
from noisescope.datasets.flip.ground_truth import Reversed, read_reversed
from noisescope.datasets.load import SAMPLE_ROWS
from noisescope.datasets.rewrite import Decoded, copy_metadata, rewrite
from noisescope.errors import DataError, RunError, UsageError
from noisescope.export.removal import (
    ACTIONS,
    DROP,
    FLIP,
    KEEP,
    Actions,
    CleanPolicy,
    decide,
    in_words,
)
from noisescope.export.weights import facts_of, metadata_of
from noisescope.pairs import Pair, pair_digest, unused
from noisescope.scoring.run_scores import BATCH, RunScores
from noisescope.storage.output import claim, write_directory

if TYPE_CHECKING:
    from noisescope.datasets import Schema, Source

#: File with the action for every pair.
DECISIONS = "decisions.parquet"
#: Keys of a saved dataset's metadata that no longer hold for a copy with fewer rows.
SIZES = ("splits", "dataset_size", "download_size", "size_in_bytes", "download_checksums")


@final
@dataclass(frozen=True)
class Cleaner:
    """The changes to a source, made by `plan_cleaning`, which checks everything first.

    `changes` has the action of each row that changes, by file and row number; `planted` the rows
    that `noisescope flip` reversed, if it wrote the source.
    """

    scores: RunScores
    source: Source
    root: Path
    adapter: Schema
    words: str
    actions: Actions
    changes: Mapping[str, Mapping[int, int]]
    planted: Reversed | None = None
    format: str = "clean"

    def fill(self, folder: Path, data: Path) -> None:
        """Write the changed files to `data`, and `decisions.parquet` to `folder`."""
        write_decisions(self.scores, self.actions, folder / DECISIONS)
        for file in self.source.files:
            inside = file.is_relative_to(self.root)
            name = file.relative_to(self.root).as_posix() if inside else file.name
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            self._copy(file, data / name, self.changes.get(name, {}))
        change = (self.format, self.words)
        copy_metadata(self.source.files, self.root, data, change, drop=SIZES)

    def _copy(self, file: Path, target: Path, changes: Mapping[int, int]) -> None:
        """Copy one file with the rows in `changes` (row number -> DROP or FLIP) changed."""
        planted: Set[int] = frozenset()
        undo = self.adapter
        if self.planted is not None:
            planted = self.planted.rows.get(file.resolve(), planted)
            undo = replace(self.adapter, **self.planted.schema)

        def change(rows: Sequence[Decoded]) -> dict[int, dict[str, Any] | None]:
            new: dict[int, dict[str, Any] | None] = {}
            for index, (number, values, _) in enumerate(rows):
                action = changes.get(number, KEEP)
                if action == DROP:
                    new[index] = None
                elif action == FLIP and values is not None:
                    place = f"{file.name}:{number + 1}"
                    new[index] = (
                        flipped(undo, values, place)
                        if number in planted
                        else flipped(self.adapter, values, place, correction=True)
                    )
            if self.adapter.modality != "text":
                kept = [row for index, row in enumerate(rows) if new.get(index, row) is not None]
                copy_images(kept, file, target.parent)
            return new

        rewrite(file, target, change)

    @property
    def facts(self) -> dict[str, Any]:
        """What was done, for marks and cards."""
        counts = count(self.actions)
        return facts_of(self.scores, self.format, policy=self.words, counts=counts)


def plan_cleaning(scores: RunScores, source: Source, policy: CleanPolicy) -> Cleaner:
    """Decide about every pair of `source`. Raises as `export_clean` does."""
    policy = policy.or_default()
    actions = decide(scores, policy)[0]
    if drops_wrong(scores, policy):
        actions[actions == FLIP] = DROP
    return plan_copy(scores, source, actions, words_of(scores, policy))


def drops_wrong(scores: RunScores, policy: CleanPolicy) -> bool:
    """Whether labels that reviewers found wrong are dropped: their format cannot be flipped."""
    return bool(_adapter(scores).cannot_flip) and not policy.flips


def words_of(scores: RunScores, policy: CleanPolicy) -> str:
    """What `plan_cleaning` does, for cards, manifests and the terminal."""
    corrected = "dropped" if drops_wrong(scores, policy) else "flipped"
    return in_words(policy.or_default(), scores.verdicts, corrected)


def plan_copy(
    scores: RunScores, source: Source, actions: Actions, words: str, format: str = "clean"
) -> Cleaner:
    """Check that `source` is what was judged and can be written with `actions` [N] applied."""
    trl = f"noisescope export {shlex.quote(str(scores.run.directory))} --format trl"
    if format != "clean":
        trl = f"--record-only, which keeps the decisions in the run, and then {trl}"
    if not source.files or source.root is None:
        raise UsageError(
            f"{source.resolved} is on the Hub, and a corrected copy is made of local files",
            hint=f"Use {trl}, which needs no files.",
        )
    adapter = _adapter(scores)
    if adapter.shape == "rows":
        raise UsageError(
            f"{source.resolved}: {adapter.name} cannot be written back clean: its pairs are made "
            "of several rows",
            hint=f"Use {trl}, which writes the pairs.",
        )
    if (actions == FLIP).any() and (reason := adapter.cannot_flip):
        raise UsageError(
            f"{source.resolved}: {adapter.name} cannot be written back flipped: {reason}",
            hint=f"Drop pairs instead of flipping them, or use {trl}, which writes the pairs.",
        )
    changes = changes_of(scores, source, adapter, actions)
    planted = None
    if adapter.shape == "sides":
        adapter = replace(adapter, copies=(*adapter.copies, *copies_of_chosen(source, adapter)))
        planted = read_reversed(source.root)
    return Cleaner(scores, source, source.root, adapter, words, actions, changes, planted, format)


def export_clean(
    scores: RunScores, source: Source, policy: CleanPolicy, out: Path
) -> dict[str, int]:
    """Write the cleaned copy of `source` to `out`; return the counts of keep, drop and flip.

    Raises UsageError if the policy changes too much, `out` is not an export or the source is on
    the Hub, DataError if the source is not what the run judged.
    """
    claim(out)
    cleaner = plan_cleaning(scores, source, policy)
    write_directory(out, cleaner.facts, lambda folder: cleaner.fill(folder, folder))
    return count(cleaner.actions)


def count(actions: Actions) -> dict[str, int]:
    """Count the pairs of each action."""
    return {name: int((actions == number).sum()) for number, name in enumerate(ACTIONS)}


def _adapter(scores: RunScores) -> Schema:
    from noisescope.datasets import ADAPTERS, restored

    name = str(scores.manifest.get("adapter"))
    found = restored(scores.manifest) or ADAPTERS.get(name)
    if found is None:
        raise RunError(f"{scores.run.manifest_path} names no known dataset format: {name}")
    return found


def copies_of_chosen(source: Source, schema: Schema) -> list[str]:
    """Columns that repeat the chosen side, by the first rows: manifests do not record them."""
    rows = [row.values for row in islice(source.rows(), SAMPLE_ROWS) if row.values is not None]
    chosen = schema.roles["chosen"]
    return [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if name not in schema.used and all(row.get(name) == row.get(chosen) for row in rows)
    ]


def changes_of(
    scores: RunScores, source: Source, adapter: Schema, actions: Actions
) -> dict[str, dict[int, int]]:
    """Actions but KEEP by file and row number of `source`, which may differ from the run's.

    Raises DataError unless `source` contains, in order, the pairs that the run judged.
    """
    from noisescope.datasets import read_pairs
    from noisescope.datasets.image_store import Gallery

    changed: dict[str, int] = {}
    for batch, at in scores.pairs([]):
        for index in np.flatnonzero(actions[at] != KEEP).tolist():
            changed[batch.column(0)[index].as_py()] = int(actions[at[index]])
    changes: dict[str, dict[int, int]] = defaultdict(dict)
    gallery = Gallery.of(adapter)
    sha, used = hashlib.sha256(), dict[str, int]()
    for pair in read_pairs(source.rows(), adapter, None, gallery):
        if isinstance(pair, Pair):  # as `dataset_fingerprint` does, without holding a table
            name = unused(pair.pair_id or pair.content_id, used)
            sha.update(pair_digest(name, pair).encode())
            if name in changed:
                changes[pair.source][pair.row] = changed[name]
    found = sha.hexdigest()[:20]
    facts = scores.manifest.get("facts", {})
    wanted = facts.get("source_fingerprint") or scores.manifest.get("dataset_fingerprint")
    if found != wanted:
        raise DataError(
            f"{source.resolved} is not what {scores.run.directory} judged: its pairs have the "
            f"fingerprint {found}, the run's {wanted}",
            hint="Score it again, without --limit, or give the data that was judged with --source.",
        )
    return changes


def write_decisions(scores: RunScores, actions: Actions, path: Path) -> None:
    """Write pair_id, action and p_wrong (null if people decided) of every pair.

    Raises UsageError if a row contains several pairs: its format cannot drop one of them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("p_wrong", pa.float64()),
    ]
    schema = pa.schema(fields, metadata=metadata_of(facts_of(scores, "decisions")))
    names = np.array(ACTIONS, dtype=object)
    previous: tuple[str, int] | None = None
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for batch, at in scores.pairs(["source", "row"]):
            here = actions[at]
            arrays = [pa.array(names[here], pa.string())]
            arrays.append(pa.array(scores.columns["p_wrong"][at], from_pandas=True))
            rows = pa.Table.from_arrays([batch.column(0), *arrays], schema=schema)
            out.write_table(rows, row_group_size=BATCH)
            sources, numbers = batch.column(1).to_pylist(), batch.column(2).to_pylist()
            for place in zip(sources, numbers, strict=True):
                if place == previous:
                    raise _several(scores, place)
                previous = place


def _several(scores: RunScores, place: tuple[str, int]) -> UsageError:
    return UsageError(
        f"{place[0]}:{place[1]} contains several pairs: {scores.manifest.get('adapter')} cannot "
        "drop one of them",
        hint="Use --format weights and train with them.",
    )
