"""noisescope merge SHARDS...: the finished run of an audit that was computed in shards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from noisescope.cli.console import Terminal, duration
from noisescope.cli.options import ConstantOptions, JsonOption, RunsDirOption, spread


@spread
def merge(
    constants: ConstantOptions,
    shards: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run directories written by `score --shard`, or directories of runs, one per "
            "disk; local paths or URLs such as s3://bucket/runs.",
            show_default="RUNS_DIR",
        ),
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    run_dir: Annotated[
        Path | None, typer.Option(help="Directory of the merged run.", show_default="RUNS_DIR/NAME")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check that all shards of an audit are present, and finish it: margins and scores.

    Needs neither the dataset nor the model. A missing or damaged shard is named with the command
    that computes it.

    Example: noisescope merge from-a/runs from-b/runs
    """
    from noisescope.auditing.merge import merge as run_merge
    from noisescope.cli.score import finish
    from noisescope.scoring.score import ScoreConfig

    terminal = Terminal(quiet=json)
    began = time.monotonic()
    done = run_merge(
        shards or [str(runs_dir)],
        score=ScoreConfig(**vars(constants)),
        runs_directory=runs_dir,
        run_directory=run_dir,
        reporter=terminal,
    )
    terminal.note(f"done in {duration(time.monotonic() - began)}")
    finish(done.run, terminal, json=json)
