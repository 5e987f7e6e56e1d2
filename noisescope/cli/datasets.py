"""noisescope datasets [NAME]: what is known here, or a look at one dataset."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisescope.cli.console import OUT, print_json, print_lines, short
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

    from noisescope.pairs import PreferenceDataset

#: Rows read for a look at one dataset, and pairs of it shown.
LOOK = 1000
SHOWN = 3


def datasets(
    name: Annotated[str | None, typer.Argument(help="Look at this dataset.")] = None,
    format: Annotated[str | None, typer.Option(help="Format, if not to be recognised.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a dataset that has several.")] = None,
    limit: Annotated[int, typer.Option(help="Rows read for the look.", min=1)] = LOOK,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """List known datasets and formats; with NAME, read its first rows and say what they hold.

    Example: noisescope datasets data/pairs.jsonl
    """
    if name is None:
        _list(json)
    else:
        _look(name, format, split, limit, json)


def _list(json: bool) -> None:
    from rich.table import Table

    from noisescope.datasets import ADAPTERS
    from noisescope.storage.workspace import HUB_NAMES, find_workspace

    workspace = find_workspace()
    local = {key: entry.written for key, entry in workspace.datasets.items()} if workspace else {}
    hub = {key: value for key, value in HUB_NAMES.items() if key not in local}
    if json:
        formats = {key: list(adapter.columns) for key, adapter in ADAPTERS.items()}
        print_json({"workspace": local, "hub": hub, "formats": formats})
        return
    names = Table(title="datasets", title_justify="left", header_style="bold")
    names.add_column("name")
    names.add_column("means")
    for key, path in local.items():
        default = " (default)" if workspace and workspace.dataset == key else ""
        names.add_row(printable(key), printable(f"{path}{default}"))
    for key, target in hub.items():
        names.add_row(printable(key), f"{target} on the Hugging Face Hub")
    OUT.print(names)
    formats_table = Table(title="formats (--format)", title_justify="left", header_style="bold")
    formats_table.add_column("format")
    formats_table.add_column("holds")
    formats_table.add_column("columns")
    for key, adapter in ADAPTERS.items():
        optional = [f"\\[{column}]" for column in adapter.optional]
        formats_table.add_row(key, adapter.modality, " ".join([*adapter.columns, *optional]))
    OUT.print(formats_table)
    print_lines(next="noisescope datasets NAME")


def _look(name: str, format: str | None, split: str | None, limit: int, json: bool) -> None:
    from rich.text import Text

    from noisescope.cli.resolve import model_flag
    from noisescope.datasets import load
    from noisescope.storage.workspace import find_workspace

    workspace = find_workspace()
    dataset = load(name, format=format, split=split, limit=limit, workspace=workspace)
    if json:
        about = {"name": dataset.name, "resolved": dataset.resolved, "format": dataset.adapter}
        print_json(about | {"modality": dataset.modality, "limit": limit} | dataset.facts.to_json())
        return
    OUT.print(Text(f"{dataset.name} → {printable(dataset.resolved)}"), soft_wrap=True)
    OUT.print(_facts(dataset, limit))
    for row in dataset.table.slice(0, SHOWN).to_pylist():
        OUT.print()
        for column in ("pair_id", "prompt", "chosen", "rejected"):
            OUT.print(Text(f"  {column:9}", style="bold") + Text(short(str(row[column]), 200)))
    flags = "".join(
        f" --{flag} {shlex.quote(value)}"
        for flag, value in (("format", format), ("split", split))
        if value
    )
    judge = model_flag(dataset.modality, name, workspace, Path("runs"))
    OUT.print()
    print_lines(next=f"noisescope score {shlex.quote(name)}{flags}{judge}")


def _facts(dataset: PreferenceDataset, limit: int) -> Table:
    """What was read and what was set aside, a line each; counts of nothing are left out."""
    from rich.table import Table
    from rich.text import Text

    facts = dataset.facts
    more = " (as many as were asked for: --limit)" if facts.rows == limit else ""
    lines = [("format", f"{dataset.adapter}, {dataset.modality}")]
    lines += [("rows read", f"{facts.rows:,}{more}"), ("pairs", f"{facts.pairs:,}")]
    lines += [(f"  {reason}", f"{count:,}") for reason, count in facts.rejected.items() if count]
    titles = ["  rows, from 0", *[""] * len(facts.examples)]
    lines += [(title, str(fault)) for title, fault in zip(titles, facts.examples, strict=False)]
    repeats = {
        "duplicates": facts.duplicates,
        "contradictions": facts.contradictions,
        "  by one annotator": facts.self_contradictions,
        "annotators": facts.annotators,
    }
    lines += [(name, f"{count:,}") for name, count in repeats.items() if count]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in lines:
        table.add_row(Text(name), Text(printable(value)))
    return table
