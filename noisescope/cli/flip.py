"""noisescope flip DATASET: a copy with known label errors."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from noisescope.cli import completion
from noisescope.cli.console import Terminal, print_json, print_lines
from noisescope.cli.options import (
    ColumnsOption,
    DatasetArgument,
    FormatOption,
    JsonOption,
    PairsOption,
    RunsDirOption,
    SplitOption,
)
from noisescope.datasets.flip.kinds import KINDS


def flip(
    dataset: DatasetArgument = None,
    rate: Annotated[float, typer.Option(help="Expected share of labels to flip.")] = 0.2,
    kind: Annotated[
        str,
        typer.Option(
            help=f"Which labels to flip: {', '.join(KINDS)}.",
            autocompletion=completion.among(*KINDS),
        ),
    ] = "uniform",
    seed: Annotated[
        int, typer.Option(help="Random seed; a pair is flipped by a hash of (seed, pair_id).")
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Directory of the copy.",
            show_default="flipped/NAME-KIND-RATE-sSEED",
        ),
    ] = None,
    format: FormatOption = None,
    columns: ColumnsOption = None,
    pairs: PairsOption = None,
    split: SplitOption = None,
    run: Annotated[
        str | None,
        typer.Option(help="Run with the margins of the pairs, for --kind hard, easy and response."),
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Write a copy of a dataset with a known set of labels flipped, in the same format.

    Kind uniform decides about each pair separately. The others depend on the whole dataset: they
    read it twice, and flip a subset differently.

    Example: noisescope flip hh-rlhf --rate 0.2 --seed 7
    """
    from noisescope.api import flip as write_copy
    from noisescope.cli.resolve import model_flag
    from noisescope.storage.workspace import default_dataset, find_workspace

    terminal = Terminal(quiet=json)
    workspace = find_workspace()
    named = default_dataset(dataset, workspace)
    done = write_copy(
        named,
        rate=rate,
        kind=kind,
        seed=seed,
        output=output,
        format=format,
        columns=columns,
        pairs_of=pairs,
        split=split,
        run=run,
        runs_directory=runs_dir,
        reporter=terminal,
    )
    for reason, count in done.untouched.items():
        terminal.note(f"{count:,} rows copied unchanged: {reason}")
    if done.undone:
        terminal.note("the source is already a copy made with this plan, so its flips were undone")
    if json:
        print_json(done.to_json())
        return
    share = done.flipped / max(done.pairs, 1)
    print(f"{done.flipped:,} of {done.pairs:,} labels flipped ({share:.1%})")
    judge = model_flag(done.modality, named, workspace, runs_dir)
    reading = {"format": format, "columns": columns, "pairs": pairs}
    flags = "".join(f" --{flag} {shlex.quote(text)}" for flag, text in reading.items() if text)
    print_lines(
        copy=str(done.directory),
        truth=str(done.truth),
        next=f"noisescope score {shlex.quote(str(done.directory))}{flags}{judge}",
    )
