"""noisescope train: fine-tune a policy on pairs weighted by their audit."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisescope.cli.console import Terminal, duration, print_json
from noisescope.cli.training_result import print_result
from noisescope.cli.training_weights import chosen_weights, refuse_idle
from noisescope.presets import describe

if TYPE_CHECKING:
    from noisescope.policies import Policy

LOOP, ADAPTER, NOISE, IMAGES = "Optimisation", "What trains", "Weights", "Reading and judging"


def train(
    dataset: Annotated[
        str | None, typer.Argument(help="Workspace name, path, glob, or Hub name of a dataset.")
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="dpo, ipo, hinge, adaptive-dpo, adaptive-ipo, cdpo, rdpo, ropo, dr-dpo, "
            "holder-dpo, re-po, mapo, ln-dpo or rpo."
        ),
    ] = "adaptive-dpo",
    model: Annotated[
        str | None, typer.Option(help="Causal LM or pipeline: directory or Hub name.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="RUN, FILE (pair_id, W, gamma) or none. Left out: the dataset's own audit for "
            "adaptive objectives, made first if missing; none for the others.",
            rich_help_panel=NOISE,
        ),
    ] = None,
    weighting: Annotated[
        str | None,
        typer.Option(
            help="How a run's scores become weights: u (the paper's W and Gamma; if left out) or "
            "p_flip (W = max(0, 1 - 2 p_flip)).",
            rich_help_panel=NOISE,
        ),
    ] = None,
    online: Annotated[
        str | None,
        typer.Option(
            help="Weights made while training: replicas (M co-trained adapters, as the paper "
            "writes it) or ema (live and two averaged copies, as its code does).",
            rich_help_panel=NOISE,
        ),
    ] = None,
    online_replicas: Annotated[
        int | None,
        typer.Option(help="M of --online replicas; 4 if left out.", rich_help_panel=NOISE),
    ] = None,
    rho: Annotated[
        float | None, typer.Option(help="Eq. 11; 1 (text), 15 (images).", rich_help_panel=NOISE)
    ] = None,
    k1: Annotated[
        float | None,
        typer.Option(
            help="Eq. 14: W = 1/(1 + k1 u). As scored if none of k1, k2, c2 is given, else 10.",
            rich_help_panel=NOISE,
        ),
    ] = None,
    k2: Annotated[
        float | None,
        typer.Option(help="Eq. 15: Gamma = k2 u² + c2. As scored, or -1.", rich_help_panel=NOISE),
    ] = None,
    c2: Annotated[
        float | None, typer.Option(help="Eq. 15. As scored, or 0.", rich_help_panel=NOISE)
    ] = None,
    flip_rate: Annotated[
        float | None,
        typer.Option(help="e of cdpo and rdpo; 0.1 if left out.", rich_help_panel=NOISE),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            help="Another number of the objective, NAME=VALUE: ropo a, rpo a, dr-dpo "
            "temperature, holder-dpo g, re-po reliability.",
            rich_help_panel=NOISE,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Published settings, which flags override ({describe()}). docs/train.md cites "
            "each value."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Result directory; trained/DATASET-OBJECTIVE-FINGERPRINT if left out."),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            help="0.1 for text, 1000 (SD1.5) or 2500 (SDXL) for images if left out.",
            rich_help_panel=LOOP,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option("--learning-rate", "--lr", help="2e-4; --full 5e-6.", rich_help_panel=LOOP),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="1 if left out.", rich_help_panel=LOOP)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps, instead of epochs.", rich_help_panel=LOOP)
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Pairs an optimiser step, over all processes; 32.", rich_help_panel=LOOP),
    ] = None,
    accumulation: Annotated[
        int | None,
        typer.Option(
            help="Micro-batches of a step; as memory asks if left out.", rich_help_panel=LOOP
        ),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps (below 1) or number of steps; 0.1.", rich_help_panel=LOOP
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="linear, cosine or constant after warm-up.", rich_help_panel=LOOP),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="AdamW's; 0.", rich_help_panel=LOOP)
    ] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(help="Gradient clipping; 1.", rich_help_panel=LOOP)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of adapters, data order, noise; 0.", rich_help_panel=LOOP),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(help="Share of pairs held out to validate; 0.05.", rich_help_panel=LOOP),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(help="Steps between checkpoints (and validations); 50.", rich_help_panel=LOOP),
    ] = None,
    full: Annotated[
        bool | None,
        typer.Option("--full/--lora", help="Every weight, not LoRA.", rich_help_panel=ADAPTER),
    ] = None,
    lora_r: Annotated[
        int | None,
        typer.Option(help="LoRA rank; 16 (text), 8 (images).", rich_help_panel=ADAPTER),
    ] = None,
    lora_alpha: Annotated[
        float | None,
        typer.Option(help="LoRA alpha; twice the rank (text), the rank.", rich_help_panel=ADAPTER),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="Linear layers of a text model's blocks, comma-separated; all if left out.",
            rich_help_panel=ADAPTER,
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            help="Adapt the last K blocks (text) or up blocks (images) only: what lies below "
            "runs once for the policy and its reference.",
            rich_help_panel=ADAPTER,
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Less memory for about a third more time.",
            rich_help_panel=ADAPTER,
        ),
    ] = False,
    dtype: Annotated[
        str,
        typer.Option(
            help="auto, float32 or bfloat16; adapters stay float32.", rich_help_panel=ADAPTER
        ),
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=ADAPTER)
    ] = "auto",
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Tokens kept; 1024 or the model's limit if left out.", rich_help_panel=IMAGES
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Side of images in pixels; the pipeline's own if left out.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="Dataset format; recognised from the columns if left out.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of a dataset that has several.", rich_help_panel=IMAGES),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Read only the first rows.", min=1, rich_help_panel=IMAGES),
    ] = None,
    runs_dir: Annotated[
        Path, typer.Option(help="Where audits are kept.", rich_help_panel=NOISE)
    ] = Path("runs"),
    report_to: Annotated[
        str | None, typer.Option(help="tensorboard, wandb or mlflow: every step is logged there.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Fine-tune a model on preference pairs, each weighted by how far its label can be trusted.

    Example: noisescope train hh-rlhf --objective adaptive-dpo --model models/SmolLM2-135M

    Several processes or GPUs: torchrun --nproc-per-node 2 -m noisescope train ...
    """
    from noisescope.cli.resolve import chosen_dataset, chosen_model
    from noisescope.datasets import load
    from noisescope.learners.fine_tuning import check_settings, fine_tune
    from noisescope.learners.settings import find_objective, settled
    from noisescope.policies.load import load_policy
    from noisescope.weighting import WeightRule
    from noisescope.workspace import find_workspace, resolve

    find_objective(objective)
    rank = int(os.environ.get("RANK", "0"))
    terminal = Terminal(quiet=json or rank > 0)
    workspace = find_workspace()
    target = chosen_dataset(dataset, workspace)
    terminal.note(resolve(target, workspace).said)
    pairs = load(target, format=format, limit=limit, split=split, workspace=workspace)
    terminal.note(f"{len(pairs):,} {pairs.modality} pairs read as {pairs.adapter}")
    asked: dict[str, Any] = {
        "objective": objective,
        "beta": beta,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "steps": steps,
        "batch": batch,
        "accumulation": accumulation,
        "warmup": warmup,
        "schedule": schedule,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "lora_r": lora_r,
        "lora_alpha": lora_alpha,
        "targets": None if targets is None else tuple(targets.replace(" ", "").split(",")),
        "layers": layers,
        "full": full,
        "checkpointing": gradient_checkpointing,
        "validation": validation,
        "save_every": save_every,
        "seed": seed,
        "online": online,
        "online_replicas": online_replicas,
        "rho": rho,
        "k1": k1,
        "k2": k2,
        "c2": c2,
        "parameters": _parameters(parameter or [], flip_rate),
        "named": preset,
    }
    settings = settled(pairs.modality, **asked)
    check_settings(settings, report_to)
    weighed = {"--weighting": weighting, "--rho": rho, "--k1": k1, "--k2": k2, "--c2": c2}
    given = [flag for flag, value in weighed.items() if value is not None]
    refuse_idle(weights, settings, weighting, given)
    rule = WeightRule(weighting or "u", settings.k1, settings.k2, settings.c2, rho)
    number, mixed = _precision(dtype, settings.full)
    pictures = {"image_size": image_size} if image_size is not None else {}
    policy = load_policy(
        chosen_model(model, pairs.modality, workspace),
        pairs,
        max_length=max_length,
        device=_own_device(device),
        dtype=number,
        **pictures,
    )
    terminal.note(f"training {policy.identity.id}")
    if pairs.modality == "image":
        settings = settled(pairs.modality, is_xl=_is_xl(policy), **asked)
    command = f"noisescope {shlex.join(sys.argv[1:])}"
    began = time.monotonic()
    chosen = chosen_weights(weights, rule, settings, pairs, policy, runs_dir, terminal, command)
    done = fine_tune(
        pairs,
        policy,
        settings,
        weights=chosen,
        output=output,
        reporter=terminal,
        report_to=report_to,
        mixed_precision=mixed,
        command=command,
    )
    terminal.note(f"done in {duration(time.monotonic() - began)}")
    if rank > 0:
        return
    if json:
        print_json(done.manifest() | {"directory": str(done.directory)})
    else:
        print_result(done)


