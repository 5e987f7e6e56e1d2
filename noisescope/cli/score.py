"""noisescope score DATASET: the main job, from a dataset to a ranked, queryable audit."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from noisescope.cli.console import Terminal, duration, print_json, safe
from noisescope.cli.options import EvidenceOptions, SourceOptions, spread


@spread
def score(
    source: SourceOptions,
    evidence: EvidenceOptions,
    dataset: Annotated[
        str | None, typer.Argument(help="Workspace name, path, glob, or Hub name of a dataset.")
    ] = None,
    rho: Annotated[
        float | None, typer.Option(help="Eq. 11 rho; 1 for text, 15 for images if left out.")
    ] = None,
    k1: Annotated[float, typer.Option(help="Eq. 14: W = 1 / (1 + k1 u).")] = 10.0,
    k2: Annotated[float, typer.Option(help="Eq. 15: Gamma = k2 u^2 + c2.")] = -1.0,
    c2: Annotated[float, typer.Option(help="Eq. 15: c2.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Score every pair: is its label wrong, and how far can that be trusted?

    Example: noisescope score hh-rlhf --model models/SmolLM2-135M-Instruct
    """
    from noisescope.auditing import audit
    from noisescope.cli.summary import print_summary
    from noisescope.verdicts import ScoreConfig

    constants = ScoreConfig(rho=rho, k1=k1, k2=k2, c2=c2)
    config = evidence.config()
    terminal = Terminal(quiet=json)
    pairs, policy = source.read(dataset, terminal, lambda pairs: config.check(pairs.modality))
    began = time.monotonic()
    done = audit(
        pairs,
        policy,
        evidence=config,
        score=constants,
        runs_directory=source.runs_dir,
        run_directory=source.run_dir,
        command=f"noisescope {' '.join(sys.argv[1:])}",
        reporter=terminal,
    )
    terminal.note(f"done in {duration(time.monotonic() - began)}")
    if json:
        print_json(done.run.manifest()["summary"])
    else:
        print_summary(done)
    if done.summary.chance:
        terminal.note(safe("replicas are no better than chance: these scores carry no verdict"))
        raise typer.Exit(2)
