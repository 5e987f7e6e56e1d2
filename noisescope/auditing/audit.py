"""Run one audit: from a dataset and a model to margins, scores and a manifest.

    audit(load("pairs.jsonl"), load_policy("models/smollm2", dataset)).summary.flip_rate
    fine_tune(dataset, policy, evidence=EvidenceConfig("lora"))   # the margins alone

Stages: pairs -> features (cached) or replicas -> margins -> scores -> manifest. Each stage's file
is whole or absent, so the same call after a kill continues where it stopped. Under a launcher every
rank makes the same call with its `world`; rank 0 alone writes margins and scores.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from noisescope.auditing.ranks import World
from noisescope.errors import RunError, UsageError
from noisescope.models import Policy
from noisescope.pairs import PreferenceDataset
from noisescope.progress import Reporter, Silent, Stopwatch
from noisescope.replicas.gather import (
    EvidenceConfig,
    Work,
    Worker,
    cache_directory,
)
from noisescope.replicas.gather_adapters import AdapterWork
from noisescope.replicas.gather_heads import HeadWork
from noisescope.replicas.gather_lora import LoraWork
from noisescope.storage.files import write_atomic
from noisescope.storage.run import Plan, Run, open_run, versions

if TYPE_CHECKING:
    from noisescope.replicas.sources import Opened
    from noisescope.scoring.score import ScoreConfig
    from noisescope.scoring.summary import Summary

#: What each kind of `EvidenceConfig.kind` computes.
WORK: dict[str, type[Work]] = {"head": HeadWork, "lora": LoraWork, "adapters": AdapterWork}


@final
@dataclass(frozen=True)
class Audit:
    """A finished audit: where its files are and what they contain."""

    run: Run
    summary: Summary
    timings: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class FineTuned:
    """A run whose margins are complete, and whether they were before."""

    run: Run
    plan: Plan
    reused: bool
    timings: Mapping[str, float] = field(default_factory=dict)


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
    reading: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Job:
    """The inputs of one audit, and the plan that follows from them."""

    dataset: PreferenceDataset
    policy: Policy
    config: EvidenceConfig
    plan: Plan
    origin: Origin
    sources: tuple[Opened, ...] = ()

    @classmethod
    def of(
        cls,
        dataset: PreferenceDataset,
        policy: Policy,
        config: EvidenceConfig,
        command: str,
        reporter: Reporter,
        replicas: Callable[[EvidenceConfig], FineTuned] | None = None,
        runs_directory: Path = Path("runs"),
    ) -> Job:
        """Check the inputs, set aside pairs that `policy` cannot judge, and plan the run.

        `replicas` makes the margins of other replicas that are evidence. A judge among the
        sources is asked, and its answers kept in `runs_directory`. Raises UsageError if the
        inputs do not go together.
        """
        from noisescope.models.readable import judged_by

        if policy.modality != dataset.modality:
            raise UsageError(
                f"{dataset.name} has {dataset.modality} pairs, {policy.identity.id} is a model of "
                f"{policy.modality}",
                hint="Name a model of that modality with --model.",
            )
        config.check(dataset.modality)
        if config.kind == "head" or config.folds_by:
            from noisescope.replicas.groups import check_folds_by

            check_folds_by(dataset.table, config.held_out_together)
        known = len(dataset.facts.notes)
        dataset = judged_by(policy, dataset)
        for note in dataset.facts.notes[known:]:
            reporter.note(note)
        if config.kind == "lora" and config.folds_by is None:
            from noisescope.replicas.groups import default_halves

            by, remark = default_halves(dataset.table)
            config = replace(config, folds_by=by)
            if remark:
                reporter.note(remark)
        settings = config.settings(dataset.modality)
        sources: tuple[Opened, ...] = ()
        if config.sources:
            from noisescope.auditing.asking import open_judge
            from noisescope.auditing.replica_sources import open_replicas
            from noisescope.replicas.sources import JUDGE, REPLICAS, Source, open_source, parsed

            opened = []
            for one in parsed(config.sources):
                if isinstance(one, Source) and one.kind in REPLICAS:
                    assert replicas is not None  # `shards.require_divisible`
                    opened.append(open_replicas(one, dataset, config, replicas))
                elif isinstance(one, Source) and one.kind == JUDGE:
                    where = (runs_directory, command, reporter)
                    opened.append(open_judge(one, dataset, policy, config, *where))
                else:
                    opened.append(open_source(one, dataset, policy))
            sources = tuple(opened)
            settings |= {"sources": [source.settings() for source in sources]}
        plan = Plan(
            dataset=dataset.name,
            dataset_fingerprint=dataset.fingerprint,
            model=policy.identity.id,
            model_fingerprint=policy.identity.fingerprint,
            evidence=settings,
            modality=dataset.modality,
        )
        origin = Origin(
            dataset.resolved,
            dataset.adapter,
            dataset.facts.to_json(),
            policy.identity.revision,
            command,
            dataset.columns,
            dataset.pairs,
            dataset.reading,
        )
        return cls(dataset, policy, config, plan, origin, sources)

    def work(self, run: Run) -> Work:
        """What there is to compute for `run`."""
        return work_of(run, self.plan, self.dataset.table)

    def write_pairs(self, run: Run) -> None:
        """Write pairs.parquet: the same bytes on every machine."""
        import pyarrow.parquet as pq

        table = self.dataset.table
        write_atomic(run.pairs_path, lambda path: pq.write_table(table, path, compression="zstd"))


def work_of(run: Run, plan: Plan, table: Any) -> Work:
    """What there is to compute for the run of `plan` over the pairs `table`."""
    return WORK[plan.evidence["kind"]](run, plan, table)


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
    world: World | None = None,
) -> Audit:
    """Audit `dataset` with `policy`; finished stages of the same plan are reused.

    Under a launcher, ranks other than 0 leave the `joined` block instead of returning. Raises
    UsageError, DataError, ModelError, RunError or EvidenceError; finished files are kept.
    """
    reporter, world = reporter or Silent(), world or World()
    config = evidence or EvidenceConfig()
    replicas = _maker(dataset, policy, runs_directory, run_directory, command, reporter)
    job = Job.of(dataset, policy, config, command, reporter, replicas, runs_directory)
    with _opened(job, runs_directory, run_directory, world) as run:
        tuned = make_margins(job, run, reporter, world)
        return score_margins(tuned, job.origin, score, reporter)


def fine_tune(
    dataset: PreferenceDataset,
    policy: Policy,
    *,
    evidence: EvidenceConfig | None = None,
    runs_directory: Path = Path("runs"),
    run_directory: Path | None = None,
    command: str = "",
    reporter: Reporter | None = None,
    world: World | None = None,
) -> FineTuned:
    """Make the replicas and their margins, and a manifest without scores, which `audit` adds.

    Errors, ranks and reuse as in `audit`.
    """
    reporter, world = reporter or Silent(), world or World()
    config = evidence or EvidenceConfig()
    replicas = _maker(dataset, policy, runs_directory, run_directory, command, reporter)
    job = Job.of(dataset, policy, config, command, reporter, replicas, runs_directory)
    with _opened(job, runs_directory, run_directory, world) as run:
        return make_margins(job, run, reporter, world)


def _maker(
    dataset: PreferenceDataset,
    policy: Policy,
    runs_directory: Path,
    run_directory: Path | None,
    command: str,
    reporter: Reporter,
) -> Callable[[EvidenceConfig], FineTuned]:
    """A function that makes other replicas of the same pairs, beside the run, or finds them."""
    place = run_directory.parent if run_directory else runs_directory

    def make(config: EvidenceConfig) -> FineTuned:
        return fine_tune(
            dataset,
            policy,
            evidence=config,
            runs_directory=place,
            command=command,
            reporter=reporter,
        )

    return make


@contextmanager
def _opened(
    job: Job, runs_directory: Path, run_directory: Path | None, world: World
) -> Iterator[Run]:
    """The run directory of `job`, locked by rank 0 for all ranks."""
    from noisescope import __version__

    world.require_same(
        {
            "version of noisescope": __version__,
            "dataset": job.plan.dataset_fingerprint,
            "model": job.plan.model_fingerprint,
            "plan": job.plan.fingerprint,
        }
    )
    directory = run_directory or runs_directory / job.plan.directory_name
    others = nullcontext(Run(directory))
    with open_run(runs_directory, job.plan, run_directory) if world.first else others as run:
        yield run


def make_margins(job: Job, run: Run, reporter: Reporter, world: World) -> FineTuned:
    """Compute what is missing, divided among the ranks, and write margins and manifest."""
    watch, work = Stopwatch(), job.work(run)
    if world.first:
        for name in run.drop_damaged():
            reporter.note(f"{run.directory / name} is damaged: making it again")
        if not run.complete or not run.pairs_path.is_file():
            job.write_pairs(run)
    if world.size > 1:
        compute_over_ranks(job, run, work, reporter, world)
    world.leave()
    if job.sources:
        from noisescope.replicas.outside import fill

        fill(job.sources, run, cache_directory(run), job.dataset.table, reporter)
    if run.evidence_complete:
        return FineTuned(run, job.plan, True)
    training = work.make(Worker(job.policy, job.config, reporter), watch)
    return record_margins(run, job.plan, job.origin, training, watch)


def compute_over_ranks(job: Job, run: Run, work: Work, reporter: Reporter, world: World) -> None:
    """Compute what is missing, each rank its share of it.

    Rank 0 decides what is missing, so a job that continues a killed one is divided evenly too. All
    ranks write to one file system; raises RunError if rank 0 cannot see what another wrote.
    """
    missing = work.missing() if world.first and not run.evidence_complete else []
    todo = _unpacked(world.from_first(_packed(missing, len(work))), len(work))
    if not todo:
        return
    reporter.note(
        f"{len(todo):,} of {len(work):,} {work.unit} to compute over {world.size:,} ranks"
    )
    shares, _ = work.divide(job.policy, todo, world.size)
    mine = [unit for unit, share in zip(todo, shares, strict=True) if share == world.rank]
    by = Worker(job.policy, job.config, reporter)
    work.compute(by, mine, world.share, world.exchange)
    world.exchange()
    if world.first and (lost := work.missing()):
        raise RunError(
            f"{len(lost):,} of {len(work):,} {work.unit} {work.without} that rank 0 can see: other "
            f"ranks computed them, and not in {run.directory.parent}",
            hint="Ranks on several hosts need --runs-dir on a file system they share; else use "
            "--shard i/n on each and `noisescope merge`.",
        )


def _packed(units: Sequence[int], count: int) -> str:
    """`units` of `count`, a bit each, as hex digits."""
    import numpy as np

    bits = np.zeros(count, bool)
    bits[list(units)] = True
    return np.packbits(bits).tobytes().hex()


def _unpacked(text: str, count: int) -> list[int]:
    import numpy as np

    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count)
    units: list[int] = np.flatnonzero(bits).tolist()
    return units


def record_margins(
    run: Run, plan: Plan, origin: Origin, training: Mapping[str, Any], watch: Stopwatch
) -> FineTuned:
    """Write the manifest of a run whose margins are complete and that has no scores yet."""
    facts = {
        "training": dict(training),
        "evidence_files": run.evidence_files(),
        "scores": "absent",
        "timings": _rounded(watch),
    }
    run.write_manifest(_facts(plan, origin) | run.beside(origin.resolved) | facts)
    return FineTuned(run, plan, False, watch.seconds)


def score_margins(
    tuned: FineTuned, origin: Origin, score: ScoreConfig | None, reporter: Reporter
) -> Audit:
    """Score the pairs from a run's margins, and write the manifest of the finished run."""
    from noisescope.scoring.score import ScoreConfig, score_run

    run, watch = tuned.run, Stopwatch()
    if tuned.reused:
        reporter.note(f"evidence of {run.directory} is complete: only verdicts are made again")
    began = time.perf_counter()
    with reporter.stage("verdicts"):
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
    run.write_manifest(_facts(tuned.plan, origin) | run.beside(origin.resolved) | facts)
    return Audit(run, summary, {**tuned.timings, **watch.seconds})


def _rounded(watch: Stopwatch) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in watch.seconds.items()}


def _facts(plan: Plan, origin: Origin) -> dict[str, Any]:
    """Everything needed to trust and repeat the run; no environment, which may hold secrets."""
    return plan.to_json() | {
        "evidence_state": "complete",
        **asdict(origin),
        "versions": versions(),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
