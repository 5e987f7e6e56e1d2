"""noisescope agreement DATASET: how far annotators agree with each other and with themselves."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisescope.cli.console import OUT, Terminal, print_json, print_lines, short
from noisescope.cli.options import ColumnsOption, FormatOption, JsonOption, LimitOption, SplitOption
from noisescope.errors import UsageError

if TYPE_CHECKING:
    from noisescope.scoring.agreement import Agreement
    from noisescope.scoring.metrics import Interval

#: Annotators printed, and judged votes they need for it.
SHOWN = 8
LEAST = 10


def agreement(
    dataset: Annotated[
        str | None, typer.Argument(help="Workspace name, path or glob of a dataset of votes.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Write the two histograms to this .png or .svg file.")
    ] = None,
    format: FormatOption = None,
    columns: ColumnsOption = None,
    split: SplitOption = None,
    limit: LimitOption = None,
    seed: Annotated[int, typer.Option(help="Random seed of the bootstrap.", min=0)] = 0,
    json: JsonOption = False,
) -> None:
    """Measure how well annotators agree who judged the same pairs (one row per vote).

    A vote's accuracy is measured against the majority of the other votes on its pair. Intervals
    are 90 %, by bootstrap over pairs. No model is used.

    Example: noisescope agreement votes.parquet --figure agreement.png
    """
    kind = figure.suffix.lower() if figure else ".png"
    if kind not in (".png", ".svg"):
        raise UsageError(
            f"--figure {figure} must end in .png or .svg", hint="Try: --figure agreement.png"
        )
    from noisescope.cli.resolve import model_flag, reading_flags
    from noisescope.datasets import load
    from noisescope.scoring.agreement import agreement as measure
    from noisescope.storage.workspace import default_dataset, find_workspace

    terminal = Terminal(quiet=json)
    workspace = find_workspace()
    named = default_dataset(dataset, workspace)
    reading: dict[str, Any] = {"format": format, "columns": columns, "split": split}
    loaded = load(named, **reading, limit=limit, workspace=workspace)
    terminal.note(f"{loaded.name}: {loaded.resolved}")
    for reason, count in loaded.facts.rejected.items():
        if count:
            terminal.note(f"{count:,} votes set aside: {reason}")
    found = measure(loaded.table, seed=seed)
    if figure:
        _draw(found, figure)
    if json:
        about = {"dataset": loaded.resolved, "set_aside": loaded.facts.rejected}
        print_json(about | found.to_json() | {"figure": str(figure) if figure else None})
        return
    _print(found)
    judge = model_flag(loaded.modality, named, workspace, Path("runs"))
    flags = reading_flags({**reading, "limit": limit})
    drawn = {"figure": str(figure)} if figure else {}
    print_lines(**drawn, next=f"noisescope score {shlex.quote(named)}{flags}{judge}")


def _draw(found: Agreement, path: Path) -> None:
    from noisescope.report.agreement import agreement_figure
    from noisescope.storage.files import write_atomic
    from noisescope.storage.output import require_ending

    require_ending(path, ".png", ".svg")
    picture = agreement_figure(found)
    write_atomic(path, picture.encode("svg" if path.suffix.lower() == ".svg" else "png"))


def _print(found: Agreement) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="agreement", title_justify="left", header_style="bold")
    for name in ("", "value", "90 % interval", "of"):
        table.add_column(name, justify="left" if name in ("", "of") else "right")
    judged = f"{found.judged:,} votes with a majority among the other votes"
    pairs = f"{found.shared:,} pairs judged by two annotators or more"
    table.add_row("accuracy against the others", *_cells(found.accuracy), judged)
    table.add_row("pairs not unanimous", *_cells(found.not_unanimous), pairs)
    table.add_row("two annotators agree", *_cells(found.pairwise), "pairs of votes on one pair")
    alpha = found.alpha
    table.add_row(
        "Krippendorff's alpha",
        f"{alpha.estimate:.3f}",
        f"{alpha.low:.3f} – {alpha.high:.3f}",
        "1: all agree, 0: chance",
    )
    again = f"{found.repeats:,} pairs that one annotator judged again"
    table.add_row("self-consistency", *_cells(found.self_consistency), again)
    OUT.print(table)
    unnamed = f", {found.unnamed:,} votes without an annotator excluded" if found.unnamed else ""
    OUT.print(
        f"{found.votes:,} votes on {found.contents:,} pairs by {found.annotators:,} "
        f"annotators{unnamed}; {found.undecided:,} contradicted themselves evenly",
        soft_wrap=True,
    )
    rows = [row for row in found.by_annotator if row.judged >= LEAST][:SHOWN]
    if rows:
        OUT.print(f"\nleast accurate, of those with {LEAST} judged votes or more", style="bold")
    for row in rows:
        value, interval = _cells(row.accuracy)
        line = f"  {short(row.name, 24):24} {value:>6}  ({interval})  {row.judged:,} votes"
        OUT.print(Text(line), soft_wrap=True)


def _cells(interval: Interval | None) -> tuple[str, str]:
    if interval is None:
        return "–", "none"
    return f"{interval.estimate:.1%}", f"{interval.low:.1%} – {interval.high:.1%}"
