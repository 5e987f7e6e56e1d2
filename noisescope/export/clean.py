"""`--format clean`: the dataset in its own files and schema, with pairs dropped or flipped.

    done = export_clean(scored, source, CleanPolicy(drop_above=0.5), Path("cleaned"))

Rows that the audit set aside (ties, unreadable ones) pass through untouched. `decisions.parquet`
beside the files says what became of every pair: pair_id, action, p_flip. The source must still be
what was judged: its pairs are fingerprinted before anything is written.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from noisescope.datasets.rewrite import Decoded, copy_metadata, rewrite
from noisescope.errors import DataError, RunError, UsageError
from noisescope.export.removal import ACTIONS, DROP, FLIP, KEEP, Actions, CleanPolicy
from noisescope.export.run_scores import BATCH, Scored
from noisescope.export.weights import facts_of, metadata_of
from noisescope.pairs import Pair, digest, unused
from noisescope.storage.output import claim, write_directory

if TYPE_CHECKING:
    from noisescope.datasets import Adapter, Source

#: What became of every pair, beside the copy.
DECISIONS = "decisions.parquet"
#: Keys of a saved dataset's metadata that no longer hold for a copy with fewer rows.
SIZES = ("splits", "dataset_size", "download_size", "size_in_bytes", "download_checksums")


@final
@dataclass(frozen=True)
class Cleaner:
    """What is to be done to a source: made by `plan_cleaning`, which checks everything first."""

    scored: Scored
    source: Source
    root: Path
    adapter: Adapter
    policy: CleanPolicy
    actions: Actions

    def fill(self, folder: Path, data: Path) -> None:
        """Write the changed files below `data`, and `decisions.parquet` into `folder`."""
        changes = write_decisions(self.scored, self.actions, folder / DECISIONS)
        for file in self.source.files:
            inside = file.is_relative_to(self.root)
            name = file.relative_to(self.root).as_posix() if inside else file.name
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            _copy(file, data / name, changes.get(name, {}), self.adapter)
        change = ("clean", self.policy.said())
        copy_metadata(self.source.files, self.root, data, change, drop=SIZES)

    @property
    def facts(self) -> dict[str, Any]:
        """What was done, for marks and cards."""
        counts, said = count(self.actions), self.policy.said()
        return facts_of(self.scored, "clean", policy=said, counts=counts)


def plan_cleaning(scored: Scored, source: Source, policy: CleanPolicy) -> Cleaner:
    """Decide about every pair of `source`. Raises as `export_clean` does."""
    if not source.files or source.root is None:
        raise UsageError(
            f"{source.resolved} is on the Hub: clean copies files",
            hint="Use --format trl, which needs no files.",
        )
    policy = policy.or_default()
    actions = policy.decide(scored.columns)
    adapter = _adapter(scored)
    if adapter.shape == "rows":
        raise UsageError(
            f"{source.resolved}: {adapter.name} cannot be written back clean: its pairs are made "
            "of several rows",
            hint="Use --format trl or --format weights, which write the pairs.",
        )
    if (actions == FLIP).any() and (reason := adapter.cannot_flip):
        raise UsageError(
            f"{source.resolved}: {adapter.name} cannot be written back flipped: {reason}",
            hint="Use --drop-above, or --format trl, which writes the pairs.",
        )
    check_same(scored, source, adapter)
    return Cleaner(scored, source, source.root, adapter, policy, actions)


def export_clean(scored: Scored, source: Source, policy: CleanPolicy, out: Path) -> dict[str, int]:
    """Write the cleaned copy of `source` at `out`; how many pairs were kept, dropped, flipped.

    Raises UsageError where the policy changes too much, `out` is not an export's or the source is
    on the Hub, DataError where the source is not what the run judged.
    """
    claim(out)
    cleaner = plan_cleaning(scored, source, policy)
    write_directory(out, cleaner.facts, lambda folder: cleaner.fill(folder, folder))
    return count(cleaner.actions)


def count(actions: Actions) -> dict[str, int]:
    """How many pairs each action has."""
    return {name: int((actions == number).sum()) for number, name in enumerate(ACTIONS)}


def _adapter(scored: Scored) -> Adapter:
    from noisescope.datasets import ADAPTERS, restored

    name = str(scored.manifest.get("adapter"))
    found = restored(scored.manifest) or ADAPTERS.get(name)
    if found is None:
        raise RunError(f"{scored.run.manifest_path} names no known dataset format: {name}")
    return found


def check_same(scored: Scored, source: Source, adapter: Adapter) -> None:
    """Raise DataError unless `source` states, row by row, the pairs that the run judged."""
    from noisescope.datasets import read_pairs
    from noisescope.datasets.image_store import Gallery

    gallery = Gallery() if adapter.modality == "image" else None
    sha, used = hashlib.sha256(), dict[str, int]()
    for pair in read_pairs(source.rows(), adapter, None, gallery):
        if isinstance(pair, Pair):  # as `dataset_fingerprint` does, without holding a table
            name = unused(pair.pair_id or pair.content_id, used)
            sha.update(digest(name, pair.prompt, pair.chosen, pair.rejected).encode())
    found = sha.hexdigest()[:20]
    facts = scored.manifest.get("facts", {})
    wanted = facts.get("source_fingerprint") or scored.manifest.get("dataset_fingerprint")
    if found != wanted:
        raise DataError(
            f"{source.resolved} is not what {scored.run.directory} judged: its pairs have the "
            f"fingerprint {found}, the run's {wanted}",
            hint="Score it again, without --limit, or name the right data with --source.",
        )


def write_decisions(scored: Scored, actions: Actions, path: Path) -> dict[str, dict[int, int]]:
    """Write pair_id, action and p_flip of every pair; the changes by source file and row.

    Raises UsageError where a row states several pairs: its format cannot lose one of them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("action", pa.string(), nullable=False),
        pa.field("p_flip", pa.float64()),
    ]
    schema = pa.schema(fields, metadata=metadata_of(facts_of(scored, "decisions")))
    names = np.array(ACTIONS, dtype=object)
    changes: dict[str, dict[int, int]] = defaultdict(dict)
    previous: tuple[str, int] | None = None
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for batch, at in scored.pairs(["source", "row"]):
            here = actions[at]
            arrays = [pa.array(names[here], pa.string())]
            arrays.append(pa.array(scored.columns["p_flip"][at], from_pandas=True))
            rows = pa.Table.from_arrays([batch.column(0), *arrays], schema=schema)
            out.write_table(rows, row_group_size=BATCH)
            sources, numbers = batch.column(1).to_pylist(), batch.column(2).to_pylist()
            for place, action in zip(zip(sources, numbers, strict=True), here, strict=True):
                if place == previous:
                    raise _several(scored, place)
                previous = place
                if action != KEEP:
                    changes[place[0]][place[1]] = int(action)
    return changes


def _several(scored: Scored, place: tuple[str, int]) -> UsageError:
    return UsageError(
        f"{place[0]}:{place[1]} states several pairs: {scored.manifest.get('adapter')} cannot "
        "lose one of them",
        hint="Use --format weights and train with them.",
    )


def _copy(file: Path, target: Path, changes: Mapping[int, int], adapter: Adapter) -> None:
    """One file with the rows in `changes` (row number -> DROP or FLIP) changed."""

    def change(rows: Sequence[Decoded]) -> dict[int, dict[str, Any] | None]:
        new: dict[int, dict[str, Any] | None] = {}
        for index, (number, values, _) in enumerate(rows):
            action = changes.get(number, KEEP)
            if action != KEEP and values is not None:
                new[index] = None if action == DROP else adapter.flip(values)
        return new

    rewrite(file, target, change)
