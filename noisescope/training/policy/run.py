"""Train a policy on weighted preference pairs: the function behind `noisescope train`.

    done = fine_tune(dataset, policy, settled("text", objective="adaptive-dpo"),
                     weights=run_weights(run, dataset, WeightRule()), output=Path("tuned"))
    done.manifest()["result"]["last"]["accuracy"]

Killed at any point, the same call continues from the last checkpoint to the same weights.
"""

from __future__ import annotations

import importlib.util
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from noisescope.errors import DataError, EvidenceError, ModelError, UsageError
from noisescope.models import Policy
from noisescope.models.readable import judged_by
from noisescope.pairs import PreferenceDataset
from noisescope.progress import Reporter, Silent
from noisescope.storage.files import slug
from noisescope.storage.run import versions
from noisescope.training.batch_order import Stream
from noisescope.training.config import EMA_DECAYS, TrainConfig
from noisescope.training.loop import train
from noisescope.training.objectives import REPO, Objective
from noisescope.training.pair_data import pair_data
from noisescope.training.policy import TrainablePolicy
from noisescope.training.policy.adaptive import Online, Reliability
from noisescope.training.policy.build import make_trainable, online_config
from noisescope.training.policy.distributed import check_launch
from noisescope.training.policy.learner import PreferenceLearner, total_over, validate
from noisescope.training.policy.logs import Tracker, line, summary
from noisescope.training.policy.output import Trained, TrainPlan, open_trained
from noisescope.training.policy.pair_weights import PairWeights
from noisescope.training.policy.settings import ADAPTIVE, TrainSettings
from noisescope.training.policy.split import Split, split_pairs
from noisescope.training.state import STATE_FILE, Progress

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Seconds between two lines of progress.
EVERY_SECONDS = 10.0


