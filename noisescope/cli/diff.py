"""noisescope diff RUN_A RUN_B: what changed between two audits."""

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

#: Rows shown of each kind of change.
SHOWN = 5
#: Sources and annotators shown: the most changed ones.
GROUPS = 10


def diff(
    run_a: Annotated[str, typer.Argument(help="The earlier run: a directory or a name.")],
    run_b: Annotated[str, typer.Argument(help="The later run.")],
    runs_dir: RunsDirOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Show new, removed and relabelled pairs, noise by source, and changed verdicts.

    Example: noisescope diff runs/pairs-1a2b3c4d runs/pairs-5e6f7a8b
    """
    from noisescope.scoring.diff import compare
    from noisescope.storage.run import find_run

    found = compare(find_run(run_a, runs_dir), find_run(run_b, runs_dir))
    if json:
        print_json(found.to_json())
        return
    for note in found.notes:
        print_note(note)
    print_difference(found)


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
