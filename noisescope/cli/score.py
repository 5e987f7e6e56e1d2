"""noisescope score DATASET: the main job."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from noisescope.cli.console import Terminal, duration, print_json, safe


def score(
    dataset: Annotated[
        str | None, typer.Argument(help="Workspace name, path, glob, or Hub name of a dataset.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Causal LM or pipeline: directory, GGUF file or Hub name.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Dataset format; recognised from the columns if left out.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a dataset that has several.")] = None,
    limit: Annotated[int | None, typer.Option(help="Read only the first rows.", min=1)] = None,
    kind: Annotated[str, typer.Option(help="Kind of replica: head or lora.")] = "head",
    replicas: Annotated[int, typer.Option(help="M, how many replicas.")] = 8,
    folds: Annotated[int, typer.Option(help="Folds of each head replica.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of folds and replicas.")] = 0,
    beta: Annotated[
        float | None, typer.Option(help="DPO beta; 0.1 for text, 2500 for images if left out.")
    ] = None,
    pool: Annotated[
        bool, typer.Option(help="Pool by identity: a free ability per recurring response.")
    ] = True,
    rho: Annotated[
        float | None, typer.Option(help="Eq. 11 rho; 1 for text, 15 for images if left out.")
    ] = None,
    k1: Annotated[float, typer.Option(help="Eq. 14: W = 1 / (1 + k1 u).")] = 10.0,
    k2: Annotated[float, typer.Option(help="Eq. 15: Gamma = k2 u^2 + c2.")] = -1.0,
    c2: Annotated[float, typer.Option(help="Eq. 15: c2.")] = 0.0,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens kept; 1024 or the model's limit if left out.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of images in pixels; the pipeline's own if left out.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(help="K, (t, eps) draws an image is judged by; 4 if left out.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    runs_dir: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    run_dir: Annotated[
        Path | None, typer.Option(help="This run's own directory, instead of one by name.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Score every pair: is its label wrong, and how far can that be trusted?

    Example: noisescope score hh-rlhf --model models/SmolLM2-135M-Instruct
    """
    from noisescope.audit import audit
    from noisescope.cli.resolve import chosen_dataset, chosen_model
    from noisescope.cli.summary import print_summary
    from noisescope.datasets import load
    from noisescope.gathering import EvidenceConfig
    from noisescope.policies.load import load_policy
    from noisescope.verdicts import ScoreConfig
    from noisescope.workspace import find_workspace, resolve

    evidence = EvidenceConfig(kind, replicas, folds, seed, beta, pool)
    terminal = Terminal(quiet=json)
    workspace = find_workspace()
    target = chosen_dataset(dataset, workspace)
    terminal.note(resolve(target, workspace).said)
    pairs = load(target, format=format, limit=limit, split=split, workspace=workspace)
    terminal.note(f"{len(pairs):,} {pairs.modality} pairs read as {pairs.adapter}")
    pictures = {"image_size": image_size, "draws": draws}
    policy = load_policy(
        chosen_model(model, pairs.modality, workspace),
        pairs,
        max_length=max_length,
        device=device,
        dtype=dtype,
        **{name: value for name, value in pictures.items() if value is not None},
    )
    terminal.note(f"judged by {policy.identity.id}")
    began = time.monotonic()
    done = audit(
        pairs,
        policy,
        evidence=evidence,
        score=ScoreConfig(rho=rho, k1=k1, k2=k2, c2=c2),
        runs_directory=runs_dir,
        run_directory=run_dir,
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