def _is_xl(policy: Policy) -> bool:
    from noisescope.policies.diffusion import DiffusionPolicy

    return isinstance(policy, DiffusionPolicy) and policy.pipeline.is_xl


def _parameters(given: list[str], flip_rate: float | None) -> dict[str, float]:
    """The objective's own numbers by name. Raises UsageError for what is no NAME=VALUE."""
    from noisescope.errors import UsageError

    found = {} if flip_rate is None else {"flip_rate": flip_rate}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name.strip().replace("-", "_")] = float(value)
        except ValueError:
            raise UsageError(
                f"--parameter {text}: NAME=VALUE with a number is needed",
                hint="For example --parameter a=14.",
            ) from None
    return found


def _precision(dtype: str, full: bool) -> tuple[str, str]:
    """(type the weights are loaded in, accelerate's mixed precision). Raises UsageError."""
    from noisescope.errors import UsageError

    if dtype == "float16":
        raise UsageError(
            "--dtype float16: gradients would vanish without loss scaling",
            hint="Use bfloat16, or float32.",
        )
    if not full:
        return dtype, "no"
    return "float32", "bf16" if dtype == "bfloat16" else "no"


def _own_device(device: str) -> str:
    """This process's own GPU where several processes share a machine."""
    if device != "auto" or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    import torch
    from accelerate import PartialState

    return str(PartialState(cpu=not torch.cuda.is_available()).device)
