"""Run SQL over a run: tables pairs, margins, scores (flips and reviews if there are any).

    noisescope query "SELECT prompt, p_flip FROM scores JOIN pairs USING (pair_id) LIMIT 5"

    with Spill(memory="2GB").folder(run.directory) as folder: ...    # removed afterwards

DuckDB may open the run's own Parquet files and nothing else, its configuration is locked, and only
one SELECT is run: SQL can neither read other files, nor write any, nor use a network. EXPLAIN is
refused too, because EXPLAIN ANALYZE runs its statement, even a COPY. The files of a run on object
storage are read through fsspec, by ranges, without checking checksums.
"""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from noisescope.errors import RunError, UsageError
from noisescope.storage.checksums import require_sound
from noisescope.storage.files import TEMPORARY_PREFIX
from noisescope.storage.remote import Place
from noisescope.storage.reviews import COLUMNS as REVIEWS
from noisescope.storage.reviews import reviews_table
from noisescope.storage.run import Run

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_SIZE = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*([KMGT])i?B", re.IGNORECASE)
_POWER = {"K": 1, "M": 2, "G": 3, "T": 4}
#: The least memory within which DuckDB sorts.
LEAST = 128 << 20
_PREFIX = f"{TEMPORARY_PREFIX}spill-"


@final
@dataclass(frozen=True)
class Spill:
    """DuckDB's working memory, and the directory to which it spills the rest.

    `directory` None is the run's own. Raises UsageError if `memory` is not a size.
    """

    memory: str = "1GB"
    directory: Path | None = None

    def __post_init__(self) -> None:
        found = _SIZE.fullmatch(self.memory.strip())
        size = float(found[1]) * 1024 ** _POWER[found[2].upper()] if found else 0
        if size < LEAST:
            raise UsageError(
                f"--memory {self.memory}: a size of {LEAST >> 20}MB or more is needed",
                hint="Such as --memory 2GB.",
            )

    @contextmanager
    def folder(self, beside: Path) -> Iterator[Path]:
        """A new folder under `directory`, or in `beside`; leftovers of kills are removed.

        Raises RunError if it cannot be made, or its disk is full.
        """
        place = self.directory or beside
        for old in beside.glob(f"{_PREFIX}*") if self.directory is None else ():
            shutil.rmtree(old, ignore_errors=True)
        try:
            place.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        except OSError as error:
            raise spill_failed(place, error.strerror or str(error)) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def fresh(folder: Path | None = None) -> str:
    """A path that does not exist: DuckDB creates the directory when it spills, and removes it.

    DuckDB's own default is `.tmp` in the working directory.
    """
    return str((folder or Path(tempfile.gettempdir())) / f"noisescope-{secrets.token_hex(8)}")


def spill_failed(place: Path, why: str) -> RunError:
    """The error of a spill directory that cannot be written."""
    return RunError(
        f"cannot spill to {place}: {why}",
        hint="Name a directory with more space: --spill-dir DIR.",
    )


#: The kind of statement that only reads.
READING = "SELECT"
#: DuckDB before 2.0 reports some pragmas as SELECT; comments may precede one.
PRAGMA = re.compile(r"(?>\s+|--[^\n]*|/\*(?>.*?\*/))*+pragma\b", re.IGNORECASE | re.DOTALL)
#: Files of margins, for storage that is listed instead of globbed.
MARGINS = re.compile(r"part-[\w-]+\.parquet")


def tables(run: Run) -> dict[str, list[Path]]:
    """Table name -> Parquet files, for those that exist."""
    candidates = {
        "pairs": [run.pairs_path],
        "margins": run.margin_parts(),
        "scores": [run.scores_path],
        "opinions": [run.opinions_path],
        "flips": [run.directory / "flips.parquet"],
    }
    existing = {name: [p for p in paths if p.is_file()] for name, paths in candidates.items()}
    return {name: paths for name, paths in existing.items() if paths}


