"""The report in a terminal: the verdict, the worst pairs, annotators, and what was proven."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noisescope.report.contents import Contents
from noisescope.report.html import commands, printable, verdict

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: Pairs printed; the page shows a hundred.
SHOWN = 10
WIDTH = 600


def print_report(contents: Contents, console: Console) -> None:
    """Print `contents`; dataset text is never read as markup."""
    from rich.text import Text

    title = f"{contents.manifest['dataset']} · {contents.summary['pairs']:,} pairs"
    console.print(Text(printable(title), style="bold"))
    console.print(Text(verdict(contents.summary)))
    for note in contents.summary["notes"]:
        console.print(Text(f"• {printable(note)}"))
    if contents.known is not None:
        console.print(Text(f"\n{contents.known.said}"))
        console.print(_detectors(contents))
    if contents.annotators:
        console.print(_annotators(contents))
    for pair in contents.pairs[:SHOWN]:
        facts = f"\n#{pair['rank']}  p_flip {pair['p_flip']:.3f}  {pair['pair_id']}"
        facts += f"  annotator {pair['annotator']}" if pair["annotator"] else ""
        console.print(Text(printable(facts), style="bold"))
        for name in ("prompt", "chosen", "rejected"):
            text = printable(pair[name]).replace("\n\n", "\n")
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
    for name in ("annotator", "labels", "flip rate", "90 % interval", ""):
        table.add_column(name, justify="left" if name in ("annotator", "") else "right")
    for row in contents.annotators[:SHOWN]:
        remark = "contrarian" if row.contrarian else "careless" if row.careless else ""
        cells = (f"{row.labels:,}", f"{row.flip_rate:.1%}", f"{row.low:.1%} to {row.high:.1%}")
        table.add_row(Text(printable(row.name)), *cells, Text(remark, style="red"))
    return table
