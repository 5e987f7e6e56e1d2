"""noisescope train: fine-tune a policy on pairs weighted by their audit."""

from __future__ import annotations

import os
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisescope.cli.console import Terminal, duration, print_json
from noisescope.cli.spread import spread
from noisescope.cli.training_next import next_command
from noisescope.cli.training_options import (
    AdapterOptions,
    LoopOptions,
    ReadingOptions,
    WeightOptions,
)
from noisescope.cli.training_result import print_result
from noisescope.cli.training_weights import chosen_weights, refuse_idle
from noisescope.presets import describe

if TYPE_CHECKING:
    from noisescope.policies import Policy


@spread
def train(
    weight: WeightOptions,
    loop: LoopOptions,
    adapter: AdapterOptions,
    reading: ReadingOptions,
    dataset: Annotated[
        str | None, typer.Argument(help="Workspace name, path, glob, or Hub name of a dataset.")
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="dpo, ipo, hinge, adaptive-dpo, adaptive-ipo, distilled-dpo, cdpo, rdpo, ropo, "
            "dr-dpo, holder-dpo, re-po, mapo, ln-dpo or rpo."
        ),
    ] = "adaptive-dpo",
    model: Annotated[
        str | None, typer.Option(help="Causal LM or pipeline: directory or Hub name.")
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
    from noisescope.learners.launching import sharding
    from noisescope.learners.precision import precision
    from noisescope.learners.settings import find_objective, settled
    from noisescope.policies.device import pick_device, pick_dtype
    from noisescope.policies.load import load_policy
    from noisescope.ranks import own_device
    from noisescope.weighting import WeightRule
    from noisescope.workspace import find_workspace, resolve

    find_objective(objective)
    rank = int(os.environ.get("RANK", "0"))
    terminal = Terminal(quiet=json or rank > 0)
    workspace = find_workspace()
    target = chosen_dataset(dataset, workspace)
    terminal.note(resolve(target, workspace).said)
    pairs = load(
        target,
        format=reading.format,
        limit=reading.limit,
        split=reading.split,
        workspace=workspace,
    )
    terminal.note(f"{len(pairs):,} {pairs.modality} pairs read as {pairs.adapter}")
    asked = _asked(weight, loop, adapter) | {"objective": objective, "named": preset}
    settings = settled(pairs.modality, **asked)
    check_settings(settings, report_to, pairs.modality)
    refuse_idle(weight.weights, settings, weight.weighting, weight.restating())
    scheme = weight.weighting or settings.weighting
    rule = WeightRule(scheme, settings.k1, settings.k2, settings.c2, weight.rho)
    number, mixed = precision(
        adapter.dtype,
        full=settings.full,
        device=adapter.device,
        launched=os.environ.get("ACCELERATE_MIXED_PRECISION"),
    )
    place = own_device(adapter.device)
    cut = sharding() and place.startswith("cuda")  # loaded apart, moved there piece by piece
    if cut:
        number = str(pick_dtype(number, pick_device(place))).removeprefix("torch.")
    pictures = {} if reading.image_size is None else {"image_size": reading.image_size}
    policy = load_policy(
        chosen_model(model, pairs.modality, workspace),
        pairs,
        max_length=reading.max_length,
        device="cpu" if cut else place,
        dtype=number,
        **pictures,
    )
    terminal.note(f"training {policy.identity.id}")
    if pairs.modality == "image":
        settings = settled(pairs.modality, is_xl=_is_xl(policy), **asked)
    command = f"noisescope {shlex.join(sys.argv[1:])}"
    began = time.monotonic()
    chosen = chosen_weights(
        weight.weights, rule, settings, pairs, policy, weight.runs_dir, terminal, command
    )
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
        device=place if cut else None,
    )
    terminal.note(f"done in {duration(time.monotonic() - began)}")
    if rank > 0:
        return
    follow = next_command(done.directory, target, pairs.modality, workspace)
    if json:
        print_json(done.manifest() | {"directory": str(done.directory), "next": follow})
    else:
        print_result(done, follow)


def _asked(weight: WeightOptions, loop: LoopOptions, adapter: AdapterOptions) -> dict[str, Any]:
    """Settings by the names of `learners.settings.settled`; None: not given."""
    return asdict(loop) | {
        "full": adapter.full,
        "lora_r": adapter.lora_r,
        "lora_alpha": adapter.lora_alpha,
        "targets": adapter.target_names,
        "layers": adapter.layers,
        "checkpointing": adapter.gradient_checkpointing,
        "online": weight.online,
        "online_replicas": weight.online_replicas,
        "rho": weight.rho,
        "k1": weight.k1,
        "k2": weight.k2,
        "c2": weight.c2,
        "parameters": _parameters(weight.parameter or [], weight.flip_rate),
    }


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
