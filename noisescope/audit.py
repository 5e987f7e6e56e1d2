"""An audit: dataset and model in, evidence and verdicts out. What `noisescope score` calls.

    audit(load("pairs.jsonl"), load_policy("models/smollm2", dataset)).summary.flip_rate

Stages: pairs -> features (cached) -> replicas -> margins -> scores -> manifest. Each stage's
file is whole or absent, so the same call after a kill continues where it stopped.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import UsageError
from noisescope.gathering import KINDS, EvidenceConfig, Reporter, Stopwatch
from noisescope.pairs import Modality, PreferenceDataset
from noisescope.policies import Policy
from noisescope.run import Plan, Run, open_run
from noisescope.storage import write_atomic

if TYPE_CHECKING:
    from noisescope.features import Progress
    from noisescope.summary import Summary
    from noisescope.verdicts import ScoreConfig

#: beta of the published runs: 0.1 for text, 2500 for images (SDXL; SD1.5 uses 1000).
DEFAULT_BETA: dict[Modality, float] = {"text": 0.1, "image": 2500.0}


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
class Audit:
    """A finished audit: where its files are and what they say."""

    run: Run
    summary: Summary
    timings: Mapping[str, float] = field(default_factory=dict)


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
