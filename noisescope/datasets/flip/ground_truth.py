"""flips.parquet: which pairs of a planted copy are flipped, and by which plan.

It is next to the copy; its schema metadata holds the plan, so that flipping a copy again with
the same plan takes every decision back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.adapters.names import OWN_IDS
from noisescope.datasets.flip.plan import U64, FlipPlan, Float, Parsed
from noisescope.datasets.readers import read_table
from noisescope.errors import DataError, UsageError
from noisescope.pairs import unused
from noisescope.storage.files import TEMPORARY_PREFIX, unwritten, write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.storage.run import Run

Bool = NDArray[np.bool_]
#: Columns that may say it; the first that is there counts.
LABELS = ("mislabelled", "flipped")
_WANTED = (
    "A truth file is Parquet, CSV or JSON lines with the columns pair_id and mislabelled, such as "
    "the flips.parquet that `noisescope flip` writes."
)


def read_truth(path: Path, table: pa.Table, own: str | None = None) -> tuple[Bool, Bool]:
    """(mislabelled, known) [N] of the pairs from a Parquet, CSV or JSON-lines file.

    Without pair_id its column `own` takes its place, which the run's ids are from, or the one of
    usual names (id, uid...) if that is not known. Raises DataError if the file cannot be read, has
    not both columns, has several such ids, or names no pair of the run.
    """
    try:
        stated = read_table(path)
    except DataError as error:
        raise DataError(error.message, hint=_WANTED) from error
    columns = stated.schema.names
    usual = [name for name in columns if name.lower() in OWN_IDS]
    named = usual
    if own is not None:  # a path such as meta.id is a column of that name, or of its last part
        named = [name for name in (own, own.rpartition(".")[2]) if name in columns][:1]
    if "pair_id" not in columns and len(named) > 1:
        raise DataError(
            f"{path} has several columns of ids: {', '.join(named)}",
            hint="Keep the one whose values are the run's pair_id, or name it pair_id.",
        )
    if "pair_id" not in columns and named:
        columns = ["pair_id" if name == named[0] else name for name in columns]
        stated = stated.rename_columns(columns)
    wanted = [name for name in ("pair_id", *LABELS) if name in columns]
    lists = {name: stated.column(name).to_pylist() for name in wanted}
    label = next((name for name in LABELS if name in columns), None)
    if label is None or "pair_id" not in columns:
        raise DataError(
            f"{path}: a truth file needs pair_id{f' (or {own})' if own else ''} and mislabelled, "
            f"and has {', '.join(columns) or 'no columns'}",
            hint=_WANTED,
        )
    values = dict(zip(map(str, lists["pair_id"]), lists[label], strict=True))
    found = [values.get(name) for name in table.column("pair_id").to_pylist()]
    known = np.array([value is not None for value in found])
    if not known.any():
        raise DataError(
            f"{path}: names none of the run's pairs",
            hint="Name the truth of the dataset that was scored: --truth FILE. If its ids are a "
            f"column of the dataset, score with --columns pair_id={[*usual, 'COLUMN'][0]}.",
        )
    return np.array([str(v).strip().lower() in ("true", "1", "1.0") for v in found]), known


def own_ids(run: Run) -> str | None:
    """The dataset's column that the ids of the run's pairs are from; None if not stated."""
    columns = run.manifest().get("columns") or {}
    return columns.get("pair_id")


#: The truth, beside the copy; its schema metadata holds the plan under this key.
TRUTH = "flips.parquet"
PLAN_KEY = b"noisescope.flip"
#: Roles, twins and copies of the schema by which rows were reversed.
SCHEMA_KEY = b"noisescope.schema"
#: Rows of the truth written at once.
TRUTH_ROWS = 1 << 15

Int = NDArray[np.int64]


def truth_schema(plan: FlipPlan | None, schema: Mapping[str, Any]) -> pa.Schema:
    """Columns of `flips.parquet`, with the plan (None: nothing is flipped) in the metadata."""
    import pyarrow as pa

    fields = [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("flipped", pa.bool_(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
    metadata = {SCHEMA_KEY: json.dumps(schema).encode()}
    if plan is not None:
        metadata[PLAN_KEY] = json.dumps(asdict(plan)).encode()
    return pa.schema(fields, metadata=metadata)


@final
@dataclass(frozen=True)
class Reversed:
    """Rows that `noisescope flip` reversed, by file, and the schema it reversed them by."""

    rows: Mapping[Path, Set[int]]
    schema: Mapping[str, Any]


def read_reversed(root: Path) -> Reversed | None:
    """Read what `noisescope flip` reversed in the copy that `root` is in; None if it is in none.

    Raises DataError if flips.parquet is not what flip writes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    copy = next((at for at in (root, *root.absolute().parents) if (at / TRUTH).is_file()), None)
    if copy is None:
        return None
    try:
        table = pq.read_table(copy / TRUTH, columns=["flipped", "source", "row"])
        table = table.filter(table.column("flipped"))
        schema = json.loads((table.schema.metadata or {})[SCHEMA_KEY])
        schema["twins"] = tuple(map(tuple, schema["twins"]))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(
            f"{copy / TRUTH} does not state what noisescope flip reversed ({error})",
            hint="Flip the original dataset again, or move the file if flip did not write it.",
        ) from error
    rows: dict[Path, set[int]] = {}
    for name, row in zip(*(table.column(n).to_pylist() for n in ("source", "row")), strict=True):
        rows.setdefault((copy / name).resolve(), set()).add(row)
    return Reversed(rows, schema)


