"""Fine-tuning a policy on weighted preference pairs: what `noisescope train` calls.

    done = fine_tune(dataset, policy, settled("text", objective="adaptive-dpo"),
                     weights=run_weights(run, dataset, WeightRule()), output=Path("tuned"))
    done.manifest()["result"]["last"]["accuracy"]

Killed at any point, the same call continues from the last checkpoint to the same weights.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING

from noisescope.auditing import Silent, versions
from noisescope.errors import DataError, EvidenceError, ModelError, UsageError
from noisescope.gathering import Reporter
from noisescope.learners import Trainee
from noisescope.learners.launching import check_launch
from noisescope.learners.online import Online
from noisescope.learners.preference import PreferenceLearner
from noisescope.learners.reliability import Reliability
from noisescope.learners.settings import ADAPTIVE, TrainSettings
from noisescope.learners.split import Split, split_pairs
from noisescope.learners.steps import run_steps
from noisescope.learners.summary import summary
from noisescope.learners.trained import Trained, TrainPlan, open_trained
from noisescope.learners.trainees import make_trainee, online_config
from noisescope.objectives import REPO, Objective
from noisescope.pairs import Modality, PreferenceDataset
from noisescope.policies import Policy
from noisescope.replicas.draws import Stream
from noisescope.replicas.packed import pair_data
from noisescope.storage import slug
from noisescope.weighting import PairWeights

if TYPE_CHECKING:
    from accelerate import Accelerator

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
    device: str | None = None,
) -> Trained:
    """Train `policy` (its model is changed in place until the end) and write the result.

    `output` None: `trained/<dataset>-<objective>-<fingerprint8>`. `device`: where to train if not
    where the policy lies; only FSDP moves it, piece by piece, and leaves it cut. Raises
    UsageError, DataError, ModelError, RunError or EvidenceError; the last checkpoint stays.
    """
    import torch
    from accelerate import Accelerator

    reporter = reporter or Silent()
    objective = check_settings(settings, report_to, dataset.modality)
    _check_weights(settings, weights)
    plan = _plan(dataset, policy, settings, weights, mixed_precision)
    name = f"{slug(dataset.name)}-{settings.objective}-{plan.fingerprint[:8]}"
    directory = output or Path("trained") / name
    try:
        accelerator = Accelerator(
            cpu=(device or policy.device.type).startswith("cpu"),
            mixed_precision=mixed_precision,
            log_with=report_to,
            project_dir=str(directory) if report_to else None,
        )
    except ValueError as error:  # accelerate keeps one precision a process
        raise UsageError(
            "this process has trained with another precision, or on another device",
            hint="Start a new Python process for this training.",
        ) from error
    with accelerator.main_process_first():
        trained = open_trained(plan, directory, writes=accelerator.is_main_process)
    if trained.complete:
        reporter.note(f"{directory} is complete: nothing is trained again")
        return trained
    torch.manual_seed(settings.seed)
    began = time.perf_counter()
    data = pair_data(dataset.table)
    trainee: Trainee | None = None
    try:
        trainee, same = make_trainee(policy, data, settings, trained, reporter, accelerator)
        split = split_pairs(data, settings, weights, same)
        for reason, count in split.aside.items():
            reporter.note(f"{count:,} pairs set aside: {reason}")
        if not split.by_prompt:
            reporter.note(
                "too few prompts to hold out whole ones: prompts that are trained on validate too"
            )
        learner = _learner(dataset, trainee, settings, objective, split, weights, accelerator)
        progress = run_steps(
            learner, objective, settings, split, plan, trained, reporter, accelerator, report_to
        )
        files = trainee.save(directory, writes=accelerator.is_main_process)
        if accelerator.is_main_process:
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
        if trainee is not None:
            trainee.detach()
        if report_to is not None:
            accelerator.end_training()
    return trained


def _check_weights(settings: TrainSettings, weights: PairWeights | None) -> None:
    """Raise UsageError where weights are needed or have no place."""
    if settings.objective in ADAPTIVE and weights is None and settings.online is None:
        raise UsageError(
            f"--objective {settings.objective} is made of weights, and there are none",
            hint="Leave --weights out to use the dataset's audit, or give --online replicas.",
        )
    if weights is not None:
        settings.check_scheme(weights.scheme)
    if settings.online is not None and weights is not None:
        raise UsageError(
            "--online makes its own weights: --weights has no place beside it",
            hint="Leave one of them out.",
        )


def check_settings(
    settings: TrainSettings, report_to: str | None = None, modality: Modality = "text"
) -> Objective:
    """The objective asked for. Raises UsageError for what cannot be trained: call it before
    anything is computed."""
    objective = settings.make_objective()
    check_launch(settings, modality)
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
    said = "none (every pair counts alike)" if weights is None else weights.said
    if settings.online is not None:
        said = f"made while training (online {settings.online})"
    return TrainPlan(
        dataset=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        model=policy.identity.id,
        model_fingerprint=policy.identity.fingerprint,
        modality=dataset.modality,
        weights=said,
        weights_fingerprint="" if weights is None else weights.fingerprint,
        settings=settings.to_json()
        | ({} if mixed_precision == "no" else {"mixed_precision": mixed_precision}),
    )


def _learner(
    dataset: PreferenceDataset,
    trainee: Trainee,
    settings: TrainSettings,
    objective: Objective,
    split: Split,
    weights: PairWeights | None,
    accelerator: Accelerator,
) -> PreferenceLearner:
    config = online_config(settings)
    data = trainee.data
    reliability = None
    if isinstance(objective, REPO):
        annotators = dataset.table.column("annotator").to_pylist()
        reliability = Reliability(annotators, objective.reliability)
    stream = Stream(split.train, data.chosen, data.rejected, seed=(settings.seed, 0), cluster=1)
    return PreferenceLearner(
        trainee,
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
