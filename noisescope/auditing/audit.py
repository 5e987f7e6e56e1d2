"""An audit: dataset and model in, evidence and verdicts out. What `noisescope score` calls.

    audit(load("pairs.jsonl"), load_policy("models/smollm2", dataset)).summary.flip_rate
    fine_tune(dataset, policy, evidence=EvidenceConfig("lora"))   # the evidence alone

Stages: pairs -> features (cached) or fine-tuning -> margins -> scores -> manifest. Each stage's
file is whole or absent, so the same call after a kill continues where it stopped.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import UsageError
from noisescope.models import Policy
from noisescope.pairs import PreferenceDataset
from noisescope.progress import Reporter, Silent, Stopwatch
from noisescope.replicas.gather import EvidenceConfig, gather_heads
from noisescope.replicas.gather_adapters import gather_adapters
from noisescope.replicas.gather_lora import gather_lora
from noisescope.storage.files import write_atomic
from noisescope.storage.run import Plan, Run, open_run, versions

if TYPE_CHECKING:
    from noisescope.scoring.score import ScoreConfig
    from noisescope.scoring.summary import Summary

#: How each kind of `EvidenceConfig.kind` gathers margins; what it did, for the manifest.
GATHER: dict[str, Callable[..., dict[str, Any]]] = {
    "head": gather_heads,
    "lora": gather_lora,
    "adapters": gather_adapters,
}


@final
@dataclass(frozen=True)
class Audit:
    """A finished audit: where its files are and what they say."""

    run: Run
    summary: Summary
    timings: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class FineTuned:
    """Replicas that are done: where they are, and whether they were before."""

    run: Run
    plan: Plan
    reused: bool
    timings: Mapping[str, float] = field(default_factory=dict)


def plan_run(dataset: PreferenceDataset, policy: Policy, evidence: EvidenceConfig) -> Plan:
    """What identifies the evidence this audit needs."""
    return Plan(
        dataset=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        model=policy.identity.id,
        model_fingerprint=policy.identity.fingerprint,
        evidence=evidence.settings(dataset.modality),
        modality=dataset.modality,
    )


def fine_tune(
    dataset: PreferenceDataset,
    policy: Policy,
    *,
    evidence: EvidenceConfig | None = None,
    runs_directory: Path = Path("runs"),
    run_directory: Path | None = None,
    command: str = "",
    reporter: Reporter | None = None,
) -> FineTuned:
    """Replicas and their margins, and a manifest that says so: `audit` then only makes verdicts.

    Raises DataError, ModelError, RunError or EvidenceError; nothing already written is lost.
    """
    evidence, reporter = evidence or EvidenceConfig(), reporter or Silent()
    check_fit(dataset, policy, evidence)
    dataset = prepared(dataset, policy, reporter)
    plan = plan_run(dataset, policy, evidence)
    run = open_run(runs_directory, plan, run_directory)
    watch = Stopwatch()
    for name in run.drop_damaged():
        reporter.note(f"{run.directory / name} is damaged: making it again")
    if not run.complete or not run.pairs_path.is_file():
        write_pairs(run, dataset)
    if run.evidence_complete:
        return FineTuned(run, plan, True)
    done = GATHER[evidence.kind](dataset, policy, evidence, run, reporter, watch)
    origin = origin_of(dataset, policy, command)
    return record_evidence(run, plan, origin, done, watch)


def check_fit(dataset: PreferenceDataset, policy: Policy, evidence: EvidenceConfig) -> None:
    """Raise UsageError where `policy` cannot judge `dataset`, or `evidence` makes no sense."""
    if policy.modality != dataset.modality:
        raise UsageError(
            f"{dataset.name} holds {dataset.modality} pairs, {policy.identity.id} judges "
            f"{policy.modality}",
            hint="Name a fitting model with --model.",
        )
    evidence.check(dataset.modality)


def prepared(dataset: PreferenceDataset, policy: Policy, reporter: Reporter) -> PreferenceDataset:
    """The pairs that `policy` can judge; what was set aside and cut is noted once."""
    from noisescope.models.readable import judged_by

    found = judged_by(policy, dataset)
    for note in found.facts.notes[len(dataset.facts.notes) :]:
        reporter.note(note)
    return found


def write_pairs(run: Run, dataset: PreferenceDataset) -> None:
    """Write pairs.parquet: the same bytes whoever writes it."""
    import pyarrow.parquet as pq

    table = dataset.table
    write_atomic(run.pairs_path, lambda path: pq.write_table(table, path, compression="zstd"))


def record_evidence(
    run: Run, plan: Plan, origin: Origin, training: Mapping[str, Any], watch: Stopwatch
) -> FineTuned:
    """The manifest of a run whose margins are whole and that has no verdicts yet."""
    facts = {
        "training": dict(training),
        "evidence_files": run.evidence_files(),
        "scores": "absent",
        "timings": _rounded(watch),
    }
    run.write_manifest(_facts(plan, origin) | facts)
    return FineTuned(run, plan, False, watch.seconds)


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
    reporter = reporter or Silent()
    dataset = prepared(dataset, policy, reporter)
    tuned = fine_tune(
        dataset,
        policy,
        evidence=evidence,
        runs_directory=runs_directory,
        run_directory=run_directory,
        command=command,
        reporter=reporter,
    )
    return judge(tuned, origin_of(dataset, policy, command), score, reporter)


def judge(tuned: FineTuned, origin: Origin, score: ScoreConfig | None, reporter: Reporter) -> Audit:
    """Verdicts from a run's margins, and the manifest that says they are there."""
    from noisescope.scoring.score import ScoreConfig, score_run

    run, watch = tuned.run, Stopwatch()
    if tuned.reused:
        reporter.note(f"evidence of {run.directory} is complete: only verdicts are made again")
    began = time.perf_counter()
    summary = score_run(run.directory, score)
    summary = replace(summary, notes=(*summary.notes, *origin.facts.get("notes", ())))
    watch.time("verdicts", began)
    before = run.evidence_manifest()
    facts = {
        "training": before.get("training", {}),
        "evidence_files": run.evidence_files(),
        "scores": "complete",
        "constants": asdict(score or ScoreConfig()),
        "summary": summary.to_json(),
        "timings": before.get("timings", {}) | _rounded(watch),
    }
    run.write_manifest(_facts(tuned.plan, origin) | facts)
    return Audit(run, summary, {**tuned.timings, **watch.seconds})


@final
@dataclass(frozen=True)
class Origin:
    """What a run came from, for its manifest: facts of dataset and model, and the command."""

    resolved: str
    adapter: str
    facts: Mapping[str, Any]
    model_revision: str | None
    command: str
    columns: Mapping[str, str] | None = None
    pairs_of: str = "all"


def origin_of(dataset: PreferenceDataset, policy: Policy, command: str) -> Origin:
    """The origin of an audit of `dataset` with `policy`."""
    revision = policy.identity.revision
    return Origin(
        dataset.resolved,
        dataset.adapter,
        dataset.facts.to_json(),
        revision,
        command,
        dataset.columns,
        dataset.pairs,
    )


def _rounded(watch: Stopwatch) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in watch.seconds.items()}


def _facts(plan: Plan, origin: Origin) -> dict[str, Any]:
    """Everything needed to trust and repeat the run. Secrets never enter: no environment."""
    return plan.to_json() | {
        "evidence_state": "complete",
        **asdict(origin),
        "versions": versions(),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
