"""Write a flipped copy of a dataset in its own format, files and schema, and the truth about it.

    done = plant(open_source("hh-rlhf"), FlipPlan(0.2), Path("flipped/hh"))
    done.flipped, done.directory / "flips.parquet"

`flips.parquet` (pair_id, flipped, source, row) is written last: a copy without it is unfinished
and the same call makes it again. Rows that state no preference pass through untouched.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError, UsageError
from noisescope.flips import Chance, FlipPlan, Parsed, chance_of, decide, keys_of, score_gaps
from noisescope.pairs import Pair, content_id, digest
from noisescope.rewriting import rewrite
from noisescope.rewriting_tables import CHUNK_ROWS, Decoded
from noisescope.storage import write_atomic
from noisescope.truth import TRUTH, decided, name_repeats, next_decisions, truth_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.datasets import Adapter, Row, Source
    from noisescope.flips import U64, Float

Int = NDArray[np.int64]

#: Written first; says which plan an unfinished copy is for. Hidden: no data file.
MARK = ".flip.json"


@final
@dataclass(frozen=True)
class Planted:
    """What a flip did: pairs seen and flipped, and rows passed through untouched by reason."""

    directory: Path
    pairs: int
    flipped: int
    untouched: dict[str, int] = field(default_factory=dict)
    undone: bool = False

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
    gaps: Callable[[Parsed], Float] | None = None,
) -> Planted:
    """Write the flipped copy of `source` under `out`.

    `gaps` says how far apart the sides of a pair are, for `hard` flips of a source without
    scores. Raises UsageError or RunError where `out` is the source or holds something else,
    DataError where the source cannot be read; the source is never written to.
    """
    from noisescope.datasets import recognise

    if not source.files or source.root is None:
        raise UsageError(
            f"{source.resolved} is on the Hub: flip copies files",
            hint="Save it first: datasets.load_dataset(...).to_parquet('data.parquet').",
        )
    adapter, _ = recognise(source.rows(), format=format or source.format, said=source.resolved)
    _claim(out, source, plan)
    earlier = decided(source.root / TRUTH, plan)
    if earlier is None:
        chance = chance_of(plan, lambda: _survey(source, adapter), gaps or _gaps(adapter))
        planter = Planter(adapter, plan, chance)
    else:
        planter = Planter(adapter, plan, lambda chunk: next_decisions(earlier, chunk), undo=True)
    return planter.run(source, source.root, out)


def _gaps(adapter: Adapter) -> Callable[[Parsed], Float] | None:
    from noisescope.datasets.ultrafeedback import UltraFeedback

    return score_gaps(adapter.scores) if isinstance(adapter, UltraFeedback) else None


def _claim(out: Path, source: Source, plan: FlipPlan) -> None:
    """Make `out` this plan's directory. Raises where it is the source or someone else's."""
    there = out.resolve()
    taken = {file.resolve() for file in source.files} | {
        file.resolve().parent for file in source.files
    }
    if there in taken or (source.root is not None and there == source.root.resolve()):
        raise UsageError(
            f"{out} holds the source: flip never writes over it", hint="Name another --out."
        )
    mark = json.dumps(asdict(plan) | {"source": source.resolved}) + "\n"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        same = (out / MARK).is_file() and (out / MARK).read_text("utf-8") == mark
        if not same:
            raise RunError(
                f"{out} is not empty and no copy of this plan",
                hint="Choose a new or empty directory with --out.",
            )
    write_atomic(out / MARK, mark)


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _survey(source: Source, adapter: Adapter) -> Iterator[Parsed]:
    """All pairs of a source, in chunks, with the rows that state them."""
    for chunk in _chunks(source.rows()):
        yield _parsed(chunk, adapter, Counter())[0]


def _parsed(
    chunk: Sequence[Row], adapter: Adapter, untouched: Counter[str]
) -> tuple[Parsed, list[int]]:
    """The chunk's pairs, and for each the index of its row in the chunk; faults are counted."""
    from noisescope.datasets import RowFault

    pairs: list[Pair] = []
    at: list[int] = []
    for index, row in enumerate(chunk):
        if row.values is None:
            untouched["unreadable"] += 1
            continue
        try:
            stated = adapter.parse(row.values)
        except RowFault as fault:
            untouched[fault.reason] += 1
            continue
        pairs += stated
        at += [index] * len(stated)
    if not _writable(pairs):
        kept = [index for index, pair in enumerate(pairs) if _writable([pair])]
        untouched["unreadable"] += len(pairs) - len(kept)
        pairs, at = [pairs[index] for index in kept], [at[index] for index in kept]
    ids = [pair.pair_id or pair.content_id for pair in pairs]
    return Parsed(pairs, ids, [chunk[index].values or {} for index in at]), at


def _writable(pairs: Sequence[Pair]) -> bool:
    """Whether all texts are Unicode: a lone surrogate is not, and `load` sets its pair aside."""
    try:
        for pair in pairs:
            f"{pair.prompt}{pair.chosen}{pair.rejected}{pair.annotator}{pair.pair_id}".encode()
    except UnicodeEncodeError:
        return False
    return True


