"""noisescope flip DATASET: a copy with known label errors."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from noisescope.cli.console import Terminal, print_json, print_lines
from noisescope.cli.options import ColumnsOption, PairsOption


def flip(
    dataset: Annotated[
        str | None, typer.Argument(help="Workspace name, path or glob of a dataset.")
    ] = None,
    rate: Annotated[float, typer.Option(help="Expected share of labels turned round.")] = 0.2,
    kind: Annotated[
        str,
        typer.Option(help="uniform, hard (close pairs), long (to the longer side) or annotator."),
    ] = "uniform",
    seed: Annotated[int, typer.Option(help="Which pairs: a function of (seed, pair_id).")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the copy; flipped/NAME-KIND-RATE-sSEED.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Dataset format; recognised from the columns if left out.")
    ] = None,
    columns: ColumnsOption = None,
    pairs: PairsOption = None,
    split: Annotated[str | None, typer.Option(help="Split of a dataset that has several.")] = None,
    run: Annotated[
        str | None, typer.Option(help="Run whose margins say which pairs are close (--kind hard).")
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Write a copy of a dataset, in its own format, with known labels turned round.

    Kinds uniform and annotator decide each pair by itself. Kinds hard and long compare it with all
    others: they read the dataset twice, and a part of it is flipped otherwise than the whole.

    Example: noisescope flip hh-rlhf --rate 0.2 --seed 7
    """
    from noisescope.cli.resolve import chosen_dataset, model_flag
    from noisescope.datasets import open_source
    from noisescope.datasets.flip.copy import plant
    from noisescope.datasets.flip.plan import FlipPlan, margin_gaps
    from noisescope.storage.files import slug
    from noisescope.storage.run import find_run
    from noisescope.storage.workspace import find_workspace

    plan = FlipPlan(rate, kind, seed)
    terminal = Terminal(quiet=json)
    workspace = find_workspace()
    named = chosen_dataset(dataset, workspace)
    source = open_source(named, split=split, workspace=workspace)
    terminal.note(source.said)
    directory = out or Path("flipped") / f"{slug(source.name)}-{kind}-{rate:g}-s{seed}"
    gaps = margin_gaps(find_run(run, runs_dir)) if run is not None else None
    done = plant(source, plan, directory, format=format, columns=columns, pairs=pairs, gaps=gaps)
    for reason, count in done.untouched.items():
        terminal.note(f"{count:,} rows passed through untouched: {reason}")
    if done.undone:
        terminal.note("the source is itself this plan's copy: its flips were taken back")
    if json:
        print_json(done.to_json())
        return
    share = done.flipped / max(done.pairs, 1)
    print(f"{done.flipped:,} of {done.pairs:,} labels turned round ({share:.1%})")
    judge = model_flag(done.modality, named, workspace, runs_dir)
    print_lines(
        copy=str(done.directory),
        truth=str(done.truth),
        next=f"noisescope score {shlex.quote(str(done.directory))}{judge}",
    )
