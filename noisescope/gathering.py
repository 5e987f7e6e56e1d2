"""Gathering evidence: from pairs and a policy to margins on disk, one function a replica kind.

    KINDS["head"](dataset, policy, evidence, run, plan, reporter, watch)

A new kind is one function here and one line in `KINDS`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

from noisescope.errors import UsageError
from noisescope.pairs import Message, PreferenceDataset, response_key
from noisescope.policies import Item, Policy
from noisescope.run import Plan, Run

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from noisescope.features import Progress
    from noisescope.policies.diffusion import DiffusionPolicy


class Reporter(Protocol):
    """Where an audit tells what it is doing."""

    def note(self, text: str) -> None: ...

    def stage(self, label: str) -> AbstractContextManager[Progress]: ...


@final
class Stopwatch:
    """Seconds spent in each named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, label: str, began: float) -> None:
        """Add the time since `began` (time.perf_counter) to `label`."""
        self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - began


@final
@dataclass(frozen=True)
class EvidenceConfig:
    """How margins are gathered. Anything here changes the run's fingerprint."""

    kind: str = "head"
    replicas: int = 8
    folds: int = 10
    seed: int = 0
    beta: float | None = None
    pool: bool = True

    def __post_init__(self) -> None:
        faults = [
            message
            for wrong, message in (
                (self.kind not in KINDS, f"--kind {self.kind}: one of {', '.join(KINDS)}"),
                (self.replicas < 2, "--replicas must be at least 2: u needs a variance"),
                (self.folds < 2, "--folds must be at least 2"),
                (
                    self.beta is not None and not 0 < self.beta < float("inf"),
                    "--beta must be positive and finite",
                ),
            )
            if wrong
        ]
        if faults:
            raise UsageError("; ".join(faults), hint="`noisescope score --help` lists options.")


def distinct_items(table: pa.Table) -> tuple[list[Item], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct (prompt, response) of a pairs table, and each pair's two rows among them, [N]."""
    import numpy as np

    items: list[Item] = []
    rows: dict[str, int] = {}
    sides = np.empty((2, table.num_rows), np.int64)
    columns = (table.column(name).to_pylist() for name in ("prompt", "turns", "chosen", "rejected"))
    for index, (prompt, turns, *responses) in enumerate(zip(*columns, strict=True)):
        for side, response in enumerate(responses):
            key = response_key(prompt, response)
            row = rows.setdefault(key, len(items))
            if row == len(items):
                messages = turns and tuple(Message(t["role"], t["content"]) for t in turns)
                items.append(Item(key, prompt, messages or None, response))
            sides[side, index] = row
    return items, sides[0], sides[1]


def fold_keys(table: pa.Table) -> NDArray[np.uint64]:
    """uint64 of each pair's content id, [N]: repeats of a pair share a fold."""
    import numpy as np

    return np.array(
        [int(key[:16], 16) for key in table.column("content_id").to_pylist()], np.uint64
    )


def gather_heads(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    run: Run,
    plan: Plan,
    reporter: Reporter,
    watch: Stopwatch,
) -> None:
    """Features of every distinct response, then log-linear replicas: margins in one part."""
    import numpy as np

    from noisescope.features import compute_features, uncached
    from noisescope.margins import write_margins
    from noisescope.replicas.head import HeadConfig, fit_heads

    items, chosen, rejected = distinct_items(dataset.table)
    todo = uncached(policy, items, cache_directory(run))
    for remark in policy.remarks(items):
        reporter.note(remark)
    reporter.note(_estimate(policy, todo, len(items)))
    began = time.perf_counter()
    with reporter.stage(f"features of {len(todo):,} distinct responses") as progress:
        features = compute_features(policy, items, cache_directory(run), progress)
    watch.time("features", began)
    began = time.perf_counter()
    config = HeadConfig(
        replicas=evidence.replicas, folds=evidence.folds, seed=evidence.seed, identity=evidence.pool
    )
    reporter.note(f"fitting {evidence.replicas} replicas x {evidence.folds} folds")
    fit = fit_heads(features, chosen, rejected, fold_keys(dataset.table), config)
    watch.time("replicas", began)
    write_margins(
        run.margins_directory / "part-0.parquet",
        dataset.table.column("pair_id"),
        fit.margins[:, None, :],
        steps=[1],
        held_out=np.ones(fit.margins.shape, bool),
    )


def _estimate(policy: Policy, todo: list[Item], distinct: int) -> str:
    """What the feature pass will cost, from its FLOPs and a timed matrix product."""
    from noisescope.features import estimate_seconds
    from noisescope.policies.device import matmul_rate

    if not todo:
        return f"features of all {distinct:,} distinct responses are cached"
    flops, rate = policy.flops(todo), matmul_rate(policy.device, policy.dtype)
    seconds = estimate_seconds(policy, todo, rate)
    return (
        f"estimate: {len(todo):,} of {distinct:,} distinct responses to compute, "
        f"{flops / 1e12:.3g} TFLOP at {rate / 1e9:,.0f} GFLOP/s, about {seconds:,.0f} s"
    )


def gather_lora(
    dataset: PreferenceDataset,
    policy: Policy,
    evidence: EvidenceConfig,
    run: Run,
    plan: Plan,
    reporter: Reporter,
    watch: Stopwatch,
) -> None:
    """M packed LoRA replicas, each on a random half of the pairs: margins at every checkpoint."""
    from noisescope.policies.causal_lm import CausalLMPolicy
    from noisescope.policies.diffusion import DiffusionPolicy
    from noisescope.replicas.lora import train_lora
    from noisescope.replicas.packed import LoraConfig

    began = time.perf_counter()
    shared = {"replicas": evidence.replicas, "seed": evidence.seed, "beta": plan.evidence["beta"]}
    label = f"{evidence.replicas} LoRA replicas of {len(dataset):,} pairs"
    with reporter.stage(label) as progress:
        if isinstance(policy, CausalLMPolicy):
            train_lora(
                policy,
                dataset.table,
                LoraConfig(**shared),
                run.directory,
                lambda stage, done, total: progress(done, total, None),
            )
            shutil.rmtree(run.directory / "trunk", ignore_errors=True)
        elif isinstance(policy, DiffusionPolicy):
            _train_diffusion_lora(dataset, policy, shared, run)
        else:
            raise UsageError(f"--kind lora cannot adapt {policy.identity.id}")
    watch.time("replicas", began)


def _train_diffusion_lora(
    dataset: PreferenceDataset, policy: DiffusionPolicy, shared: Mapping[str, Any], run: Run
) -> None:
    """LoRA replicas of a diffusion policy, and their margins in one part."""
    from noisescope.margins import write_margins
    from noisescope.replicas.lora_diffusion import DiffusionLoraConfig, diffusion_replicas

    learner = diffusion_replicas(policy, dataset.table, DiffusionLoraConfig(**shared))
    try:
        margins = learner.run(run.replicas_directory)
        write_margins(
            run.margins_directory / "part-0.parquet",
            dataset.table.column("pair_id"),
            margins[:, None, :],
            steps=[1],
            held_out=learner.held_out,
        )
    finally:
        learner.detach()


#: Kinds of replica: how each gathers margins.
KINDS: dict[str, Callable[..., None]] = {"head": gather_heads, "lora": gather_lora}


def cache_directory(run: Run) -> Path:
    """Where features are kept, shared by all runs beside this one."""
    return run.directory.parent / ".cache" / "features"
