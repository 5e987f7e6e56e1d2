"""The one screen that `noisescope train` ends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noisescope.cli.console import OUT, duration, print_lines, safe, short

if TYPE_CHECKING:
    from noisescope.learners.trained import Trained


def print_result(done: Trained, follow: str) -> None:
    """What was trained, on what, how its first and last steps compare, and what to type next."""
    from rich import box
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    manifest = done.manifest()
    plan, result = manifest["plan"], manifest["result"]
    settings = plan["settings"]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    counts = f"{result['trained_pairs']:,} trained on, {result['validation_pairs']:,} validated on"
    for reason, number in result["set_aside"].items():
        counts += f", {number:,} set aside ({reason})"
    kind = "every weight" if settings["full"] else f"LoRA, rank {settings['lora_r']}"
    rate = f"learning rate {settings['learning_rate']:g}, batch {settings['batch']}"
    facts.add_row("model", Text(f"{safe(plan['model'])} ({kind})"))
    facts.add_row("pairs", Text(counts))
    facts.add_row("objective", f"{settings['objective']}, beta {settings['beta']:g}, {rate}")
    facts.add_row("weights", Text(safe(plan["weights"])))
    facts.add_row("time", f"{result['steps']:,} steps in {duration(manifest['seconds'])}")
    title = Text(f"noisescope train · {short(str(plan['dataset']), 50)}", style="bold")
    body = Group(facts, Text(), _measures(result))
    OUT.print(Panel(body, title=title, box=box.ROUNDED, padding=(1, 2)))
    files = ", ".join(manifest["files"][:4])
    print_lines(
        result=f"{done.directory}: {files}, README.md, history.jsonl",
        next=follow,
    )


def _measures(result: dict[str, Any]) -> Any:
    """First and last steps side by side, and validation."""
    from rich.table import Table

    first, last, held = result["first"], result["last"], result["validation"]
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("first steps", "last steps", "validation"):
        table.add_column(name, justify="right")
    shown = {"loss": ".4f", "margin": "+.4f", "accuracy": ".1%"}
    for name, form in shown.items():
        table.add_row(
            name,
            f"{first[name]:{form}}",
            f"{last[name]:{form}}",
            f"{held[name]:{form}}" if held else "-",
        )
    table.add_row("mean W", f"{first['weight']:.3f}", f"{last['weight']:.3f}", "")
    table.add_row("W below ½", f"{first['light']:.1%}", f"{last['light']:.1%}", "")
    return table
