"""Write a flipped copy of a dataset in its own format, files and schema, and the truth about it.

    done = plant(open_source("hh-rlhf"), FlipPlan(0.2), Path("flipped/hh"))
    done.flipped, done.directory / "flips.parquet"

`flips.parquet` (pair_id, flipped, source, row) is written last: a copy without it is unfinished
and the same call makes it again. Rows that state no preference pass through untouched.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.adapters.cells import decoded
from noisescope.datasets.adapters.reverse import flipped
from noisescope.datasets.flip.ground_truth import TRUTH, TruthWriter, decided, next_decisions
from noisescope.datasets.flip.kinds import Chance
from noisescope.datasets.flip.plan import (
    FlipPlan,
    Measure,
    Parsed,
    chance_of,
    decide,
    score_gaps,
)
from noisescope.datasets.readers import Row, suffix
from noisescope.datasets.rewrite import CHUNK_ROWS, Decoded, copy_metadata, rewrite
from noisescope.errors import UsageError
from noisescope.pairs import Pair
from noisescope.storage.files import refuse_link, sweep, write_atomic
from noisescope.storage.owned import OwnedDirectory

if TYPE_CHECKING:
    from noisescope.datasets import Schema, Source
    from noisescope.pairs import Modality

#: The plan of a copy, written first. Hidden: it is no data file.
MARK = ".flip.json"
#: Characters of the longest path looked for in a row.
_LONGEST = 1024


@contextmanager
def claimed(out: Path, source: Source, plan: FlipPlan) -> Iterator[None]:
    """`out` made this plan's directory, which no other process writes meanwhile.

    Raises where it is the source, holds anything else or a link, or is being written.
    """
    refuse_link(out, "--output")
    there = out.resolve()
    taken = {file.resolve() for file in source.files} | {
        file.resolve().parent for file in source.files
    }
    if there in taken or (source.root is not None and there == source.root.resolve()):
        raise UsageError(
            f"{out} holds the source: flip never writes over it", hint="Name another --output."
        )
    mark = asdict(plan) | {"source": source.resolved}
    with OwnedDirectory(out, "flipped copy", "--output", MARK).locked(mark):
        sweep(out)
        yield


def copy_images(rows: Sequence[Decoded], file: Path, target: Path) -> None:
    """Give a copy in the folder `target` the image files that rows of `file` name by a path.

    Paths are relative to the file's folder, or to the folder named after the file. Image files are
    linked (one file under two names) where the file system can, else copied; paths that leave the
    folder are not followed, as no reader follows them either, nor are those of data files.
    """
    folder = file.parent
    inside = folder.resolve()
    for name in (name for _, values, _ in rows for name in _names(values)):
        for path in (name, f"{file.stem}/{name}"):
            source, copy = folder / path, target / path
            if suffix(source) or copy.exists() or not source.is_file():
                continue
            if not source.resolve().is_relative_to(inside) or ".." in Path(path).parts:
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source.resolve(), copy)
            except OSError:
                write_atomic(copy, partial(shutil.copyfile, source))


def _names(value: Any) -> Iterator[str]:
    """Texts in a value that may be paths."""
    value = decoded(value)
    if isinstance(value, str):
        path = Path(value) if 0 < len(value) <= _LONGEST and value.isprintable() else Path("/")
        if not path.is_absolute() and all(len(os.fsencode(part)) < 256 for part in path.parts):
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _names(part)
    elif isinstance(value, list):
        for part in value:
            yield from _names(part)


Int = NDArray[np.int64]


@final
@dataclass(frozen=True)
class Planted:
    """What a flip did: pairs seen and flipped, and rows passed through untouched by reason."""

    directory: Path
    pairs: int
    flipped: int
    untouched: dict[str, int] = field(default_factory=dict)
    undone: bool = False
    modality: Modality = "text"

    def to_json(self) -> dict[str, Any]:
        """JSON object of `noisescope flip --json`."""
        return asdict(self) | {"directory": str(self.directory), "truth": str(self.truth)}

    @property
    def truth(self) -> Path:
        return self.directory / TRUTH


def plant(
    source: Source,
    plan: FlipPlan,
    out: Path,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | str | None = None,
    pairs: str | None = None,
    gaps: Measure = None,
) -> Planted:
    """Write the flipped copy of `source` under `out`.

    `gaps` is the distance between the sides of each pair, for kinds that need it and a source
    without scores. Raises UsageError or RunError where `out` is the source or holds something else,
    DataError where the source cannot be read; the source is never written to.
    """
    from noisescope.datasets.load import first_rows, reading_of, schema_of

    if not source.files or source.root is None:
        raise UsageError(
            f"{source.resolved} is on the Hub: flip copies files",
            hint="Save it first: datasets.load_dataset(...).to_parquet('data.parquet').",
        )
    ahead = first_rows(source)
    reading = reading_of(source, format=format, columns=columns, pairs=pairs)
    schema = schema_of(ahead, source, reading)
    if reason := schema.cannot_flip:
        raise UsageError(
            f"{source.resolved}: {schema.name} cannot be written back flipped: {reason}",
            hint="Export a run's pairs, then flip that file: noisescope export --format trl",
        )
    with claimed(out, source, plan):
        earlier = decided(source.root / TRUTH, plan)
        if earlier is None:
            plan.check(schema.modality)
            _check_rows(plan, schema)
            measure = gaps or _gaps(schema)
            chance = chance_of(plan, lambda: survey(source, schema, measure))
            planter = Planter(schema, plan, chance, measure)
        else:
            planter = Planter(
                schema, plan, lambda chunk: next_decisions(earlier, chunk), None, undo=True
            )
        return planter.run(source, source.root, out)


def _gaps(schema: Schema) -> Measure:
    one, other = schema.roles.get("score_chosen"), schema.roles.get("score_rejected")
    return score_gaps((one, other)) if one and other else None


def _check_rows(plan: FlipPlan, schema: Schema) -> None:
    """Raise UsageError if rows of several pairs, reversed whole, would not follow the kind."""
    if plan.kind == "response" and schema.shape == "list":
        raise UsageError(
            f"response flips reverse single pairs, and a row of {schema.name} has several",
            hint="Use --kind prompt, or flip the pairs that `noisescope export --format trl` "
            "writes.",
        )


def survey(source: Source, schema: Schema, measure: Measure = None) -> Iterator[Parsed]:
    """All pairs of a source, in chunks, with the rows that state them."""
    rows = source.rows()
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield parse_chunk(chunk, schema, Counter(), measure)[0]


def parse_chunk(
    chunk: Sequence[Row], schema: Schema, untouched: Counter[str], measure: Measure = None
) -> tuple[Parsed, list[int]]:
    """Parse rows into pairs, as `load` does (images by content key).

    Returns the pairs and, for each, the index of its row in the chunk; faults are counted.
    """
    from noisescope.datasets import read_pairs

    pairs: list[Pair] = []
    at: list[int] = []
    for index, row in enumerate(chunk):
        for outcome in read_pairs((row,), schema):
            if isinstance(outcome, Pair):
                pairs.append(outcome)
                at.append(index)
            else:
                untouched[outcome.reason] += 1
    ids = [pair.pair_id or pair.content_id for pair in pairs]
    return Parsed(pairs, ids, [chunk[index].values or {} for index in at], measure), at


@final
class Planter:
    """One pass over a source's files: decides, rewrites, and keeps the truth."""

    def __init__(
        self,
        schema: Schema,
        plan: FlipPlan,
        chance: Chance[Parsed],
        measure: Measure,
        *,
        undo: bool = False,
    ) -> None:
        self.schema = schema
        self.plan = plan
        self.chance = chance
        self.measure = measure
        self.undo = undo
        self.untouched: Counter[str] = Counter()
        self.pairs = self.flipped = 0

    def run(self, source: Source, root: Path, out: Path) -> Planted:
        """Copy every file of `source`, then write the truth."""
        own = self.schema
        stated = {"roles": dict(own.roles), "twins": own.twins, "copies": own.copies}
        with TruthWriter(out, None if self.undo else self.plan, stated) as truth:
            for file in source.files:
                self._copy(file, root, out, truth)
            change = ("flip", json.dumps(asdict(self.plan)))
            copy_metadata(source.files, root, out, change)
        untouched = dict(self.untouched)
        modality = self.schema.modality
        return Planted(out, self.pairs, self.flipped, untouched, self.undo, modality)

    def _copy(self, file: Path, root: Path, out: Path, truth: TruthWriter) -> None:
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        target = out / name

        def change(rows: Sequence[Decoded]) -> Mapping[int, Mapping[str, Any]]:
            if self.schema.modality != "text":
                copy_images(rows, file, target.parent)
            return self._change(rows, name, file.parent, truth)

        write_atomic(target, lambda path: rewrite(file, path, change))

    def _change(
        self, rows: Sequence[Decoded], name: str, folder: Path, truth: TruthWriter
    ) -> dict[int, dict[str, Any]]:
        """New values of the rows to flip. A row of several pairs follows its first."""
        chunk = [Row(name, number, values, why, folder) for number, values, why in rows]
        parsed, at = parse_chunk(chunk, self.schema, self.untouched, self.measure)
        if not parsed.ids:
            return {}
        first: dict[int, int] = {}
        leaders = np.array([first.setdefault(row, index) for index, row in enumerate(at)])
        numbers = np.array([rows[index][0] for index in at])
        chosen = self._record(parsed, leaders, numbers, name, truth)
        return {
            at[index]: flipped(
                self.schema, rows[at[index]][1] or {}, f"{name}:{numbers[index] + 1}"
            )
            for index in np.flatnonzero(chosen).tolist()
            if leaders[index] == index
        }

    def _record(
        self, parsed: Parsed, leaders: Int, numbers: Int, name: str, truth: TruthWriter
    ) -> NDArray[np.bool_]:
        """Decide about some pairs, each as its leader, [n], and write down what was decided."""
        flipped = decide(parsed, self.plan, self.chance)[leaders]
        self.pairs += len(flipped)
        self.flipped += int(flipped.sum())
        truth.add(parsed.ids, parsed.keys, flipped & (not self.undo), name, numbers)
        return flipped
