"""noisescope score DATASET: the main job, from a dataset to a ranked, queryable audit."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from noisescope.cli.console import OUT, Terminal, duration, print_json
from noisescope.cli.evidence_options import EvidenceOptions
from noisescope.cli.launch import read_inputs, typed_before
from noisescope.cli.options import (
    MACHINE,
    ConstantOptions,
    DatasetArgument,
    JsonOption,
    SourceOptions,
    spread,
)
from noisescope.storage.printable import printable
from noisescope.storage.sql import Spill

if TYPE_CHECKING:
    from noisescope.auditing.shards import ShardDone
    from noisescope.storage.run import Run


@spread
def score(
    source: SourceOptions,
    evidence: EvidenceOptions,
    constants: ConstantOptions,
    dataset: DatasetArgument = None,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Compute only shard i of n. Combine them with `noisescope merge`.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    memory: Annotated[
        str,
        typer.Option(
            help="Memory for sorting scores; beyond it, DuckDB sorts on disk.",
            rich_help_panel=MACHINE,
        ),
    ] = Spill.memory,
    spill_dir: Annotated[
        Path | None,
        typer.Option(
            help="Directory for temporary files.",
            show_default="the run directory",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    details: Annotated[
        bool,
        typer.Option("--details", help="Print accuracy, rates, AUROC, u and ten suspects."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Score every pair: how likely is its label wrong, and how far can that be trusted?

    Under torchrun or accelerate launch, several processes, GPUs or hosts share the work.

    Example: noisescope score hh-rlhf --model models/SmolLM2-135M-Instruct
    """
    from noisescope.auditing.ranks import joined
    from noisescope.replicas.partition import Share

    share = None if shard is None else Share.parse(shard)
    terminal = Terminal(quiet=json)
    began = time.monotonic()
    before = None if shard else typed_before(source, evidence, constants, dataset)
    if before and (run := before.reuse()):
        terminal.note(f"{run.directory} has the result: nothing has changed since")
        finish(run, terminal, json=json, details=details)
        return
    from noisescope.auditing.audit import audit
    from noisescope.auditing.shards import compute_shard
    from noisescope.scoring.score import ScoreConfig

    scoring = ScoreConfig(**vars(constants), spill=Spill(memory, spill_dir))
    command = shlex.join(["noisescope", *without_shard(sys.argv[1:])])
    with joined() as world:
        pairs, policy, config = read_inputs(source, evidence, dataset, terminal, world, share)
        if share is not None:
            part = compute_shard(
                pairs,
                policy,
                config,
                share,
                runs_directory=source.runs_dir,
                run_directory=source.run_dir,
                command=command,
                reporter=terminal,
            )
            print_shard(part, json=json)
            if given := constants_given(constants):
                terminal.note(f"merge makes the verdicts: give it {given} then")
            return
        done = audit(
            pairs,
            policy,
            evidence=config,
            score=scoring,
            runs_directory=source.runs_dir,
            run_directory=source.run_dir,
            command=command,
            reporter=terminal,
            world=world,
        )
        if before:
            before.keep(done.run, pairs.modality)
        seconds = time.monotonic() - began
        terminal.note(f"done in {duration(seconds)}")
        finish(done.run, terminal, json=json, details=details, seconds=seconds)


def finish(
    run: Run,
    terminal: Terminal,
    *,
    json: bool,
    details: bool = False,
    seconds: float | None = None,
) -> None:
    """Print the summary, or all `details`, of an audit that took `seconds`.

    Exits with 2 if the replicas are at chance level.
    """
    from noisescope.cli.details import print_details
    from noisescope.cli.summary import print_summary, reviews_of

    summary = run.manifest()["summary"]
    if json:
        people = reviews_of(run)
        print_json(summary | {"reviews": people and people.to_json()})
    else:
        if details:
            print_details(run)
        else:
            print_summary(run, seconds)
    if summary["chance"]:
        terminal.note("replicas are no better than chance: these scores carry no verdict")
        raise typer.Exit(2)


def without_shard(arguments: Sequence[str]) -> list[str]:
    """The command line of the whole audit: without --shard, --json and --details."""
    words: list[str] = []
    skip = False
    for word in arguments:
        if not skip and word not in ("--json", "--details") and not word.startswith("--shard="):
            skip = word == "--shard"
            words += [] if skip else [word]
        else:
            skip = False
    return words


def constants_given(constants: ConstantOptions) -> str:
    """The constants that were given, as options: a share computes no scores, so it ignores them."""
    words: list[str] = []
    for field in dataclasses.fields(constants):
        value = getattr(constants, field.name)
        if value != field.default:
            words += [f"--{field.name}"] if value is True else [f"--{field.name}", str(value)]
    return shlex.join(words)


def print_shard(done: ShardDone, *, json: bool) -> None:
    """Print what a share computed, what else is missing here, and the next command."""
    from rich.table import Table
    from rich.text import Text

    from noisescope.replicas.partition import Share

    share, unit = done.record.share, done.unit
    left = {str(Share(index, share.of)): count for index, count in done.left.items()}
    if json:
        print_json(
            {
                "run": str(done.run.directory),
                "shard": str(share),
                unit: done.size,
                "computed": done.computed,
                "left": left,
                "next": done.next,
            }
        )
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    computed = f"{done.size:,} {unit}, {done.computed:,} computed now"
    elsewhere = f"{', '.join(left)} ({sum(left.values()):,} {unit})"
    rows = {
        "shard": f"{share}: {computed if done.size else 'empty, there is less work than shards'}",
        "run": str(done.run.directory),
        "not here": elsewhere if left else "nothing",
    }
    for name, text in rows.items():
        grid.add_row(name, Text(printable(text)))
    OUT.print(grid)
    line = Text("next      ", style="bold") + Text(printable(done.next))
    OUT.print(line, soft_wrap=True)  # one line, so that it can be copied