@final
class Planter:
    """One pass over a source's files: decides, rewrites, and keeps the truth."""

    def __init__(
        self, adapter: Adapter, plan: FlipPlan, chance: Chance, *, undo: bool = False
    ) -> None:
        self.adapter = adapter
        self.plan = plan
        self.chance = chance
        self.undo = undo
        self.untouched: Counter[str] = Counter()
        self.pairs = self.flipped = 0
        self.keys: list[U64] = []

    def run(self, source: Source, root: Path, out: Path) -> Planted:
        """Copy every file of `source`, then write the truth."""
        import pyarrow.parquet as pq

        raw = out / ".partial-truth.parquet"
        try:
            with pq.ParquetWriter(raw, truth_schema(self.plan), compression="zstd") as truth:
                for file in source.files:
                    self._copy(file, root, out, truth)
            _copy_metadata(source, root, out, self.plan)
            write_atomic(out / TRUTH, lambda path: name_repeats(raw, path, self.keys))
        finally:
            raw.unlink(missing_ok=True)
        return Planted(out, self.pairs, self.flipped, dict(self.untouched), self.undo)

    def _copy(self, file: Path, root: Path, out: Path, truth: Any) -> None:
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name

        def change(rows: Sequence[Decoded]) -> Mapping[int, Mapping[str, Any]]:
            return self._change(rows, name, file.parent, truth)

        def change_table(table: pa.Table, number: int) -> pa.Table | None:
            return self._change_table(table, number, name, truth)

        write_atomic(out / name, lambda path: rewrite(file, path, change, change_table))

    def _change(
        self, rows: Sequence[Decoded], name: str, folder: Path, truth: Any
    ) -> dict[int, dict[str, Any]]:
        """New values of the rows to flip. A row of several pairs follows its first."""
        from noisescope.datasets import Row

        chunk = [Row(name, number, values, why, folder) for number, values, why in rows]
        parsed, at = _parsed(chunk, self.adapter, self.untouched)
        if not parsed.pairs:
            return {}
        first: dict[int, int] = {}
        leaders = np.array([first.setdefault(row, index) for index, row in enumerate(at)])
        numbers = np.array([rows[index][0] for index in at])
        flipped = self._record(parsed, leaders, numbers, name, truth)
        return {
            at[index]: self.adapter.flip(parsed.rows[index])
            for index in first.values()
            if flipped[index]
        }

    def _record(
        self, parsed: Parsed, leaders: Int, numbers: Int, name: str, truth: Any
    ) -> NDArray[np.bool_]:
        """Decide about some pairs, each as its leader, [n], and write down what was decided."""
        import pyarrow as pa

        keys = keys_of(parsed.ids)
        flipped = decide(parsed, self.plan, self.chance, keys)[leaders]
        self.pairs += len(flipped)
        self.flipped += int(flipped.sum())
        self.keys.append(keys)
        source = pa.repeat(name, len(numbers))
        columns = [pa.array(parsed.ids), pa.array(flipped), source, pa.array(numbers)]
        truth.write_table(pa.Table.from_arrays(columns, schema=truth_schema(self.plan)))
        return flipped

    def _change_table(self, table: pa.Table, number: int, name: str, truth: Any) -> pa.Table | None:
        """A slice of plain prompt, chosen and rejected texts at once; None where it is not that.

        Row by row costs 15 microseconds a row, this 4. The same pairs get the same decisions.
        """
        import pyarrow.compute as pc

        if self.plan.kind != "uniform" or self.undo or not _is_plain(table, self.adapter):
            return None
        ids = _plain_ids(table)
        if ids is None:
            return None
        every = np.arange(len(ids))
        flipped = self._record(Parsed((), ids), every, every + number, name, truth)
        chosen, rejected = table.column("chosen"), table.column("rejected")
        for side, kept, other in (("chosen", chosen, rejected), ("rejected", rejected, chosen)):
            at = table.schema.get_field_index(side)
            column = pc.if_else(flipped, other, kept)
            table = table.set_column(at, table.schema.field(at), column)
        return table


def _is_plain(table: pa.Table, adapter: Adapter) -> bool:
    """Whether every row states one pair in three text columns, as `adapter` would read it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = ("prompt", "chosen", "rejected")
    if adapter.name not in ("columnar", "trl") or "label" in table.schema.names:
        return False
    if any(name not in table.schema.names for name in names):
        return False
    columns = [table.column(name) for name in names]
    if any(column.type != pa.string() or column.null_count for column in columns):
        return False
    one, other = (pc.utf8_trim_whitespace(column) for column in columns[1:])
    empty = pc.or_(pc.equal(one, ""), pc.equal(other, ""))
    return not pc.any(pc.or_(empty, pc.equal(one, other))).as_py()


def _plain_ids(table: pa.Table) -> list[str] | None:
    """Ids of such rows: their own where all have one, else of their content."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if "pair_id" not in table.schema.names:
        columns = (table.column(name).to_pylist() for name in ("prompt", "chosen", "rejected"))
        return [content_id(*texts) for texts in zip(*columns, strict=True)]
    ids = table.column("pair_id")
    if ids.type != pa.string() or ids.null_count:
        return None
    kept = pc.equal(ids, pc.utf8_trim_whitespace(ids))
    if not pc.all(pc.and_(kept, pc.not_equal(ids, ""))).as_py():
        return None
    names: list[str] = ids.to_pylist()
    return names


def _copy_metadata(source: Source, root: Path, out: Path, plan: FlipPlan) -> None:
    """What a saved dataset's directory says about itself, under a fingerprint of its own.

    Caches of `datasets` go by that fingerprint: with the source's own they would be mixed up.
    """
    for folder in sorted({file.parent for file in source.files}):
        state = folder / "state.json"
        if not state.is_file():
            continue
        target = out / (folder.relative_to(root) if folder.is_relative_to(root) else "")
        content = json.loads(state.read_text("utf-8"))
        content["_fingerprint"] = digest(
            "flip", str(content.get("_fingerprint")), json.dumps(asdict(plan))
        )[:16]
        write_atomic(target / "state.json", json.dumps(content, indent=2) + "\n")
        for name in ("dataset_info.json",):
            if (folder / name).is_file():
                write_atomic(target / name, (folder / name).read_bytes())
        if target != out:
            write_atomic(out / "dataset_dict.json", json.dumps({"splits": [folder.name]}) + "\n")
