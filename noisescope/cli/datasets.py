"""noisescope datasets [NAME]: what is known here, or how one dataset is read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisescope.cli.console import OUT, print_json, print_lines, short
from noisescope.cli.options import ColumnsOption, JsonOption, PairsOption, SplitOption
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

    from noisescope.pairs import PreferenceDataset

#: Rows read for a look at one dataset, and pairs of it shown.
LOOK = 1000
SHOWN = 3
#: Characters of a text shown on the screen.
_WIDE = 200


def datasets(
    name: Annotated[str | None, typer.Argument(help="Look at this dataset.")] = None,
    format: Annotated[str | None, typer.Option(help="Format, if not to be recognised.")] = None,
    columns: ColumnsOption = None,
    pairs: PairsOption = None,
    split: SplitOption = None,
    limit: Annotated[int, typer.Option(help="Rows read for the look.", min=1)] = LOOK,
    json: JsonOption = False,
) -> None:
    """List known datasets and formats; with NAME, read its first rows and show how they are read.

    Example: noisescope datasets data/pairs.jsonl --columns prompt=question,chosen=a,rejected=b
    """
    if name is None:
        _list(json)
        return
    from noisescope.datasets import load
    from noisescope.storage.workspace import find_workspace

    reading = {"format": format, "columns": columns, "pairs": pairs, "split": split}
    dataset = load(
        name,
        format=format,
        columns=columns,
        pairs=pairs,
        split=split,
        limit=limit,
        workspace=find_workspace(),
        fewest=1,
    )
    if json:
        print_json(_as_json(dataset, limit))
    else:
        _show(dataset, name, limit, reading)


def _list(json: bool) -> None:
    from rich.table import Table

    from noisescope.datasets import ADAPTERS
    from noisescope.storage.workspace import HUB_NAMES, find_workspace

    workspace = find_workspace()
    local = {key: entry.written for key, entry in workspace.datasets.items()} if workspace else {}
    hub = {key: value for key, value in HUB_NAMES.items() if key not in local}
    if json:
        formats = {key: list(schema.columns) for key, schema in ADAPTERS.items()}
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
    for key, schema in ADAPTERS.items():
        optional = [f"\\[{column}]" for column in schema.optional]
        formats_table.add_row(key, schema.modality, " ".join([*schema.columns, *optional]))
    OUT.print(formats_table)
    print_lines(next="noisescope datasets NAME")


def _sample(dataset: PreferenceDataset) -> list[dict[str, Any]]:
    """The first pairs as they are read: the prompt holds system text and tools."""
    shown = ["pair_id", "prompt", "chosen", "rejected", "annotator", "strength", "votes"]
    shown += ["agreement", "group", "source", "row"]
    return list(dataset.table.select(shown).slice(0, SHOWN).to_pylist())


def _as_json(dataset: PreferenceDataset, limit: int) -> dict[str, Any]:
    about: dict[str, Any] = {
        "name": dataset.name,
        "resolved": dataset.resolved,
        "format": dataset.adapter,
        "modality": dataset.modality,
        "columns": dataset.columns,
        "pairs_of": dataset.pairs,
        "limit": limit,
    }
    facts = dataset.facts.to_json() | {"notes": _notes(dataset)}
    return about | facts | {"sample": _sample(dataset)}


def _show(
    dataset: PreferenceDataset, name: str, limit: int, reading: dict[str, str | None]
) -> None:
    from rich.text import Text

    from noisescope.cli.resolve import model_flag, reading_flags
    from noisescope.datasets.checks import FEWEST_PAIRS
    from noisescope.storage.workspace import find_workspace

    OUT.print(Text(f"{dataset.name} → {printable(dataset.resolved)}"), soft_wrap=True)
    OUT.print(_facts(dataset, limit))
    for note in _notes(dataset):
        OUT.print(Text(f"note: {printable(note)}", style="yellow"), soft_wrap=True)
    for pair in _sample(dataset):
        OUT.print()
        for column in ("pair_id", "prompt", "chosen", "rejected"):
            text = short(str(pair[column]), _WIDE)
            OUT.print(Text(f"  {column:9}", style="bold") + Text(text))
        known = {
            label: pair[label]
            for label in ("annotator", "strength", "votes", "agreement", "group")
            if pair[label] is not None
        }
        if known:
            details = ", ".join(f"{label} {_number(value)}" for label, value in known.items())
            OUT.print(Text(f"  {'':9}") + Text(printable(details), style="dim"))
    OUT.print()
    if len(dataset) < FEWEST_PAIRS and dataset.facts.rows < limit:
        pairs = f"{len(dataset)} usable pairs: an audit needs at least {FEWEST_PAIRS}"
        print_lines(next=f"add pairs ({pairs})")
        return
    flags = reading_flags(reading)
    judge = model_flag(dataset.modality, name, find_workspace(), Path("runs"))
    print_lines(next=f"noisescope score {shlex.quote(name)}{flags}{judge}")


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _notes(dataset: PreferenceDataset) -> list[str]:
    """What gives labels away on the surface of the texts, and what else a reader should know."""
    from noisescope.scoring.giveaways import table_notes

    found = table_notes(dataset.table) if dataset.modality != "image" else []
    return [*dataset.facts.notes, *found]


def _facts(dataset: PreferenceDataset, limit: int) -> Table:
    """What was read and what was set aside, a line each, without counts of zero."""
    from rich.table import Table
    from rich.text import Text

    from noisescope.datasets.adapters.names import OWN_IDS

    facts = dataset.facts
    more = " (as many as --limit allows)" if facts.rows == limit else ""
    lines = [("format", f"{dataset.adapter}, {dataset.modality}")]
    roles = ", ".join(f"{role}={path}" for role, path in dataset.columns.items())
    lines += [("columns", roles)]
    if facts.unused_columns:
        own = next((name for name in facts.unused_columns if name.lower() in OWN_IDS), None)
        kept = f" (kept as the pairs' ids with --columns pair_id={own})" if own else ""
        lines += [("not used", ", ".join(facts.unused_columns) + kept)]
    lines += [("rows read", f"{facts.rows:,}{more}"), ("pairs", f"{facts.pairs:,}")]
    lines += [(f"  {reason}", f"{count:,}") for reason, count in facts.rejected.items() if count]
    titles = ["  the first", *[""] * len(facts.examples)]
    lines += [(title, str(fault)) for title, fault in zip(titles, facts.examples, strict=False)]
    if facts.labels:
        counts = ", ".join(f"{text or '(blank)'}: {n:,}" for text, n in facts.labels.items())
        first = f"the first side is better in {facts.first_chosen:,} of {facts.ordered:,}"
        lines += [("labels", f"{counts}; {first}")]
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
