"""Time one training loop on the bundled pipeline in this process: pairs/s and peak memory.

    python -m benchmarks.images.steps plain 10   # DiffusionDPO's step, whole UNet
    python -m benchmarks.images.steps ours 10    # eight LoRA replicas

Prints one JSON object: pairs/s and the process's peak MiB. A separate process from
`benchmarks.images`, so that the peak memory of each loop is its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, peak_memory_mib, reset_peak_memory
from benchmarks.images.plain import BATCH, plain_steps
from noisescope.datasets import load
from noisescope.models.diffusion import DiffusionPolicy
from noisescope.pairs import PreferenceDataset
from noisescope.replicas.config import DiffusionLoraConfig
from noisescope.replicas.lora_image import diffusion_replicas

SAMPLE = ROOT / "sample_data" / "pick-a-pic"
MODEL = ROOT / "sample_data" / "models" / "tiny-sd"
PAIRS = 256


def silent(done: float, total: float, note: str | None) -> None:
    """Ignore progress."""


def our_steps(policy: DiffusionPolicy, dataset: PreferenceDataset, steps: int) -> float:
    """Measure pairs/s of eight replicas' training step, latents and reference errors cached."""
    import torch

    config = DiffusionLoraConfig(replicas=8, batch=BATCH, draws=4, rows=64)
    learner = diffusion_replicas(policy, dataset.table.slice(0, PAIRS), config)
    with tempfile.TemporaryDirectory() as scratch:
        policy.encodings.open(Path(scratch) / "encodings")
        policy.encodings.keep(learner.data.items, silent)
        learner.measure_reference(Path(scratch) / "reference", silent)
        adam = torch.optim.AdamW(learner.trainable().values(), lr=1e-4)
        began, done = time.perf_counter(), 0
        for step in range(steps):
            for batch in learner.batches(step):
                total = sum(
                    piece.share * torch.nn.functional.softplus(-2500 * piece.values.logratio).mean()
                    for piece in learner.pieces(batch)
                )
                total.backward()
                done += sum(len(part.pairs) for part in batch)
            adam.step()
            adam.zero_grad()
        seconds = time.perf_counter() - began
    learner.detach()
    return done / seconds


LOOPS: dict[str, Callable[[DiffusionPolicy, PreferenceDataset, int], float]] = {
    "plain": plain_steps,
    "ours": our_steps,
}


def measured(name: str, steps: int) -> dict[str, Any]:
    """Run the loop `name` in this process after one step of warm-up."""
    dataset = load(SAMPLE)
    assert dataset.images is not None
    policy = DiffusionPolicy.load(str(MODEL), dataset.images, device="cpu", dtype="float32")
    LOOPS[name](policy, dataset, 1)
    reset_peak_memory()
    speed = LOOPS[name](policy, dataset, steps)
    return {"pairs/s": speed, "peak MiB": peak_memory_mib()}


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]))))
