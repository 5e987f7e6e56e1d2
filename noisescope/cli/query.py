"""noisescope query SQL: read a run with DuckDB."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisescope.cli.console import OUT, finite, json_text, print_lines, print_note, safe_block
from noisescope.cli.options import RunsDirOption
from noisescope.errors import UsageError
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows shown on a terminal by default.
SHOWN = 50


class Format(StrEnum):
    """How results are written."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def query(
    sql: Annotated[str | None, typer.Argument(help="One SELECT; leave out to list tables.")] = None,
    run: Annotated[
        str | None,
        typer.Option(help="Run directory, name or URL (s3://...).", show_default="the latest run"),
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    format: Annotated[Format, typer.Option(help="How to write the result.")] = Format.table,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file, not stdout.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Same as --format json.")] = False,
) -> None:
    """Query pairs, margins and scores of a run with SQL (DuckDB, read-only).

    Example: noisescope query "SELECT pair_id, p_wrong, u FROM scores ORDER BY rank LIMIT 20"
    """
    from noisescope.cli.resolve import run_flag
    from noisescope.storage.remote import Place, place_of
    from noisescope.storage.run import Run, find_run
    from noisescope.storage.sql import describe
    from noisescope.storage.sql import query as run_query

    found: Run | Place
    place = place_of(run) if run is not None and "://" in run else None
    if place is not None and place.local is None:
        found = place
    else:  # SQL checks the tables it names
        found = find_run(run if place is None else str(place.local), runs_dir, check=sql is None)
    print_note(f"run: {found if isinstance(found, Place) else found.directory}")
    if sql is None:
        for line in describe(found):
            OUT.print(line, markup=False, soft_wrap=True)
        where = Path() if isinstance(found, Place) else found.directory
        flag = run_flag(run, Path("runs") if found is place else runs_dir, where)
        print_lines(next=f'noisescope query "SELECT * FROM scores ORDER BY rank LIMIT 20"{flag}')
        return
    kind = Format.json if json else format
    if kind is Format.parquet and output is None:
        raise UsageError("parquet is not text", hint="Add --output FILE.parquet.")
    table = _named_apart(run_query(found, sql))
    if kind is Format.table and output is None:
        _print_table(table)
    else:
        _write(table, kind, output)


def _named_apart(table: pa.Table) -> pa.Table:
    """`table` with later columns of the same name called name_1, name_2: rows become objects."""
    names: list[str] = []
    for name in table.column_names:
        fresh = (f"{name}_{count}" for count in range(1, len(table.column_names) + 1))
        names.append(name if name not in names else next(n for n in fresh if n not in names))
    return table.rename_columns(names)


def _write(table: pa.Table, kind: Format, output: Path | None) -> None:
    """Write the result as text to stdout, or atomically to `output`."""
    import sys

    from noisescope.storage.files import write_atomic

    content = _encode(table, kind)
    if output is None:
        text = content.decode()
        sys.stdout.write(safe_block(text) + "\n" if sys.stdout.isatty() else text)
    else:
        write_atomic(output, content)
        print_note(f"{table.num_rows:,} rows in {output}")


def _encode(table: pa.Table, kind: Format) -> bytes:
    import io

    sink = io.BytesIO()
    if kind is Format.parquet:
        import pyarrow.parquet as pq

        pq.write_table(table, sink, compression="zstd")
    elif kind is Format.json:
        sink.write((json_text(finite(table.to_pylist())) + "\n").encode())
    else:
        import pyarrow.csv

        pyarrow.csv.write_csv(_flat(table), sink)
    return sink.getvalue()


def _flat(table: pa.Table) -> pa.Table:
    """`table` with nested columns and intervals as JSON text, which CSV can hold."""
    import json

    import pyarrow as pa

    for index, column in enumerate(table.schema):
        if pa.types.is_nested(column.type) or pa.types.is_interval(column.type):
            texts = [json.dumps(value, default=str) for value in table.column(index).to_pylist()]
            table = table.set_column(index, column.name, pa.array(texts, pa.string()))
    return table


def _print_table(table: pa.Table) -> None:
    from rich.table import Table
    from rich.text import Text

    shown = Table(header_style="bold")
    for column in table.schema:
        numeric = str(column.type) in ("int64", "int32", "int16", "double", "float")
        shown.add_column(Text(printable(column.name)), justify="right" if numeric else "left")
    for row in table.slice(0, SHOWN).to_pylist():
        shown.add_row(*(Text(_cell(value)) for value in row.values()))
    OUT.print(shown)
    if table.num_rows > SHOWN:
        print_note(f"{SHOWN} of {table.num_rows:,} rows; --format csv or --output FILE gives all")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(printable(str(value)).split())
    return text if len(text) <= 200 else text[:199] + "…"