def decided(truth: Path, plan: FlipPlan) -> Iterator[tuple[str, bool]] | None:
    """Decisions of the same plan, taken when the source was itself planted; else None.

    Raises UsageError if the source was planted by a different plan: its flips would count as right.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not truth.is_file():
        return None
    try:
        file = pq.ParquetFile(truth)
        stated = (file.schema_arrow.metadata or {}).get(PLAN_KEY)
        earlier = None if stated is None else json.loads(stated)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{truth}: cannot be read ({error})") from error
    if earlier is None:
        return None
    if earlier != asdict(plan):
        raise UsageError(
            f"{truth.parent} is a flipped copy already ({_flags(earlier)}): its flips would count "
            "as right labels",
            hint="Flip the original dataset, or first restore the labels: noisescope flip "
            f"{shlex.quote(str(truth.parent))} {_flags(earlier)}",
        )
    return _by_row(file)


def _flags(plan: Mapping[str, Any]) -> str:
    """The options of a plan, as typed."""
    return " ".join(f"--{name} {value}" for name, value in plan.items())


def _by_row(file: Any) -> Iterator[tuple[str, bool]]:
    for batch in file.iter_batches(columns=["pair_id", "flipped"]):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def next_decisions(earlier: Iterator[tuple[str, bool]], chunk: Parsed) -> Float:
    """Chances 0 or 1 of a chunk's pairs, as decided before, in the same order."""
    found = list(islice(earlier, len(chunk.ids)))
    for name, (known, _) in zip(chunk.ids, found, strict=False):
        if known != name and not known.startswith(f"{name}~"):
            raise DataError(
                f"{TRUTH} next to the source does not match it: expected pair {name}, "
                f"found {known}",
                hint="Remove it if it belongs to another dataset.",
            )
    if len(found) < len(chunk.ids):
        raise DataError(f"{TRUTH} next to the source lists fewer pairs than the source has")
    return np.array([float(flipped) for _, flipped in found])


@final
class TruthWriter:
    """Writes `flips.parquet` into a directory: whole when left in order, else not at all."""

    def __init__(self, out: Path, plan: FlipPlan | None, schema: Mapping[str, Any]) -> None:
        self.out = out
        self.schema = truth_schema(plan, schema)
        self.raw = out / f"{TEMPORARY_PREFIX}{TRUTH}"
        self.keys: list[U64] = []
        self.marked = False
        self.waiting: list[pa.RecordBatch] = []

    def __enter__(self) -> TruthWriter:
        try:
            handle, name = tempfile.mkstemp(f"-{TRUTH}", TEMPORARY_PREFIX, self.out)
            os.close(handle)
            self.raw = Path(name)
            self.writer = _writer(self.raw, self.schema)
        except OSError as error:
            self.raw.unlink(missing_ok=True)
            raise unwritten(self.out / TRUTH, error) from error
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._flush()
                self.writer.close()
                write_atomic(self.out / TRUTH, self._finish)
            else:
                with contextlib.suppress(OSError):  # of a full disk, which was reported before
                    self.writer.close()
        except OSError as fault:
            raise unwritten(self.out / TRUTH, fault) from fault
        finally:
            self.raw.unlink(missing_ok=True)

    def add(
        self, ids: Sequence[str], keys: U64, flipped: NDArray[np.bool_], source: str, rows: Int
    ) -> None:
        """Decisions about pairs [n] of one file, with the hash of each id."""
        import pyarrow as pa
        import pyarrow.compute as pc

        names = pa.array(ids, pa.string())
        self.marked |= bool(pc.any(pc.match_substring(names, "~")).as_py())
        self.keys.append(keys)
        columns = [names, pa.array(flipped), pa.repeat(source, len(ids)), pa.array(rows)]
        self.waiting.append(pa.RecordBatch.from_arrays(columns, schema=self.schema))
        if sum(len(batch) for batch in self.waiting) >= TRUTH_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self.waiting:
            try:
                self.writer.write_table(pa.Table.from_batches(self.waiting), TRUTH_ROWS)
            except OSError as error:
                raise unwritten(self.out / TRUTH, error) from error
        self.waiting.clear()

    def _finish(self, path: Path) -> None:
        stated = np.concatenate([*self.keys, np.empty(0, np.uint64)])
        every = np.sort(stated)
        repeated = np.unique(every[1:][every[1:] == every[:-1]])
        if len(repeated) or self.marked:
            _name_repeats(self.raw, path, stated, repeated)
        else:
            self.raw.replace(path)


def _writer(path: Path, schema: pa.Schema) -> Any:
    """Ids hardly ever repeat: no dictionary of them."""
    import pyarrow.parquet as pq

    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["source"])


def _name_repeats(raw: Path, path: Path, stated: U64, repeated: U64) -> None:
    """Copy the truth, naming repeats of an id as `pairs.to_table` does; 8 bytes a pair held."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    begin = 0
    used: dict[str, int] = {}
    with (
        pq.ParquetFile(raw, pre_buffer=False) as file,
        _writer(path, file.schema_arrow) as out,
    ):
        for batch in file.iter_batches(TRUTH_ROWS, use_threads=False):
            names = batch.column(0).to_pylist()
            clash = np.isin(stated[begin : begin + len(names)], repeated)
            begin += len(names)
            names = [
                unused(name, used) if clash[index] or "~" in name else name
                for index, name in enumerate(names)
            ]
            columns = [pa.array(names), *batch.columns[1:]]
            out.write_batch(pa.RecordBatch.from_arrays(columns, schema=file.schema_arrow))
