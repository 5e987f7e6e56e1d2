"""noisescope report: one HTML page about a run, or the same in the terminal."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisescope.cli.console import OUT, print_json, print_lines, print_note
from noisescope.cli.options import JsonOption, RunArgument, RunsDirOption
from noisescope.cli.resolve import note_run
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from noisescope.pairs import ImageStore
    from noisescope.report.contents import Contents
    from noisescope.storage.run import Run

#: Pairs printed.
SHOWN = 10
WIDTH = 600


def print_report(contents: Contents, console: Console) -> None:
    """Print `contents`; dataset text is never read as markup."""
    from rich.text import Text

    from noisescope.report.html import commands, verdict

    title = f"{contents.manifest['dataset']} · {contents.summary['pairs']:,} pairs"
    console.print(Text(printable(title), style="bold"))
    console.print(Text(verdict(contents.summary)))
    if contents.reviews is not None:
        console.print(Text(printable(contents.reviews.sentence()), style="bold"))
    for note in contents.summary["notes"]:
        console.print(Text(f"• {printable(note)}"))
    if contents.known is not None:
        console.print(Text(f"\n{contents.known.description}"))
        console.print(_detectors(contents))
    if contents.annotators:
        console.print(_annotators(contents))
    for pair in contents.pairs[:SHOWN]:
        facts = f"\n#{pair['rank']}  p_wrong {pair['p_wrong']:.3f}  {pair['pair_id']}"
        facts += f"  annotator {pair['annotator']}" if pair["annotator"] else ""
        console.print(Text(printable(facts), style="bold"))
        for name in ("prompt", "chosen", "rejected"):
            text = printable(pair[name], lines=True).replace("\n\n", "\n")
            shown = text if len(text) <= WIDTH else text[:WIDTH] + "…"
            console.print(
                Text(f"{name:>9}  ", style="bold") + Text(shown.replace("\n", "\n           "))
            )
    console.print()
    for line in commands(contents):
        console.print(Text(f"$ {line}"), soft_wrap=True)


def _detectors(contents: Contents) -> RenderableType:
    from rich.table import Table

    known = contents.known
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("detector", "AUROC", "90 % interval"):
        table.add_column(name, justify="left" if name == "detector" else "right")
    rows = sorted(known.detectors.items(), key=lambda row: -row[1].estimate) if known else []
    for name, found in rows:
        table.add_row(name, f"{found.estimate:.3f}", f"{found.low:.3f} to {found.high:.3f}")
    return table


def _annotators(contents: Contents) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="Annotators, least reliable first",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    known = contents.summary["flip_rate"]["identifiable"]
    rates = ("flip rate", "90 % interval") if known else ("agrees with the judge",)
    for name in ("annotator", "labels", *rates, ""):
        table.add_column(name, justify="left" if name in ("annotator", "") else "right")
    for row in contents.annotators[:SHOWN]:
        remark = "votes backwards" if row.contrarian else "careless" if row.careless else ""
        rate = (f"{row.flip_rate:.1%}", f"{row.low:.1%} to {row.high:.1%}")
        cells = rate if known else (f"{row.agreement:.1%}",)
        table.add_row(
            Text(printable(row.name)), f"{row.labels:,}", *cells, Text(remark, style="red")
        )
    return table


def report(
    run: RunArgument = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The HTML file; report.html in the run.")
    ] = None,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Print it here instead of writing a page.")
    ] = False,
    earlier: Annotated[
        list[str] | None,
        typer.Option(
            help="A run before this one, oldest first; repeat it for more. For the history.",
            show_default="earlier states of this dataset",
        ),
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Write a run's report: one HTML file that needs no network, and its figures.

    Example: noisescope report --terminal
    """
    from noisescope.report.contents import gather
    from noisescope.report.html import write_report
    from noisescope.storage.run import find_run

    found = find_run(run, runs_dir)
    note_run(found, run, runs_dir)
    if terminal:
        print_report(gather(found, worst=SHOWN), OUT.console)
        return
    before = [find_run(name, runs_dir) for name in earlier or ()]
    path, figures = write_report(found, output, images_of(found), before)
    if json:
        print_json({"report": str(path), "figures": [str(figure) for figure in figures]})
    else:
        run_again = shlex.quote(str(found.directory))
        print_lines(
            report=str(path),
            figures=str(found.directory / "figures"),
            next=f"noisescope apply decisions.csv {run_again}",
        )


def images_of(run: Run) -> ImageStore | None:
    """The pictures of a run, read from its dataset; None without any, or when it has moved."""
    from noisescope.datasets.load import images_again

    return images_again(run, lambda text: print_note(printable(text)))
