"""An audit: dataset and model in, evidence and verdicts out. What `noisescope score` calls.

    audit(load("pairs.jsonl"), load_policy("models/smollm2", dataset)).summary.flip_rate

Stages: pairs -> features (cached) -> replicas -> margins -> scores -> manifest. Each stage's
file is whole or absent, so the same call after a kill continues where it stopped.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

from noisescope.errors import UsageError
from noisescope.pairs import Message, Modality, PreferenceDataset, response_key
from noisescope.policies import Item, Policy
from noisescope.run import Plan, Run, open_run
from noisescope.storage import write_atomic

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from noisescope.features import Progress
    from noisescope.summary import Summary
    from noisescope.verdicts import ScoreConfig

#: beta of the published runs: 0.1 for text, 2500 for images (SDXL; SD1.5 uses 1000).
DEFAULT_BETA: dict[Modality, float] = {"text": 0.1, "image": 2500.0}


class Reporter(Protocol):
    """Where an audit tells what it is doing."""

    def note(self, text: str) -> None: ...

    def stage(self, label: str) -> AbstractContextManager[Progress]: ...


@final
class Silent:
    """A reporter that says nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def stage(self, label: str) -> AbstractContextManager[Progress]:
        """Show nothing."""
        return nullcontext(_ignore)


def _ignore(done_work: float, total_work: float, note: str | None) -> None:
    """Progress that nobody watches."""


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


@final
@dataclass(frozen=True)
class Audit:
    """A finished audit: where its files are and what they say."""

    run: Run
    summary: Summary
    timings: Mapping[str, float] = field(default_factory=dict)


@final
class Stopwatch:
    """Seconds spent in each named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, label: str, began: float) -> None:
        """Add the time since `began` (time.perf_counter) to `label`."""
        self.seconds[label] = self.seconds.get(label, 0.0) + time.perf_counter() - began


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


def plan_run(dataset: PreferenceDataset, policy: Policy, evidence: EvidenceConfig) -> Plan:
    """What identifies the evidence this audit needs."""
    settings = asdict(evidence) | {"beta": evidence.beta or DEFAULT_BETA[dataset.modality]}
    return Plan(
        dataset=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        model=policy.identity.id,
        model_fingerprint=policy.identity.fingerprint,
        evidence=settings,
        modality=dataset.modality,
    )


def audit(
    dataset: PreferenceDataset,
    policy: Policy,
    *,
    evidence: EvidenceConfig | None = None,
    score: ScoreConfig | None = None,
    runs_directory: Path = Path("runs"),
    run_directory: Path | None = None,
    command: str = "",
    reporter: Reporter | None = None,
) -> Audit:
    """Audit `dataset` with `policy`; finished stages of the same plan are reused.

    Raises DataError, ModelError, RunError or EvidenceError; nothing already written is lost.
    """
    import pyarrow.parquet as pq

    from noisescope.verdicts import score_run

    evidence, reporter = evidence or EvidenceConfig(), reporter or Silent()
    if policy.modality != dataset.modality:
        raise UsageError(
            f"{dataset.name} holds {dataset.modality} pairs, {policy.identity.id} judges "
            f"{policy.modality}",
            hint="Name a fitting model with --model.",
        )
    plan = plan_run(dataset, policy, evidence)
    run = open_run(runs_directory, plan, run_directory)
    watch = Stopwatch()
    if not run.pairs_path.is_file():
        write_atomic(
            run.pairs_path, lambda path: pq.write_table(dataset.table, path, compression="zstd")
        )
    if run.complete and run.margin_parts():
        reporter.note(f"evidence of {run.directory} is complete: only verdicts are made again")
    else:
        gather = KINDS[evidence.kind]
        gather(dataset, policy, evidence, run, plan, reporter, watch)
    began = time.perf_counter()
    summary = score_run(run.directory, score)
    watch.time("verdicts", began)
    run.write_manifest(_manifest(dataset, policy, run, plan, summary, watch, command))
    return Audit(run, summary, watch.seconds)


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


#: Kinds of replica: how each gathers margins.
KINDS: dict[str, Callable[..., None]] = {"head": gather_heads}


def cache_directory(run: Run) -> Path:
    """Where features are kept, shared by all runs beside this one."""
    return run.directory.parent / ".cache" / "features"


def _manifest(
    dataset: PreferenceDataset,
    policy: Policy,
    run: Run,
    plan: Plan,
    summary: Summary,
    watch: Stopwatch,
    command: str,
) -> dict[str, Any]:
    """Everything needed to trust and repeat the run. Secrets never enter: no environment."""
    earlier = run.manifest().get("timings", {}) if run.complete else {}
    return plan.to_json() | {
        "resolved": dataset.resolved,
        "adapter": dataset.adapter,
        "facts": dataset.facts.to_json(),
        "model_revision": policy.identity.revision,
        "summary": summary.to_json(),
        "command": command,
        "versions": versions(),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "timings": {**earlier, **{name: round(s, 3) for name, s in watch.seconds.items()}},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def versions() -> dict[str, str]:
    """Versions of noisescope, Python and the libraries that decide numbers."""
    from importlib import metadata

    from noisescope import __version__

    names = ("torch", "transformers", "diffusers", "numpy", "scipy", "duckdb", "pyarrow")
    return {"noisescope": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in names
    }
