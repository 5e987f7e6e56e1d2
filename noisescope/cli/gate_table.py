"""The verdict of a gate on a terminal: every check, the rows behind each breach, one last line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from noisescope.cli.console import ERR, OUT, print_lines, print_row_note, safe, short

if TYPE_CHECKING:
    from noisescope.gate.verdict import Result, Verdict

STYLES = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "skipped": "dim"}
#: Rows shown below the table for each breach.
SHOWN = 5


def print_verdict(verdict: Verdict) -> None:
    """Every check in a table, the rows behind each breach, and the verdict in one line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("allowed", justify="right", no_wrap=True)
    table.add_column("found", overflow="fold")
    for result in verdict.results:
        status = Text(result.status, style=STYLES[result.status])
        table.add_row(Text(safe(result.check)), status, allowed(result), Text(_found(result)))
    OUT.print(table)
    _print_rows([result for result in verdict.results if result.rows])
    if verdict.exit_code:
        print_lines(next=_next(verdict))
    style = STYLES["fail" if verdict.exit_code else "pass"]
    OUT.print(Text(safe(verdict.said), style=style), soft_wrap=True)
    if verdict.exit_code == 2:
        ERR.print("inconclusive is exit 2; --inconclusive pass or fail decides otherwise")


def _next(verdict: Verdict) -> str:
    """What to type where it is not green: the first bad pair in full, else the whole run."""
    run = shlex.quote(verdict.run)
    bad = [row.pair_id for result in verdict.of("fail") for row in result.rows if row.pair_id]
    return (
        f"noisescope show {shlex.quote(bad[0])} --run {run}" if bad else f"noisescope report {run}"
    )


def allowed(result: Result) -> str:
    """A threshold with its direction, as it was set."""
    if result.threshold is None:
        return ""
    floor = result.check in ("accuracy", "reliability", "labels")
    return f"{'≥' if floor else '≤'} {result.threshold:g}"


def _found(result: Result) -> str:
    needed = result.pairs_needed
    more = f"; about {needed:,} pairs are needed" if needed is not None else ""
    return safe(result.said) + more


def _print_rows(results: Sequence[Result]) -> None:
    from rich.text import Text

    for result in results:
        OUT.print(Text(f"\n{safe(result.check)}", style="bold"))
        for row in result.rows[:SHOWN]:
            place = f"  {short(row.source, 60)}:{row.row}  " if row.source else "  "
            text = Text(place, style="dim") + Text(short(row.detail, 200))
            OUT.print(text, no_wrap=True, overflow="ellipsis")
    if any(row.source for result in results for row in result.rows[:SHOWN]):
        print_row_note()
