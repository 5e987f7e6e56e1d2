"""Time one training in this process: the loop of `noisescope train`, or DiffusionDPO's plain step.

    python -m benchmarks.train.steps < given.json
    {"loop": "images", "steps": 3, "batch": 16, "rank": 8, "device": "cpu", "dtype": "float32"}

JSON on stdin, one JSON object as the last line of stdout: seconds of what is computed once before
the first step (reference log-probabilities, or latents and embeddings), wall and CPU seconds of
every step and the process's peak MiB (the GPU's, if one is used). Loops: `text` over the rows
given, `images` and `images plain` over the sample pick-a-pic. A separate process from
`benchmarks.train`, so that the peak memory of each loop is its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import peak_memory_mib
from benchmarks.images.plain import plain_steps
from benchmarks.images.steps import MODEL, SAMPLE
from noisescope.datasets import load
from noisescope.models.diffusion import DiffusionPolicy
from noisescope.pairs import Pair, to_table
from noisescope.progress import Silent
from noisescope.training.batch_order import Stream
from noisescope.training.config import TrainConfig
from noisescope.training.loop import train
from noisescope.training.pair_data import pair_data
from noisescope.training.policy.build import make_trainable
from noisescope.training.policy.learner import PreferenceLearner
from noisescope.training.policy.output import Trained
from noisescope.training.policy.settings import TrainSettings, settled
from noisescope.training.state import Progress

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.models import Policy


def now() -> tuple[float, float]:
    """Return wall and CPU seconds."""
    return time.perf_counter(), time.process_time()


def peak_mib(device: str) -> float | None:
    """Return the highest memory of the device, or of this process."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory_mib()


def stepped(policy: Policy, table: pa.Table, settings: TrainSettings) -> dict[str, Any]:
    """Train as `noisescope train` does, on all pairs of `table`."""
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=policy.device.type == "cpu")
    data, stamps = pair_data(table), [now()]

    def after_step(progress: Progress) -> bool:
        if policy.device.type == "cuda":
            torch.cuda.synchronize()
        stamps.append(now())
        return False

    with tempfile.TemporaryDirectory() as scratch:
        trained = Trained(Path(scratch))
        trainable, _ = make_trainable(policy, data, settings, trained, Silent(), accelerator)
        before = now()[0] - stamps[0][0]
        everyone = np.arange(table.num_rows)
        learner = PreferenceLearner(
            trainable,
            Stream(everyone, data.chosen, data.rejected, seed=(settings.seed, 0), cluster=1),
            settings.make_objective(),
            batch=settings.batch,
            accumulation=settings.accumulation,
        )
        config = TrainConfig(settings.total_steps(table.num_rows), settings.learning_rate)
        stamps.append(now())
        train(learner, learner.objective, config, accelerator=accelerator, after_step=after_step)
    wall, cpu = np.diff(stamps[1:], axis=0).T.tolist()
    return {
        "before": before,
        "step_wall": wall,
        "step_cpu": cpu,
        "forwards": len(learner.batches(0)),
        "peak_mib": peak_mib(policy.device.type),
    }


def text(given: dict[str, Any]) -> dict[str, Any]:
    """Train LoRA on every linear layer of a causal language model."""
    from noisescope.models.causal_lm import load_causal_lm

    policy = load_causal_lm(
        given["model"],
        max_length=given["max_length"],
        chat_template="never",
        device=given["device"],
        dtype=given["dtype"],
    )
    settings = settled(
        "text",
        steps=given["steps"],
        batch=given["batch"],
        lora_r=given["rank"],
        checkpointing=given.get("checkpointing") or None,
    )
    return stepped(policy, to_table([Pair(**row) for row in given["rows"]]), settings)


def images(given: dict[str, Any]) -> dict[str, Any]:
    """Train LoRA on the attention layers of the sample's UNet."""
    dataset = load(SAMPLE)
    assert dataset.images is not None
    policy = DiffusionPolicy.load(
        str(MODEL), dataset.images, device=given["device"], dtype=given["dtype"]
    )
    table = dataset.table.slice(0, given["batch"] * given["steps"])
    settings = settled(
        "image",
        steps=given["steps"],
        batch=given["batch"],
        lora_r=given["rank"],
        lora_alpha=float(given["rank"]),
        accumulation=given.get("accumulation"),
    )
    return stepped(policy, table, settings)


def images_plain(given: dict[str, Any]) -> dict[str, Any]:
    """Train the same pairs and adapters with DiffusionDPO's plain step."""
    dataset = load(SAMPLE)
    assert dataset.images is not None
    policy = DiffusionPolicy.load(
        str(MODEL), dataset.images, device=given["device"], dtype=given["dtype"]
    )
    seconds, spent = [], []
    for step in range(given["steps"]):
        part = replace(dataset, table=dataset.table.slice(step * given["batch"], given["batch"]))
        began = time.process_time()
        seconds.append(given["batch"] / plain_steps(policy, part, 1, given["rank"]))
        spent.append(time.process_time() - began)
    peak = peak_mib(given["device"])
    return {"before": 0.0, "step_wall": seconds, "step_cpu": spent, "peak_mib": peak}


LOOPS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "text": text,
    "images": images,
    "images plain": images_plain,
}


def main() -> None:
    """Run the loop named on stdin."""
    given = json.loads(sys.stdin.read())
    print(json.dumps(LOOPS[given["loop"]](given)))


if __name__ == "__main__":
    main()
