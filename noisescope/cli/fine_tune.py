"""noisescope fine-tune DATASET: make the replicas and their margins, without scores."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.cli.console import Terminal, duration, print_json, print_lines
from noisescope.cli.evidence_options import EvidenceOptions
from noisescope.cli.launch import read_inputs
from noisescope.cli.options import (
    DatasetArgument,
    JsonOption,
    SourceOptions,
    spread,
)

if TYPE_CHECKING:
    from noisescope.storage.run import Run


@spread
def fine_tune(
    source: SourceOptions,
    evidence: EvidenceOptions,
    dataset: DatasetArgument = None,
    json: JsonOption = False,
) -> None:
    """Fine-tune M short-run replicas and write their margins; `score` then needs seconds.

    Example: noisescope fine-tune hh-rlhf --kind lora --replicas 4 --layers top-2
    """
    from noisescope.auditing.audit import fine_tune as make_replicas
    from noisescope.auditing.ranks import joined

    terminal = Terminal(quiet=json)
    began = time.monotonic()
    with joined() as world:
        pairs, policy, config = read_inputs(source, evidence, dataset, terminal, world)
        done = make_replicas(
            pairs,
            policy,
            evidence=config,
            runs_directory=source.runs_dir,
            run_directory=source.run_dir,
            command=f"noisescope {' '.join(sys.argv[1:])}",
            reporter=terminal,
            world=world,
        )
        if done.reused:
            terminal.note(f"the replicas of {done.run.directory} are already complete")
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
    """Print what was made, its losses, and the next command."""
    training = facts["training"]
    rows = {
        "replicas": f"{facts['replicas']} {facts['kind']} over {facts['pairs']:,} pairs",
        "run": facts["run"],
        "margins": f"{len(facts['margins'])} parts, {duration(sum(facts['timings'].values()))}",
    }
    losses: Mapping[str, float] = training.get("held_out_loss", {})
    if losses:
        text = ", ".join(f"{loss:.3f} at step {step}" for step, loss in losses.items())
        rows["held-out loss"] = f"{text}; 0.693 is chance"
        if training["stopped_early"]:
            rows["stopped early"] = f"best at step {training['best_step']}"
    if facts["adapters"]:
        rows["adapters"] = facts["adapters"][0] + (" .." if len(facts["adapters"]) > 1 else "")
    print_lines(**rows, next=facts["next"])
