"""What `noisescope score --details` prints: every statistic behind the summary screen."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from noisescope.cli.console import OUT, duration, print_lines, short
from noisescope.cli.summary import ceiling, reviews_of
from noisescope.scoring.standouts import least_alike
from noisescope.storage.printable import plural, printable
from noisescope.storage.run import Run

#: Width of the longest histogram bar, in characters.
BAR = 40


def print_details(run: Run) -> None:
    """Print the statistics of a run on stdout."""
    manifest = run.manifest()
    summary: dict[str, Any] = manifest["summary"]
    OUT.print(
        Panel(
            Group(_facts(manifest), Text(), _findings(summary), Text(), _histogram(summary)),
            title=Text(f"noisescope · {short(str(manifest['dataset']), 60)}", style="bold"),
            box=box.ROUNDED,
            padding=(1, 2),
        )
    )
    if summary.get("sources"):
        OUT.print(_sources(summary["sources"]))
    OUT.print(_noise(summary["noise_models"], summary["noise_model"]))
    OUT.print(_suspects(summary))
    if (people := reviews_of(run)) is not None:
        OUT.print(Text("• ", style="bold green") + Text(printable(people.sentence())))
    for note in summary["notes"]:
        OUT.print(Text("• ", style="bold yellow") + Text(printable(note)))
    print_lines(scores=str(run.scores_path), next=_next(run))


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    return table


def _facts(manifest: Mapping[str, Any]) -> Table:
    facts = manifest["facts"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    source = f"{manifest['resolved']} ({manifest['adapter']}, {manifest['modality']})"
    table.add_row("dataset", Text(printable(source)))
    table.add_row("model", Text(printable(str(manifest["model"]))))
    table.add_row("rows", Text(_rows(facts)))
    seconds = duration(sum(manifest["timings"].values()))
    evidence = manifest["evidence"]
    kind = f"{evidence['replicas']} {evidence['kind']}"
    kind += "" if evidence["kind"] == "adapters" else " replicas"
    held = "held-out" if evidence.get("held_out", True) else "in-sample"
    table.add_row("evidence", f"{kind}, {held} margins, {seconds}")
    if found := manifest.get("training", {}).get("by_source"):
        table.add_row("sources", Text(printable(_by_source(found))))
    return table


def _by_source(found: Mapping[str, Any]) -> str:
    """Whether the sources have heads of their own, what that gains, and which two differ most."""
    one, other, cosine = least_alike(found)
    heads = "heads of their own" if found["own_heads"] else "one head"
    gain = f"{found['gain_nats']:+.3f} nats a pair"
    return f"differ: {heads} ({gain}); least alike {one} and {other}, cosine {cosine:.2f}"


def _rows(facts: Mapping[str, Any]) -> str:
    parts = [f"{plural(facts['pairs'], 'pair')} of {plural(facts['rows'], 'row')}"]
    parts += [plural(count, reason) for reason, count in facts["rejected"].items() if count]
    parts += [
        plural(facts[f"{name}s"], name)
        for name in ("duplicate", "contradiction", "annotator")
        if facts[f"{name}s"]
    ]
    return " · ".join(parts)


def _findings(summary: Mapping[str, Any]) -> Table:
    table = _grid()
    low, high = summary["held_out_accuracy_interval"]
    accuracy = f"{summary['held_out_accuracy']:.1%}"
    table.add_row("held-out accuracy", accuracy, f"{low:.1%} to {high:.1%}; 50 % is chance")
    table.add_row("flip rate", *_flip_rate(summary["flip_rate"]))
    share = summary["mislabelled_share"]
    table.add_row(
        "mislabelled",
        f"{share['low']:.0%} – {share['high']:.0%}",
        "labels most people would not give: a bracket, close calls included",
    )
    table.add_row(
        "expected AUROC",
        _number(summary["expected_auroc"]),
        f"of finding planted uniform flips, measured on itself; {ceiling(summary)}",
    )
    table.add_row(
        "contested", f"{summary['contested_share']:.1%}", "pairs that the replicas cannot decide"
    )
    return table


def _flip_rate(rate: Mapping[str, Any]) -> tuple[str, str]:
    interval = f"{rate['low']:.1%} to {rate['high']:.1%} (90 %); labels wrong however easy the pair"
    if not rate["identifiable"]:
        return "not identifiable", f"at this size: anywhere from {interval}"
    return f"{rate['estimate']:.1%}", interval


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _histogram(summary: Mapping[str, Any]) -> Table:
    """Pairs per tenth of p_wrong, bars on a square-root scale so that small tails show."""
    counts = summary["histogram"]["counts"]
    edges = summary["histogram"]["edges"]
    most = max(max(counts), 1)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for index, count in enumerate(counts):
        width = round(BAR * (count / most) ** 0.5)
        style = "red" if edges[index] >= 0.5 else "cyan"
        label = f"{edges[index]:.1f}–{edges[index + 1]:.1f}"
        name = f"p_wrong {label}" if index == 0 else label
        table.add_row(name, Text("█" * width, style=style), f"{count:,}")
    table.add_row("", Text("pairs; bars on a square-root scale", style="dim"), "")
    return table


def _noise(models: Sequence[Mapping[str, Any]], chosen: str) -> Table:
    """The noise models, their flip rates, and their gain over one rate."""
    table = Table(
        title="Noise models", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    table.add_column("model", overflow="fold")
    table.add_column("flip rate", justify="right", no_wrap=True)
    table.add_column("gain, nats", justify="right", no_wrap=True)
    table.add_column("", style="dim", overflow="fold")
    for one in models:
        rate = one["flip_rate"]
        table.add_row(
            one["name"] + (" (chosen)" if one["name"] == chosen else ""),
            f"{rate['low']:.1%} to {rate['high']:.1%}",
            f"{one['gain_nats']:+.1f}",
            one["detail"],
        )
    return table


def _sources(sources: Sequence[Mapping[str, Any]]) -> Table:
    """What each source of evidence is worth, alone and added last."""
    table = Table(
        title="What each source added (held out)",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("source", overflow="fold")
    for name in ("alone", "nats", "added last", "nats", "disagrees"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in sources:
        differs = one["disagreement"]
        table.add_row(
            Text(printable(_shortened(one["source"]))),
            f"{one['accuracy_alone']:.1%}",
            f"{one['nats_alone']:.3f}",
            f"{100 * one['accuracy_added']:+.1f} points",
            f"{one['nats_added']:+.4f}",
            "–" if differs is None else f"{differs:.1%}",
        )
    return table


def _shortened(source: str) -> str:
    """A source without the directories of its path."""
    kind, _, name = source.partition(":")
    return f"{kind}:{Path(name).name}" if name else kind


def _suspects(summary: Mapping[str, Any]) -> Table:
    """The worst pairs, three lines each, whatever the width of the terminal."""
    table = Table(
        title="Most suspicious pairs",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        expand=True,
    )
    table.add_column("p_wrong", justify="right", no_wrap=True, min_width=7)
    table.add_column("u", justify="right", no_wrap=True, min_width=7)
    table.add_column("", no_wrap=True, style="dim", min_width=8)
    table.add_column("labelled pair", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in summary["suspects"]:
        lines = (("prompt", "dim"), ("chosen", ""), ("rejected", ""))
        text = Text("\n").join(Text(short(row[name], 240), style=style) for name, style in lines)
        table.add_row(
            f"{row['p_wrong']:.3f}",
            "–" if row["u"] is None else f"{row['u']:.3g}",
            "prompt\nchosen\nrejected",
            text,
        )
    return table


def _next(run: Run) -> str:
    """What to type next."""
    sql = "SELECT pair_id, p_wrong FROM scores WHERE p_wrong > 0.5 ORDER BY rank"
    directory = run.directory
    found = "" if directory.parent == Path("runs") else f" {shlex.quote(str(directory))}"
    image = run.manifest().get("modality") == "image"  # a table of keys shows no picture
    command = "noisescope show --rank 1" if image else f'noisescope query "{sql}"'
    return command + found