def run_steps(
    learner: PreferenceLearner,
    objective: Objective,
    settings: TrainSettings,
    split: Split,
    plan: TrainPlan,
    trained: Trained,
    reporter: Reporter,
    accelerator: Accelerator,
    report_to: str | None,
) -> Progress:
    """The loop, with validation, history, trackers and progress after every step."""
    steps = settings.total_steps(len(split.train))
    config = TrainConfig(
        steps=steps,
        learning_rate=settings.learning_rate,
        schedule=settings.schedule,
        warmup=settings.warmup_share(steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        ema=EMA_DECAYS if settings.online == "ema" else (),
        save_every=settings.save_every,
        evidence=plan.fingerprint,
    )
    tracker = Tracker(report_to, accelerator, trained.directory, reporter)
    tracker.begin(settings)
    if (trained.directory / STATE_FILE).exists():
        reporter.note(f"continuing from {trained.directory / STATE_FILE}")
    label = f"{settings.objective} on {len(split.train):,} pairs, {steps:,} steps"
    reporter.note(label)
    shown = time.monotonic()
    with reporter.stage("training") as advance:

        def after_step(progress: Progress) -> bool:
            nonlocal shown
            learner.finish(progress.averages, lambda t: total_over(t, accelerator))
            record = progress.history[-1]
            due = progress.step == steps or progress.step % settings.save_every == 0
            if due and len(split.validation):
                record |= validate(learner, objective, split.validation, plan.modality, accelerator)
            if due and accelerator.is_main_process:
                trained.write_history(progress.history)
            tracker.log(record, progress.step)
            speak = due or time.monotonic() - shown >= EVERY_SECONDS
            if speak:
                shown = time.monotonic()
            advance(progress.step, steps, line(record, steps) if speak else None)
            return False

        return train(
            learner,
            objective,
            config,
            trained.directory,
            accelerator=accelerator,
            after_step=after_step,
            buffers=learner.buffers,
            retry=learner.retry,
            before_retry=learner.forget,
        )


#: Where steps may be logged, each by the package of that name.
TRACKERS = ("tensorboard", "wandb", "mlflow")


def fine_tune(
    dataset: PreferenceDataset,
    policy: Policy,
    settings: TrainSettings,
    *,
    weights: PairWeights | None = None,
    output: Path | None = None,
    reporter: Reporter | None = None,
    report_to: str | None = None,
    mixed_precision: str = "no",
    command: str = "",
) -> Trained:
    """Train `policy` (its model is changed in place until the end) and write the result.

    `output` None: `trained/<dataset>-<objective>-<fingerprint8>`. Raises UsageError, DataError,
    ModelError, RunError or EvidenceError; the last checkpoint is kept.
    """
    import torch
    from accelerate import Accelerator

    reporter = reporter or Silent()
    objective = check_settings(settings, report_to)
    dataset, weights = _readable(dataset, policy, weights, reporter)
    _check_weights(settings, weights)
    plan = _plan(dataset, policy, settings, weights, mixed_precision)
    name = f"{slug(dataset.name)}-{settings.objective}-{plan.fingerprint[:8]}"
    directory = output or Path("trained") / name
    try:
        accelerator = Accelerator(
            cpu=policy.device.type == "cpu",
            mixed_precision=mixed_precision,
            log_with=report_to,
            project_dir=str(directory) if report_to else None,
        )
    except ValueError as error:  # accelerate keeps one precision a process
        raise UsageError(
            "this process has trained with another precision, or on another device",
            hint="Start a new Python process for this training.",
        ) from error
    with ExitStack() as stack:
        with accelerator.main_process_first():
            trained = stack.enter_context(
                open_trained(plan, directory, writes=accelerator.is_main_process)
            )
        if trained.complete:
            reporter.note(f"{directory} is complete: nothing is trained again")
            return trained
        torch.manual_seed(settings.seed)
        began = time.perf_counter()
        table = dataset.table if weights is None else weights.corrected(dataset.table)
        data = pair_data(table)
        trainable: TrainablePolicy | None = None
        try:
            trainable, same = make_trainable(policy, data, settings, trained, reporter, accelerator)
            split = split_pairs(data, settings, weights, same)
            for reason, count in split.aside.items():
                reporter.note(f"{count:,} pairs set aside: {reason}")
            if not split.by_prompt:
                reporter.note(
                    "too few prompts to hold out whole ones: training and validation share prompts"
                )
            learner = _learner(dataset, trainable, settings, objective, split, weights, accelerator)
            progress = run_steps(
                learner, objective, settings, split, plan, trained, reporter, accelerator, report_to
            )
            if accelerator.is_main_process:
                files = trainable.save(directory)
                trained.write_history(progress.history)
                trained.finish(
                    {
                        "plan": plan.to_json(),
                        "resolved": dataset.resolved,
                        "result": summary(progress.history, split),
                        "files": files,
                        "seconds": round(time.perf_counter() - began, 1),
                        "processes": accelerator.num_processes,
                        "command": command,
                        "versions": versions(),
                        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    }
                )
            accelerator.wait_for_everyone()
        except (UsageError, DataError, ModelError, EvidenceError):
            if accelerator.is_main_process:
                trained.abandon()
            raise
        finally:
            if trainable is not None:
                trainable.detach()
            if report_to is not None:
                accelerator.end_training()
        return trained


def _check_weights(settings: TrainSettings, weights: PairWeights | None) -> None:
    """Raise UsageError if weights are needed, or given and not used."""
    if settings.objective in ADAPTIVE and weights is None and settings.online is None:
        raise UsageError(
            f"--objective {settings.objective} needs weights, and there are none",
            hint="Remove --weights to use the dataset's audit, or give --online replicas.",
        )
    if weights is not None:
        settings.check_scheme(weights.scheme)
    if settings.online is not None and weights is not None:
        raise UsageError(
            "--online computes its own weights, so --weights cannot be used with it",
            hint="Remove one of them.",
        )


def _readable(
    dataset: PreferenceDataset, policy: Policy, weights: PairWeights | None, reporter: Reporter
) -> tuple[PreferenceDataset, PairWeights | None]:
    """The pairs that the policy's chat template renders, and their weights."""
    found = judged_by(policy, dataset, keep_same=True)
    for note in found.facts.notes[len(dataset.facts.notes) :]:
        reporter.note(note)
    if weights is None or len(found) == len(dataset):
        return found, weights
    kept = np.isin(dataset.table["pair_id"].to_pylist(), found.table["pair_id"].to_pylist())
    return found, weights.among(kept)


def check_settings(settings: TrainSettings, report_to: str | None = None) -> Objective:
    """The objective of `settings`. Raises UsageError for what cannot be trained: call it before
    anything is computed."""
    objective = settings.make_objective()
    check_launch()
    online_config(settings)
    if report_to is not None and report_to not in TRACKERS:
        raise UsageError(
            f"--report-to must be one of {', '.join(TRACKERS)}, not {report_to}",
            hint="Every step is in history.jsonl anyway.",
        )
    if report_to is not None and importlib.util.find_spec(report_to) is None:
        raise UsageError(
            f"--report-to {report_to}: the package {report_to} is not installed",
            hint=f"pip install {report_to}",
        )
    return objective


def _plan(
    dataset: PreferenceDataset,
    policy: Policy,
    settings: TrainSettings,
    weights: PairWeights | None,
    mixed_precision: str,
) -> TrainPlan:
    description = "none (every pair counts alike)" if weights is None else weights.description
    if settings.online is not None:
        description = f"made while training (online {settings.online})"
    return TrainPlan(
        dataset=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        model=policy.identity.id,
        model_fingerprint=policy.identity.fingerprint,
        modality=dataset.modality,
        weights=description,
        weights_fingerprint="" if weights is None else weights.fingerprint,
        settings=settings.to_json()
        | ({} if mixed_precision == "no" else {"mixed_precision": mixed_precision}),
    )


def _learner(
    dataset: PreferenceDataset,
    trainable: TrainablePolicy,
    settings: TrainSettings,
    objective: Objective,
    split: Split,
    weights: PairWeights | None,
    accelerator: Accelerator,
) -> PreferenceLearner:
    config = online_config(settings, dataset.modality)
    data = trainable.data
    reliability = None
    if isinstance(objective, REPO):
        annotators = dataset.table.column("annotator").to_pylist()
        reliability = Reliability(annotators, objective.reliability)
    stream = Stream(split.train, data.chosen, data.rejected, seed=(settings.seed, 0), cluster=1)
    return PreferenceLearner(
        trainable,
        stream,
        objective,
        batch=settings.batch,
        accumulation=settings.accumulation,
        processes=accelerator.num_processes,
        weight=None if weights is None else weights.weight,
        gamma=None if weights is None else weights.gamma,
        online=None if config is None else Online(config),
        reliability=reliability,
    )
