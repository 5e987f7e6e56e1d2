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

from noisescope.cli import completion
from noisescope.cli.console import OUT, Terminal, duration, print_json, print_lines, short
from noisescope.cli.options import (
    DatasetArgument,
    JsonOption,
    ModelOption,
    ReadingOptions,
    spread,
)
from noisescope.cli.train_options import AdapterOptions, LoopOptions, WeightOptions
from noisescope.storage.printable import printable
from noisescope.training.policy.presets import describe

if TYPE_CHECKING:
    from noisescope.pairs import Modality
    from noisescope.storage.workspace import Workspace
    from noisescope.training.policy.output import Trained


def next_command(
    directory: Path, dataset: str, modality: Modality, workspace: Workspace | None
) -> str:
    """`noisescope evaluate` of a result: by the judge that the workspace gives the dataset, else
    by the labels themselves (text) or PickScore (pictures)."""
    words = ["noisescope", "evaluate", "--policy", str(directory)]
    entries = workspace.datasets if workspace else {}
    if dataset in entries and entries[dataset].judge:
        return shlex.join([*words, "--prompts", dataset])
    if modality == "image":
        return shlex.join([*words, "--prompts", dataset, "--judge", "pickscore"])
    return shlex.join([*words, "--prompts", dataset, "--labelled", dataset])


def print_result(done: Trained, follow: str) -> None:
    """What was trained, on what, how its first and last steps compare, and what to type next."""
    from rich import box
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    manifest = done.manifest()
    plan, result = manifest["plan"], manifest["result"]
    settings = plan["settings"]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    counts = f"{result['trained_pairs']:,} trained on, {result['validation_pairs']:,} validated on"
    for reason, number in result["set_aside"].items():
        counts += f", {number:,} set aside ({reason})"
    kind = "every weight" if settings["full"] else f"LoRA, rank {settings['lora_r']}"
    rate = f"learning rate {settings['learning_rate']:g}, batch {settings['batch']}"
    facts.add_row("model", Text(f"{printable(plan['model'])} ({kind})"))
    facts.add_row("pairs", Text(counts))
    facts.add_row("objective", f"{settings['objective']}, beta {settings['beta']:g}, {rate}")
    facts.add_row("weights", Text(printable(plan["weights"])))
    facts.add_row("time", f"{result['steps']:,} steps in {duration(manifest['seconds'])}")
    title = Text(f"noisescope train · {short(str(plan['dataset']), 50)}", style="bold")
    body = Group(facts, Text(), _measures(result))
    OUT.print(Panel(body, title=title, box=box.ROUNDED, padding=(1, 2)))
    files = ", ".join(manifest["files"][:4])
    print_lines(
        result=f"{done.directory}: {files}, README.md, history.jsonl",
        next=follow,
    )


def _measures(result: dict[str, Any]) -> Any:
    """First and last steps side by side, and validation."""
    from rich.table import Table

    first, last, held = result["first"], result["last"], result["validation"]
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("first steps", "last steps", "validation"):
        table.add_column(name, justify="right")
    shown = {"loss": ".4f", "margin": "+.4f", "accuracy": ".1%"}
    for name, form in shown.items():
        table.add_row(
            name,
            f"{first[name]:{form}}",
            f"{last[name]:{form}}",
            f"{held[name]:{form}}" if held else "-",
        )
    table.add_row("mean W", f"{first['weight']:.3f}", f"{last['weight']:.3f}", "")
    table.add_row("W below ½", f"{first['light']:.1%}", f"{last['light']:.1%}", "")
    return table


@spread
def train(
    weight: WeightOptions,
    loop: LoopOptions,
    adapter: AdapterOptions,
    reading: ReadingOptions,
    dataset: DatasetArgument = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help="forward-dpo, soft-dpo, dpo, ipo, hinge, adaptive-dpo, adaptive-ipo, "
            "distilled-dpo, cdpo, rdpo, ropo, dr-dpo, holder-dpo, re-po, mapo, ln-dpo or rpo.",
            show_default="forward-dpo or dpo, by the audit; adaptive-dpo with its settings",
            autocompletion=completion.objectives,
        ),
    ] = None,
    model: ModelOption = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Published settings, which flags override ({describe()}). docs/train.md cites "
            "each value."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Result directory.",
            show_default="trained/DATASET-OBJECTIVE-FINGERPRINT",
        ),
    ] = None,
    report_to: Annotated[
        str | None, typer.Option(help="Also log every step to tensorboard, wandb or mlflow.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Fine-tune a model on preference pairs, each by how far its label can be trusted.

    Example: noisescope train hh-rlhf --objective forward-dpo --model models/SmolLM2-135M

    Several processes or GPUs: torchrun --nproc-per-node 2 -m noisescope train ...
    """
    from noisescope.auditing.train import train as train_policy
    from noisescope.storage.workspace import default_dataset, find_workspace

    rank = int(os.environ.get("RANK", "0"))
    terminal = Terminal(quiet=json or rank > 0)
    workspace = find_workspace()
    target = default_dataset(dataset, workspace)
    began = time.monotonic()
    done = train_policy(
        target,
        model,
        objective=objective,
        preset=preset,
        weights=weight.weights,
        weighting=weight.weighting,
        rho=weight.rho,
        parameters=_parameters(weight.parameter or [], weight.flip_rate),
        output=output,
        report_to=report_to,
        reading={
            "format": reading.format,
            "columns": reading.columns,
            "pairs": reading.pairs,
            "split": reading.split,
            "limit": reading.limit,
        },
        max_length=reading.max_length,
        chat_template=reading.chat_template,
        image_size=reading.image_size,
        device=adapter.device,
        dtype=adapter.dtype,
        runs_directory=weight.runs_dir,
        reporter=terminal,
        command=f"noisescope {shlex.join(sys.argv[1:])}",
        **_settings(weight, loop, adapter),
    )
    terminal.note(f"done in {duration(time.monotonic() - began)}")
    if rank > 0:
        return
    follow = next_command(done.directory, target, done.manifest()["plan"]["modality"], workspace)
    if json:
        print_json(done.manifest() | {"directory": str(done.directory), "next": follow})
    else:
        print_result(done, follow)


def _settings(weight: WeightOptions, loop: LoopOptions, adapter: AdapterOptions) -> dict[str, Any]:
    """Options by their names in `TrainSettings`; None means not given."""
    optimisation = asdict(loop)
    return optimisation | {
        "batch": optimisation.pop("batch_size"),
        "full": adapter.full,
        "lora_r": adapter.lora_r,
        "lora_alpha": adapter.lora_alpha,
        "targets": adapter.target_names,
        "layers": adapter.layers,
        "checkpointing": adapter.gradient_checkpointing,
        "online": weight.online,
        "online_replicas": weight.online_replicas,
        "k1": weight.k1,
        "k2": weight.k2,
        "c2": weight.c2,
    }


def _parameters(given: list[str], flip_rate: float | None) -> dict[str, float]:
    """Parameters of the objective by name. Raises UsageError for text that is not NAME=VALUE."""
    from noisescope.errors import UsageError

    found = {} if flip_rate is None else {"flip_rate": flip_rate}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name.strip().replace("-", "_")] = float(value)
        except ValueError:
            raise UsageError(
                f"--parameter {text} must be NAME=VALUE with a number",
                hint="For example --parameter a=14.",
            ) from None
    return found
