"""Measure the cost of an image pair, and other uses of the same denoiser calls.

Calls are counted as a plain loop makes them: one for a forward of one image at one draw, two more
for its backward; the reference separately from the policy. Part of `benchmarks.images`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import truth
from benchmarks.harness import ROOT, Report
from benchmarks.images.plain import plain_scores
from benchmarks.images.steps import MODEL, SAMPLE, silent
from noisescope.datasets import load
from noisescope.models.diffusion import DiffusionPolicy
from noisescope.models.features import compute_features
from noisescope.models.items import distinct_items
from noisescope.pairs import PreferenceDataset
from noisescope.replicas.config import DiffusionLoraConfig
from noisescope.replicas.lora_image import diffusion_replicas
from noisescope.replicas.packed_image import DiffusionReplicas
from noisescope.replicas.train import largest_half
from noisescope.scoring.metrics import auroc
from noisescope.training.loop import train
from noisescope.training.objectives import DPO

#: Calls of one pair: trained once (reference 1, forward 1, backward 2, both sides), and scored.
TRAINED, SCORED = 8, 4
COSTED = 250


def opened(dataset: PreferenceDataset, place: Path | None = None) -> DiffusionPolicy:
    """Open the sample's pipeline again, with latents and embeddings cached in `place`."""
    assert dataset.images is not None
    policy = DiffusionPolicy.load(str(MODEL), dataset.images, device="cpu", dtype="float32")
    if place is not None:
        policy.encodings.open(place)
    return policy


def cost_task(report: Report) -> None:
    """Time a pair at K = 4: the plain loop, and ours with each cache cold and filled."""
    full = load(SAMPLE)
    dataset = replace(full, table=full.table.slice(0, COSTED))
    items, _, _ = distinct_items(dataset.table)
    rows = [{"how": "plain: policy and reference", "s": plain_scores(opened(full), full, 48, 4)}]

    def timed(how: str, work: Any) -> None:
        began = time.perf_counter()
        work()
        rows.append({"how": how, "s": (time.perf_counter() - began) / COSTED})

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        cold = opened(dataset, place / "encodings")
        timed("latents and embeddings, computed", lambda: cold.encodings.keep(items, silent))
        warm = opened(dataset, place / "encodings")
        timed("latents and embeddings, checked on disk", lambda: warm.encodings.keep(items, silent))
        for how in ("heads: features, computed", "heads: features, on disk"):
            timed(how, lambda: compute_features(warm, items, place / "features", silent))
        config = DiffusionLoraConfig(replicas=2, draws=4)
        learner = diffusion_replicas(warm, dataset.table, config)
        for how in ("LoRA: reference errors, computed", "LoRA: reference errors, on disk"):
            timed(how, lambda: learner.measure_reference(place / "reference", silent))
        learner.detach()
    report.tables["seconds a pair, K = 4"] = rows


def training_task(report: Report, steps: int) -> None:
    """Measure pairs/s and memory of a training step, each loop in its own process."""
    names = {"plain": "plain loop, whole UNet (DiffusionDPO)", "ours": "ours, eight LoRA replicas"}
    rows = []
    for loop, name in names.items():
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.images.steps", loop, str(steps)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        rows.append({"step": name, **json.loads(done.stdout.splitlines()[-1])})
    report.tables["training step"] = rows
    speeds = [row["pairs/s"] for row in rows]
    report.at_least("training pairs/s over the plain loop, CPU", speeds[1] / speeds[0], 2)


def trained(dataset: PreferenceDataset, steps: int, draws: int) -> DiffusionReplicas:
    """Train two replicas, each on its half; scores come later."""
    config = DiffusionLoraConfig(replicas=2, draws=draws, steps=steps)
    learner = diffusion_replicas(opened(dataset), dataset.table, config)
    learner.measure_reference(None, silent)
    train(learner, DPO(beta=config.beta), config.train_config(largest_half(learner.held_out), ""))
    return learner


def held_out_auroc(learner: DiffusionReplicas, wrong: NDArray[np.bool_]) -> float:
    """Return AUROC of the margin of the one replica that did not train on the pair."""
    unseen = np.where(learner.held_out, learner.margins(), 0).sum(0)
    return float(auroc(-unseen, wrong))


def equal_task(report: Report, heads: dict[int, float]) -> None:
    """Compare shared heads with a replica scored at one draw, for the same denoiser calls.

    `heads` is the AUROC of heads without identities by K. The one-draw scorer spends the calls that
    remain after scoring every pair once on training its two replicas.
    """
    dataset = load(SAMPLE)
    wrong = truth(dataset, SAMPLE / "truth.parquet")
    items, _, _ = distinct_items(dataset.table)
    policy = opened(dataset)
    budget = policy.draws.calls * len(items) / len(dataset)  # calls a pair of heads at K = 4
    config = DiffusionLoraConfig(replicas=2)
    steps = max(1, int((budget - SCORED) * len(dataset) / TRAINED / (2 * config.batch)))
    learner = trained(dataset, steps, 1)
    spent = steps * 2 * config.batch * TRAINED / len(dataset) + SCORED
    one = held_out_auroc(learner, wrong)
    learner.detach()
    report.tables["equal compute, sample"] = [
        {"scorer": "shared heads, K = 4", "calls a pair": budget, "AUROC": heads[4]},
        {"scorer": "LoRA DPO replica, one draw", "calls a pair": spent, "AUROC": one},
    ]
    report.at_least("AUROC above one-draw scoring at equal denoiser calls", heads[4] - one, 0)


def replica_task(report: Report) -> None:
    """Train two LoRA replicas on the sample for two epochs; AUROC of held-out margins by K."""
    dataset = load(SAMPLE)
    wrong = truth(dataset, SAMPLE / "truth.parquet")
    began = time.perf_counter()
    learner = trained(dataset, 31, 8)
    seconds = time.perf_counter() - began
    rows = []
    for k in (1, 2, 4, 8):
        learner.noised = replace(learner.noised, draws=k)
        began = time.perf_counter()
        learner.measure_reference(None, silent)
        found = held_out_auroc(learner, wrong)
        scoring = time.perf_counter() - began
        rows.append({"draws": k, "AUROC": found, "seconds of scoring": scoring})
    learner.detach()
    report.facts["sample, LoRA training seconds"] = seconds
    report.tables["sample, one LoRA replica by draws"] = rows
