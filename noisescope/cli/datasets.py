"""noisescope datasets [NAME]: what is known here, or a look at one dataset."""

from __future__ import annotations

from typing import Annotated

import typer

from noisescope.cli.console import OUT, print_json, safe, short

#: Rows read for a look at one dataset.
LOOK = 1000


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
    from noisescope.workspace import HUB_NAMES, find_workspace

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
        names.add_row(safe(key), safe(f"{path}{default}"))
    for key, target in hub.items():
        names.add_row(safe(key), f"{target} on the Hugging Face Hub")
    OUT.print(names)
    formats_table = Table(title="formats (--format)", title_justify="left", header_style="bold")
    formats_table.add_column("format")
    formats_table.add_column("holds")
    formats_table.add_column("columns")
    for key, adapter in ADAPTERS.items():
        optional = [f"\\[{column}]" for column in adapter.optional]
        formats_table.add_row(key, adapter.modality, " ".join([*adapter.columns, *optional]))
    OUT.print(formats_table)


def _look(name: str, format: str | None, split: str | None, limit: int, json: bool) -> None:
    from rich.text import Text

    from noisescope.datasets import load
    from noisescope.workspace import find_workspace

    dataset = load(name, format=format, split=split, limit=limit, workspace=find_workspace())
    facts = dataset.facts.to_json()
    if json:
        about = {"name": dataset.name, "resolved": dataset.resolved, "format": dataset.adapter}
        print_json(about | {"modality": dataset.modality, "limit": limit} | facts)
        return
    OUT.print(Text(f"{dataset.name} → {safe(dataset.resolved)}"))
    OUT.print(Text(f"format {dataset.adapter}, {dataset.modality}; the first {limit:,} rows"))
    for key, value in facts.items():
        OUT.print(Text(f"  {key.replace('_', ' ')}: {safe(str(value))}"))
    for row in dataset.table.slice(0, 3).to_pylist():
        OUT.print()
        for column in ("pair_id", "prompt", "chosen", "rejected"):
            OUT.print(Text(f"  {column:9}", style="bold") + Text(short(str(row[column]), 200)))