def stored_tables(place: Place) -> dict[str, list[Place]]:
    """`tables` of a run on object storage. Raises RunError if it is not a finished run."""
    if not (place / "manifest.json").is_file():
        raise RunError(
            f"{place} is not a finished run (it has no manifest.json)",
            hint="Name the run's own directory, such as s3://bucket/runs/hh-rlhf-1a2b3c4d.",
        )
    names = ("pairs", "scores", "opinions", "flips")
    found = {name: [place / f"{name}.parquet"] for name in names}
    found = {name: paths for name, paths in found.items() if paths[0].is_file()}
    parts = [path for path in (place / "margins").files() if MARGINS.fullmatch(path.name)]
    return found | ({"margins": parts} if parts else {})


def connect(run: Run | Place) -> duckdb.DuckDBPyConnection:
    """A connection with one view per table. Raises RunError if a file is damaged."""
    import duckdb

    connection = duckdb.connect(":memory:")
    connection.execute("SET enable_progress_bar = false")  # it would be drawn on stdout
    connection.execute("SET temp_directory = $spill", {"spill": fresh()})
    if isinstance(run, Run):
        found = {name: [str(p.resolve()) for p in paths] for name, paths in tables(run).items()}
    else:
        connection.register_filesystem(run.system)
        found = {name: [p.url for p in paths] for name, paths in stored_tables(run).items()}
    for name, paths in found.items():
        try:
            connection.read_parquet(paths).create_view(name)
        except duckdb.Error as error:
            where = run.directory if isinstance(run, Run) else run
            raise RunError(
                f"{where}: table {name} cannot be read: {error}",
                hint="Remove the damaged file and run `noisescope score` again.",
            ) from error
    if isinstance(run, Run) and (people := reviews_table(run)) is not None:
        connection.register("reviews", people)
    readable = [spelling for paths in found.values() for path in paths for spelling in _both(path)]
    connection.execute("SET allowed_paths = $paths", {"paths": readable})
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _both(path: str) -> tuple[str, ...]:
    """A path; of a URL both spellings (memory:///a of fsspec, memory://a of DuckDB)."""
    protocol, separator, rest = path.partition("://")
    return (path, f"{protocol}://{rest.lstrip('/')}") if separator else (path,)


def query(run: Run | Place, sql: str) -> pa.Table:
    """Run one SELECT; its result as an Arrow table.

    Raises UsageError if the SQL is wrong, does more than read, or is several statements, and
    RunError if a file of one of its tables is damaged.
    """
    import duckdb

    connection = connect(run)
    try:
        statements = connection.extract_statements(sql)
        kinds = ["PRAGMA"] if PRAGMA.match(sql) else [one.type.name for one in statements]
        if len(statements) != 1 or kinds[0] != READING:
            raise UsageError(
                f"query takes one SELECT, not {' then '.join(kinds) or 'nothing'}",
                hint="It only reads; save results with --format parquet --output FILE.",
            )
        if isinstance(run, Run) and run.complete:
            named = [name for name in tables(run) if name in sql.lower()]
            require_sound(run.directory, run.evidence_manifest(), named)
        return connection.sql(sql).to_arrow_table()
    except duckdb.Error as error:
        raise UsageError(
            f"SQL: {error}", hint=f"Tables here: {', '.join(describe(run))}."
        ) from error
    finally:
        connection.close()


def describe(run: Run | Place) -> list[str]:
    """`name(column, ...)` for every table of the run."""
    import pyarrow.parquet as pq

    if isinstance(run, Run):
        columns = {name: pq.read_schema(paths[0]).names for name, paths in tables(run).items()}
        columns |= {"reviews": list(REVIEWS)} if reviews_table(run) is not None else {}
    else:
        columns = {}
        for name, paths in stored_tables(run).items():
            with run.system.open(paths[0].path) as stream:
                columns[name] = pq.read_schema(stream).names
    return [f"{name}({', '.join(names)})" for name, names in columns.items()]
