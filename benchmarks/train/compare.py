"""Compare `noisescope train` with TRL's DPOTrainer (text) and DiffusionDPO's step (images).

    python -m benchmarks.train [--quick] [--only text|images] [--device cuda] [--peer-python VENV]

Throughput and peak memory of optimiser steps at equal pairs, tokens, batch and adapters; every loop
in its own process, ours and the peer in turn, medians over the rounds' steps (a round's first step
is not counted). Text: SmolLM2-135M, LoRA of rank 16 on every linear layer, batch 8, float32 on a
CPU and bfloat16 on a GPU; TRL 1.16 at its fastest setting on a CPU, one pair a forward
(benchmarks/LOG.md), eight on a GPU. Images: the bundled pipeline, LoRA of rank 8 on the UNet's
attention, batch 16; the plain step decodes, encodes and embeds every batch again and has a second
UNet as its reference.

`one epoch` counts what we compute once (reference log-probabilities; latents and embeddings) over
the pairs of the run; `steps` omits it, as for many epochs. Not counted: starting Python, loading
models, tokenising, TRL's pass if it computes its references first. Memory is the peak of the whole
process. --quick: ukp-convarg alone, two rounds of two counted steps.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Options, Report, parser, peer_python, publish
from benchmarks.images.plain import BATCH as IMAGES
from benchmarks.models import smollm2
from benchmarks.replicas.peer import PACKAGES, Peer
from benchmarks.replicas.task import Task, hh_harmless, ukp_convarg
from noisescope.models.causal_lm import CausalLMPolicy, load_causal_lm
from noisescope.replicas.config import LoraConfig

CONFIG = LoraConfig(replicas=1, rank=16, alpha=32.0, top_layers=None, batch=8, learning_rate=2e-4)
IMAGE_RANK = 8
#: Dataset -> (its task, tokens of a side at most).
TASKS: dict[str, tuple[Callable[[Path, CausalLMPolicy], Task], int]] = {
    "ukp-convarg": (ukp_convarg, 256),
    "hh-harmless": (hh_harmless, 512),
}


@dataclass(frozen=True)
class Size:
    """Sizes of the comparison."""

    tasks: tuple[str, ...]
    rounds: int
    steps: int  # of a round, the uncounted first one included
    extras: bool  # TRL with precomputed references, ours with gradient checkpointing


FULL = Size(tuple(TASKS), rounds=3, steps=3, extras=True)
QUICK = Size(("ukp-convarg",), rounds=2, steps=3, extras=False)


def own(**given: Any) -> dict[str, Any]:
    """Run one of our loops in its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train.steps"],
        input=json.dumps(given),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"benchmarks.train.steps failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def row(name: str, answers: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Return the row of one loop over its rounds."""
    steps = np.concatenate([answer["step_wall"][1:] for answer in answers])
    step = float(np.median(steps))
    once = [answer["before"] for answer in answers if answer["before"] is not None]
    share = float(np.median(once)) / len(answers[0]["step_wall"]) if once else None
    return {
        "loop": name,
        "s/step": step,
        "spread": f"{steps.min():.3g} to {steps.max():.3g}",
        "CPU s/step": float(np.median(np.concatenate([a["step_cpu"][1:] for a in answers]))),
        "steps, pairs/s": batch / step,
        "one epoch, pairs/s": None if share is None else batch / (step + share),
        "peak MiB": float(np.median([answer["peak_mib"] for answer in answers])),
    }


