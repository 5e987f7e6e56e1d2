"""noisescope query SQL: read a run with DuckDB."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from noisescope.cli.console import (
    OUT,
    finite,
    json_text,
    print_lines,
    print_note,
    safe_block,
    short,
)
from noisescope.cli.options import RunsDirOption
from noisescope.cli.resolve import note_run
from noisescope.errors import UsageError
from noisescope.storage.printable import plural, printable

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows shown on a terminal by default.
SHOWN = 50
#: Types of columns that are aligned to the right and never wrapped.
NUMERIC = ("int64", "int32", "int16", "double", "float")
#: Characters that a column of texts needs at least, if it has as many.
TEXT = 20
#: Columns that a weak audit warns about.
PROBABILITY = re.compile(r"\bp_(wrong|flip|mislabelled)")
#: A first query.
SUGGESTED = (
    "SELECT rank, pair_id, p_wrong, annotator, left(prompt, 20) AS prompt "
    "FROM scores JOIN pairs USING (pair_id) ORDER BY rank LIMIT 20"
)


class Format(StrEnum):
    """How results are written."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def query(
    sql: Annotated[
        str | None, typer.Argument(help="One SELECT.", show_default="list the tables")
    ] = None,
    run: Annotated[
        str | None,
        typer.Argument(
            help="Run directory, name or URL (s3://...).", show_default="the latest run"
        ),
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
    from noisescope.cli.resolve import run_word
    from noisescope.scoring.answer import caution
    from noisescope.storage.remote import Place, place_of
    from noisescope.storage.run import Run, find_run
    from noisescope.storage.sql import describe
    from noisescope.storage.sql import query as run_query

    sql, run = told_apart(sql, run)
    found: Run | Place
    place = place_of(run) if run is not None and "://" in run else None
    if place is not None and place.local is None:
        found = place
    else:  # SQL checks the tables it names
        found = find_run(run if place is None else str(place.local), runs_dir, check=sql is None)
    if isinstance(found, Place):
        print_note(f"run: {found}")
    else:
        note_run(found, run, runs_dir)
    if sql is None:
        for line in describe(found):
            OUT.print(line, markup=False, soft_wrap=True)
        where = Path() if isinstance(found, Place) else found.directory
        flag = run_word(run, Path("runs") if found is place else runs_dir, where)
        print_lines(next=f'noisescope query "{SUGGESTED}"{flag}')
        return
    kind = Format.json if json else format
    if kind is Format.parquet and output is None:
        raise UsageError("parquet is not text", hint="Add --output FILE.parquet.")
    table = _named_apart(run_query(found, sql))
    shown = PROBABILITY.search(" ".join([sql, *table.column_names]))
    if shown and isinstance(found, Run) and (weak := caution(found)):
        print_note(printable(weak))
    if kind is Format.table and output is None:
        _print_table(table)
    else:
        _write(table, kind, output)


def told_apart(sql: str | None, run: str | None) -> tuple[str | None, str | None]:
    """(SQL, RUN) of one or two words in either order: SQL has spaces or brackets, and is no run."""
    if sql is not None and (run is None or _is_sql(run)) and not _is_sql(sql):
        return run, sql
    return sql, run


def _is_sql(word: str) -> bool:
    return bool(re.search(r"[\s()*;]", word)) and not (Path(word) / "plan.json").is_file()


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
        print_note(f"{plural(table.num_rows, 'row')} in {output}")


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
    """Print the first rows; columns that do not fit are dropped from the middle, and counted."""
    from rich.table import Table
    from rich.text import Text

    rows = [[_cell(value) for value in row.values()] for row in table.slice(0, SHOWN).to_pylist()]
    names = [printable(name) for name in table.column_names]
    width = OUT.console.width
    numeric = [str(field.type) in NUMERIC for field in table.schema]
    widths = [max(len(text) for text in column) for column in zip(names, *rows, strict=True)]
    least = [
        size if is_number else min(size, TEXT)
        for size, is_number in zip(widths, numeric, strict=True)
    ]
    kept = fitting(least, width)
    shown = Table(header_style="bold")
    for at in kept:
        justify: Literal["left", "right"] = "right" if numeric[at] else "left"
        shown.add_column(Text(names[at]), justify=justify, no_wrap=numeric[at], overflow="fold")
    for row in rows:
        shown.add_row(*(Text(row[at]) for at in kept))
    OUT.print(shown)
    dropped = [names[at] for at in range(len(names)) if at not in kept]
    if dropped:
        more = plural(len(dropped), "more column")
        print_note(f"{more} ({short(', '.join(dropped), 60)}); --format csv gives all")
    if table.num_rows > SHOWN:
        print_note(f"{SHOWN} of {table.num_rows:,} rows; --format csv or --output FILE gives all")


def fitting(widths: Sequence[int], total: int) -> list[int]:
    """Columns of `widths` that fit into `total` characters, from both ends; at least the first.

    A column takes three more characters for its border.
    """
    places = range(len(widths))
    ends = [at for pair in zip(places, reversed(places), strict=True) for at in pair]
    kept: list[int] = []
    left = total - 1
    for at in dict.fromkeys(ends):
        left -= widths[at] + 3
        if kept and left < 0:
            break
        kept.append(at)
    return sorted(kept)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(printable(str(value)).split())
    return text if len(text) <= 200 else text[:199] + "…"
