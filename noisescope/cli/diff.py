"""noisescope diff RUN_A RUN_B [RUN...]: what changed between two audits, or over more."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisescope.cli.console import OUT, print_json, print_lines, print_note, short
from noisescope.cli.options import JsonOption, RunsDirOption
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    from noisescope.scoring.diff import Change, Difference, Group
    from noisescope.scoring.history import History
    from noisescope.scoring.metrics import Interval

#: Rows shown of each kind of change.
SHOWN = 5
#: Sources and annotators shown: the most changed ones.
GROUPS = 10
#: Characters of a run's name and of a drawn interval: a line of a history fits 80 columns.
NAME, WIDE = 14, 14


def diff(
    run_a: Annotated[str, typer.Argument(help="The earlier run: a directory or a name.")],
    run_b: Annotated[str, typer.Argument(help="The later run.")],
    more: Annotated[
        list[str] | None,
        typer.Argument(
            help="More runs, oldest first: a history with its trend.", show_default=False
        ),
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Show new, removed and relabelled pairs, noise by source, and changed verdicts.

    Of three runs or more, such as weekly deliveries, a table and the trend of their flip rates.

    Example: noisescope diff runs/pairs-1a2b3c4d runs/pairs-5e6f7a8b
    """
    from noisescope.scoring.diff import compare
    from noisescope.storage.run import find_run

    if more:
        from noisescope.scoring.history import history

        past = history([find_run(name, runs_dir) for name in (run_a, run_b, *more)])
        if json:
            print_json(past.to_json())
        else:
            print_history(past)
        return

    found = compare(find_run(run_a, runs_dir), find_run(run_b, runs_dir))
    if json:
        print_json(found.to_json())
        return
    for note in found.notes:
        print_note(note)
    print_difference(found)


def print_history(past: History) -> None:
    """A line a run, with its flip rate drawn to scale, then the trend."""
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    top = max(point.flip_rate.high for point in past.points)
    scale = f"0%{f'{top:.0%}':>{WIDE - 2}}"
    for name in ("dataset", "pairs", "wrong labels", "flip rate", scale, "trust"):
        table.add_column(name, justify="right" if name == "pairs" else "left", no_wrap=True)
    for point in past.points:
        wrong, rate = (f"{one.low:.0%} to {one.high:.0%}" for one in (point.wrong, point.flip_rate))
        drawn = whisker(point.flip_rate, top)
        trust = point.trust.removesuffix(" to change labels")
        cells = (f"{point.pairs:,}", wrong, rate, drawn, trust)
        table.add_row(Text(short(point.dataset, NAME)), *cells)
    OUT.print(table)
    OUT.print(f"\n{past.sentence}", style="bold", markup=False)
    for note in past.notes:
        print_note(printable(note))
    runs = [shlex.quote(point.run) for point in past.points]
    earlier = " ".join(f"--earlier {run}" for run in runs[:-1])
    print_lines(next=f"noisescope report {runs[-1]} {earlier}")


def whisker(rate: Interval, top: float) -> str:
    """An interval as text of `WIDE` characters from 0 to `top`, its estimate as a dot."""
    low, at, high = (
        round((WIDE - 1) * value / (top or 1)) for value in (rate.low, rate.estimate, rate.high)
    )
    return "".join("●" if n == at else "─" if low <= n <= high else " " for n in range(WIDE))


def print_difference(found: Difference) -> None:
    """Both runs side by side, then what changed, most suspicious first."""
    _print_rates(found)
    counts = {
        "new pairs": (found.new, found.new_pairs),
        "removed pairs": (found.removed, found.removed_pairs),
        "relabelled pairs": (found.relabelled, found.relabelled_pairs),
        "changed verdicts (p_flip across 0.5)": (found.changed_verdicts, found.changed_pairs),
    }
    for title, (count, changes) in counts.items():
        OUT.print(f"\n[bold]{count:,} {title}[/bold]")
        _print_changes(changes)
    for title, groups in (("source", found.sources), ("annotator", found.annotators)):
        if groups:
            _print_groups(title, groups)
    print_lines(next=_next(found))


def _next(found: Difference) -> str:
    """The gravest change in full; of two equal datasets, the later run."""
    run = shlex.quote(str(found.b["run"]))
    changes = (*found.relabelled_pairs, *found.new_pairs, *found.changed_pairs)
    if not changes:
        return f"noisescope report {run}"
    return f"noisescope show {shlex.quote(changes[0].pair_id)} {run}"


def _print_rates(found: Difference) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in ("", "A", "B"):
        table.add_column(name)
    for name, shown in (
        ("run", lambda side: Text(printable(str(side["run"])))),
        ("pairs", lambda side: f"{side['pairs']:,}"),
        ("held-out accuracy", lambda side: _share(side["held_out_accuracy"])),
        ("flip rate", lambda side: _rate(side["flip_rate"])),
        ("contested", lambda side: _share(side["contested_share"])),
    ):
        table.add_row(Text(name, style="bold"), shown(found.a), shown(found.b))
    OUT.print(table)


def _rate(rate: dict[str, Any] | None) -> str:
    if not rate:
        return "–"
    return f"{rate['estimate']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _print_changes(changes: Sequence[Change]) -> None:
    from rich.text import Text

    for change in changes[:SHOWN]:
        sides = [p for p in (change.p_flip_a, change.p_flip_b) if p is not None]
        place = f"  {short(change.source, 60)}:{change.row + 1}  "
        chances = " → ".join(f"{p:.2f}" for p in sides)
        text = Text(place, style="dim") + Text(f"p_flip {chances}  {short(change.prompt, 160)}")
        OUT.print(text, no_wrap=True, overflow="ellipsis")


def _print_groups(title: str, groups: Sequence[Group]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column(f"\n{title}")
    for name in ("\npairs A", "\nmean p_flip A", "\npairs B", "\nmean p_flip B"):
        table.add_column(name, justify="right")
    for group in groups[:GROUPS]:
        a, b = (_share(noise) for noise in (group.noise_a, group.noise_b))
        table.add_row(Text(short(group.name, 60)), f"{group.pairs_a:,}", a, f"{group.pairs_b:,}", b)
    OUT.print(table)
    if len(groups) > GROUPS:
        print_note(f"{GROUPS} of {len(groups):,} {title}s; --json has all")
