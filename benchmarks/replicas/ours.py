"""Time our side of `benchmarks.replicas`: packed LoRA replicas and heads, with their memory."""

from __future__ import annotations

import ctypes
import gc
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.harness import peak_memory_mib, reset_peak_memory, stopwatch
from benchmarks.replicas.task import Float, Task, judged
from noisescope.models.causal_lm import CausalLMPolicy
from noisescope.models.device import matmul_rate
from noisescope.models.features import compute_features
from noisescope.models.items import distinct_items, fold_keys
from noisescope.replicas.config import LoraConfig
from noisescope.replicas.cost import LoraCost
from noisescope.replicas.gather_adapters import scores_of
from noisescope.replicas.head import HeadConfig, fit_heads
from noisescope.replicas.lora_text import train_lora

#: What `noisescope fine-tune --kind lora` makes.
CONFIG = LoraConfig(replicas=8)
#: One replica on every block, pairs in random order, as TRL trains.
WHOLE = replace(CONFIG, replicas=1, top_layers=None, cluster=1)
#: One epoch of eight pairs a step, for comparing speed.
SPEED = replace(WHOLE, epochs=1.0, batch=8)


def forget_peak() -> None:
    """Begin a new `peak_memory_mib` without memory that earlier runs freed and glibc kept."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset_peak_memory()


def ours(task: Task, policy: CausalLMPolicy, config: LoraConfig, run: Path) -> dict[str, Any]:
    """Run M packed replicas once, scores included."""
    rate = matmul_rate(policy.device, policy.dtype)
    costs: list[LoraCost] = []
    forget_peak()
    with stopwatch() as spent:
        summary = train_lora(policy, task.table, config, run, estimate=costs.append)
    stages = summary.seconds
    trained = config.replicas * summary.steps * config.batch
    needed = task.halves(config.replicas, config.seed).any(axis=0).mean()  # of the reference pass
    return {
        "kind": "lora",
        "M": config.replicas,
        "K": config.top_layers or "all",
        "seconds": spent["seconds"],
        "how": "measured",
        "reference s": stages["trunk"],
        "train s": stages["train"],
        "score s": stages["score"],
        "trained pairs/s": trained / (stages["train"] + needed * stages["trunk"]),
        "cpu s": spent["cpu"],
        "peak MiB": peak_memory_mib(),
        "TFLOP": costs[0].total / 1e12,
        "of matmul rate": costs[0].total / rate / sum(stages.values()),
        "held-out loss": summary.held_out_loss[summary.best_step],
    }


def adapter_margins(
    task: Task, policy: CausalLMPolicy, adapters: Sequence[Path], beta: float
) -> Float:
    """Compute the margins beta * l of PEFT adapters on every pair of a task, [M, N]."""
    items, chosen, rejected = distinct_items(task.table)
    with scores_of(policy, adapters) as source:
        found = source.features(items)
    log_ratios = (found["logps"] - found["reference"][:, None]).astype(np.float64)
    margins: Float = beta * (log_ratios[chosen] - log_ratios[rejected]).T
    return margins


def heads(task: Task, policy: CausalLMPolicy) -> dict[str, Any]:
    """Fit eight head replicas on the same pairs, feature pass included."""
    forget_peak()
    with tempfile.TemporaryDirectory() as scratch, stopwatch() as spent:
        items, chosen, rejected = distinct_items(task.table)
        features = compute_features(policy, items, Path(scratch), lambda done, total, note: None)
        config = HeadConfig(replicas=CONFIG.replicas)
        fit = fit_heads(features, chosen, rejected, fold_keys(task.table), config)
    return {
        "kind": "head",
        "M": config.replicas,
        "K": "-",
        "seconds": spent["seconds"],
        "how": "measured",
        "cpu s": spent["cpu"],
        "peak MiB": peak_memory_mib(),
        "held-out loss": -fit.log_likelihood,
        "AUROC": judged(fit.margins.mean(axis=0), task.wrong),
    }


def head_elsewhere(trained: Task, others: Task, policy: CausalLMPolicy) -> dict[str, Any]:
    """Fit one head on `trained` and test it on `others`: features alone, no pooling by identity."""
    forget_peak()
    count = len(trained.tokens)
    with tempfile.TemporaryDirectory() as scratch, stopwatch() as spent:
        both = pa.concat_tables([trained.table, others.table])
        items, *sides = distinct_items(both)
        features = compute_features(policy, items, Path(scratch), lambda done, total, note: None)
        chosen, rejected = (side[:count] for side in sides)
        config = HeadConfig(replicas=1, identity=False, bootstrap=0.0)
        fit = fit_heads(features, chosen, rejected, fold_keys(trained.table), config)
    rewards = fit.rewards(features)[0]
    margins = rewards[sides[0][count:]] - rewards[sides[1][count:]]
    return {
        "kind": "head",
        "M": 1,
        "K": "-",
        "seconds": spent["seconds"],
        "how": "measured",
        "peak MiB": peak_memory_mib(),
        "held-out loss": float(np.logaddexp(0, -margins).mean()),
        "AUROC": judged(margins, others.wrong),
    }
