"""noisescope fine-tune DATASET: the replicas and their margins alone; `score` judges them."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisescope.cli.console import Terminal, duration, print_json, print_lines
from noisescope.cli.launch import begin
from noisescope.cli.options import EvidenceOptions, SourceOptions, spread

if TYPE_CHECKING:
    from noisescope.storage.run import Run


@spread
def fine_tune(
    source: SourceOptions,
    evidence: EvidenceOptions,
    dataset: Annotated[
        str | None, typer.Argument(help="Workspace name, path, glob, or Hub name of a dataset.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Make the replicas and ask each about every pair; `score` with the same options judges.

    Example: noisescope fine-tune hh-rlhf --kind lora --replicas 4 --layers top-2
    """
    from noisescope.auditing.audit import fine_tune as make_replicas

    terminal = Terminal(quiet=json)
    began = time.monotonic()
    ready = begin(source, evidence, dataset, terminal)
    if ready is None:
        return
    done = make_replicas(
        ready.pairs,
        ready.policy,
        evidence=ready.evidence,
        runs_directory=source.runs_dir,
        run_directory=source.run_dir,
        command=f"noisescope {' '.join(sys.argv[1:])}",
        reporter=terminal,
    )
    if done.reused:
        terminal.note(f"the replicas of {done.run.directory} were made before")
    else:
        terminal.note(f"done in {duration(time.monotonic() - began)}")
    facts = result(done.run, sys.argv[1:])
    if json:
        print_json(facts)
    else:
        print_result(facts)


def result(run: Run, arguments: Sequence[str]) -> dict[str, Any]:
    """What `--json` prints."""
    manifest = run.evidence_manifest()
    plan = manifest["evidence"]
    found = sorted(run.replicas_directory.glob("*/*.safetensors"), key=_number)
    return {
        "run": str(run.directory),
        "kind": plan["kind"],
        "replicas": plan["replicas"],
        "pairs": manifest["facts"]["pairs"],
        "margins": [str(path) for path in run.margin_parts()],
        "adapters": [str(path.parent) for path in found],
        "training": manifest["training"],
        "timings": manifest["timings"],
        "scores": manifest["scores"],
        "next": next_command(arguments),
    }


def _number(path: Path) -> tuple[int, str]:
    return len(path.parent.name), path.parent.name


def next_command(arguments: Sequence[str]) -> str:
    """The same command line with `score` for `fine-tune`."""
    words = [word for word in arguments if word != "--json"]
    place = words.index("fine-tune") if "fine-tune" in words else 0
    return shlex.join(["noisescope", *words[:place], "score", *words[place + 1 :]])


def print_result(facts: Mapping[str, Any]) -> None:
    """A few lines on stdout: what was made, how it went, what to type next."""
    training = facts["training"]
    rows = {
        "replicas": f"{facts['replicas']} {facts['kind']} over {facts['pairs']:,} pairs",
        "run": facts["run"],
        "margins": f"{len(facts['margins'])} parts, {duration(sum(facts['timings'].values()))}",
    }
    losses: Mapping[str, float] = training.get("held_out_loss", {})
    if losses:
        said = ", ".join(f"{loss:.3f} at step {step}" for step, loss in losses.items())
        rows["held-out loss"] = f"{said}; 0.693 is chance"
        if training["stopped_early"]:
            rows["stopped early"] = f"best at step {training['best_step']}"
    if facts["adapters"]:
        rows["adapters"] = facts["adapters"][0] + (" .." if len(facts["adapters"]) > 1 else "")
    print_lines(**rows, next=facts["next"])
