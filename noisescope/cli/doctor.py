"""noisescope doctor: what this machine offers, and what is amiss."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from noisescope.cli.console import OUT, print_json, print_lines, safe


def doctor(
    runs_dir: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show versions, device, speed, cache and what is reachable; exits 2 if something is amiss.

    Example: noisescope doctor
    """
    from rich.table import Table
    from rich.text import Text

    from noisescope.doctor import examine
    from noisescope.workspace import find_workspace

    findings = examine(runs_dir)
    if json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for finding in findings:
            mark = Text("ok", style="green") if finding.ok else Text("!!", style="bold red")
            table.add_row(mark, finding.name, Text(safe(finding.value)))
            if not finding.ok and finding.advice:
                table.add_row("", "", Text(f"→ {safe(finding.advice)}", style="yellow"))
        OUT.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(2)
    if not json:
        print_lines(next="noisescope datasets" if find_workspace() else "noisescope sample")