def in_turn(
    loops: dict[str, Callable[[], dict[str, Any]]], rounds: int, batch: int
) -> list[dict[str, Any]]:
    """Run every loop once a round."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in loops}
    for number in range(rounds):
        for name, loop in loops.items():
            print(f"round {number + 1}: {name}", file=sys.stderr)
            found[name].append(loop())
    return [row(name, answers, batch) for name, answers in found.items()]


def text(options: Options, device: str, size: Size, report: Report) -> None:
    """Compare ours and TRL on the same pairs of each dataset."""
    model = options.model or str(smollm2())
    python = peer_python(options, "trl", PACKAGES)
    gpu = device.startswith("cuda")
    dtype = "bfloat16" if gpu else "float32"
    for name in size.tasks:
        make, longest = TASKS[name]
        policy = load_causal_lm(model, max_length=longest, chat_template="never", device="cpu")
        task = make(options.data, policy)
        drawn = np.random.default_rng(options.seed + 1).permutation(len(task.tokens))
        task = task.take(drawn[: CONFIG.batch * size.steps])
        columns = task.table.select(["prompt", "chosen", "rejected"])
        given = {
            "loop": "text",
            "model": model,
            "rows": columns.to_pylist(),
            "steps": size.steps,
            "batch": CONFIG.batch,
            "rank": CONFIG.rank,
            "max_length": longest,
            "device": device,
            "dtype": dtype,
        }
        peer = Peer(python, model, replace(CONFIG, seed=options.seed))

        def trl(
            *,
            precompute: bool = False,
            peer: Peer = peer,
            task: Task = task,
            longest: int = longest,
        ) -> dict[str, Any]:
            answer = peer.run(
                task,
                task.take(np.arange(1)),  # it scores one at least
                layers=None,
                max_steps=size.steps,
                accumulation=1 if gpu else CONFIG.batch,
                max_length=longest,
                precompute=precompute,
                device=device,
                dtype=dtype,
            )
            return answer | {"before": None if precompute else 0.0}

        loops: dict[str, Callable[[], dict[str, Any]]] = {
            "ours": lambda given=given: own(**given),
            "TRL": trl,
        }
        if size.extras:
            loops["ours, gradient checkpointing"] = lambda given=given: own(
                **given, checkpointing=True
            )
            loops["TRL, references first"] = lambda trl=trl: trl(precompute=True)
        rows = in_turn(loops, size.rounds, CONFIG.batch)
        report.tables[f"text, {name}: {task.longest.mean():.0f} tokens a side, {dtype}"] = rows
        compare(report, f"text, {name}", *rows[:2], (1.3, 0.8) if gpu else (4.0, 0.7))


def images(device: str, size: Size, report: Report) -> None:
    """Compare ours and the plain step on the same pairs of the sample."""
    given = {
        "steps": size.steps + 2,
        "batch": IMAGES,
        "rank": IMAGE_RANK,
        "device": device,
        "dtype": "float32",
    }
    loops: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: own(loop="images", **given),
        "plain step, the same adapters": lambda: own(loop="images plain", **given),
        "plain step, whole UNet": lambda: own(loop="images plain", **given | {"rank": None}),
    }
    rows = in_turn(loops, size.rounds + 1, IMAGES)
    report.tables["images, sample pick-a-pic, float32"] = rows
    compare(report, "images, same adapters", *rows[:2], (2.0, None))


def compare(
    report: Report,
    name: str,
    ours: dict[str, Any],
    peer: dict[str, Any],
    bounds: tuple[float, float | None],
) -> None:
    """Record the targets of ours against the peer."""
    for what in ("steps, pairs/s", "one epoch, pairs/s"):
        report.at_least(f"{name}: {what} over the peer's", ours[what] / peer[what], bounds[0])
    if bounds[1] is not None:
        ratio = ours["peak MiB"] / peer["peak MiB"]
        report.at_most(f"{name}: peak memory over the peer's", ratio, bounds[1])


def main() -> None:
    """Parse, run, print."""
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments.add_argument("--only", choices=("text", "images"), help="one half")
    given = vars(arguments.parse_args())
    device, only = given.pop("device"), given.pop("only")
    options = Options(**given)
    size, report = QUICK if options.quick else FULL, Report("noisescope train against its peers")
    if only != "images":
        text(options, device, size, report)
    if only != "text":
        images(device, size, report)
    publish(report, options)
