"""SQL over a run: tables pairs, margins, scores (and flips where the truth is known).

    noisescope query "SELECT prompt, p_flip FROM scores JOIN pairs USING (pair_id) LIMIT 5"

DuckDB reads the run's Parquet through Arrow with external access switched off and the
configuration locked, so SQL can neither read other files, nor write any, nor reach a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from noisescope.errors import RunError, UsageError
from noisescope.run import Run

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

#: Statements that only read.
READING = ("SELECT", "EXPLAIN")


def tables(run: Run) -> dict[str, list[Path]]:
    """Table name -> Parquet files, for those that exist."""
    candidates = {
        "pairs": [run.pairs_path],
        "margins": run.margin_parts(),
        "scores": [run.scores_path],
        "flips": [run.directory / "flips.parquet"],
    }
    existing = {name: [p for p in paths if p.is_file()] for name, paths in candidates.items()}
    return {name: paths for name, paths in existing.items() if paths}


def connect(run: Run) -> duckdb.DuckDBPyConnection:
    """Read-only connection with one view a table. Raises RunError for a damaged file."""
    import duckdb
    import pyarrow as pa
    import pyarrow.dataset as pads

    connection = duckdb.connect(":memory:")
    for name, paths in tables(run).items():
        try:
            connection.register(name, pads.dataset([str(path) for path in paths]))
        except (pa.ArrowException, OSError) as error:
            raise RunError(
                f"{run.directory}: table {name} cannot be read: {error}",
                hint="Remove the damaged file and run `noisescope score` again.",
            ) from error
    connection.execute("SET enable_progress_bar = false")  # it would be drawn on stdout
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def query(run: Run, sql: str) -> pa.Table:
    """Result of one reading statement as an Arrow table.

    Raises UsageError when the SQL is wrong, does more than read, or is several statements.
    """
    import duckdb

    connection = connect(run)
    try:
        statements = connection.extract_statements(sql)
        kinds = [statement.type.name for statement in statements]
        if len(statements) != 1 or kinds[0] not in READING:
            raise UsageError(
                f"query takes one SELECT, not {' then '.join(kinds) or 'nothing'}",
                hint="Reading is all it does; save results with --format parquet --output FILE.",
            )
        return connection.sql(sql).to_arrow_table()
    except duckdb.Error as error:
        raise UsageError(
            f"SQL: {error}", hint=f"Tables here: {', '.join(describe(run))}."
        ) from error
    finally:
        connection.close()


def describe(run: Run) -> list[str]:
    """`name(column, ...)` for every table of the run."""
    import pyarrow.parquet as pq

    return [
        f"{name}({', '.join(pq.read_schema(paths[0]).names)})"
        for name, paths in tables(run).items()
    ]
