"""Fine-tuning a policy on weighted preference pairs: what `noisescope train` calls.

    done = fine_tune(dataset, policy, settled("text", objective="adaptive-dpo"),
                     weights=run_weights(run, dataset, WeightRule()), output=Path("tuned"))
    done.manifest()["result"]["last"]["accuracy"]

Killed at any point, the same call continues from the last checkpoint to the same weights.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from noisescope.auditing import Silent, versions
from noisescope.errors import DataError, EvidenceError, ModelError, UsageError
from noisescope.gathering import Reporter
from noisescope.learners import Int, Trainee
from noisescope.learners.online import EMA_DECAYS, MODES, Mode, Online, OnlineConfig
from noisescope.learners.preference import PreferenceLearner
from noisescope.learners.reliability import Reliability
from noisescope.learners.settings import ADAPTIVE, TrainSettings
from noisescope.learners.trained import Trained, TrainPlan, open_trained
from noisescope.objectives import REPO, Objective
from noisescope.pairs import PreferenceDataset
from noisescope.policies import Policy
from noisescope.replicas.draws import Stream
from noisescope.replicas.folds import hashed
from noisescope.replicas.packed import PairData, pair_data
from noisescope.run import slug
from noisescope.training import STATE_FILE, Progress, TrainConfig, train
from noisescope.weighting import PairWeights

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

#: Where steps may be logged, each by the package of that name.
TRACKERS = ("tensorboard", "wandb", "mlflow")
#: Purpose number of the validation split's hash; folds and bootstrap have others.
VALIDATION_SALT = 77
#: Draws that validation averages over: images are noised, text is not.
VALIDATION_DRAWS = {"text": 1, "image": 4}
#: Seconds between two lines of progress.
EVERY_SECONDS = 10.0
MEASURES = ("loss", "margin", "accuracy", "weight", "light")


@final
@dataclass(frozen=True)
class Split:
    """Pairs to train on, pairs to validate on, and how many were set aside, by reason."""

    train: Int
    validation: Int
    aside: Mapping[str, int]


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
    ModelError, RunError or EvidenceError; the last checkpoint stays.
    """
    import torch
    from accelerate import Accelerator

    reporter = reporter or Silent()
    objective = check_settings(settings, report_to)
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
    with accelerator.main_process_first():
        trained = open_trained(plan, directory)
    if trained.complete:
        reporter.note(f"{directory} is complete: nothing is trained again")
        return trained
    torch.manual_seed(settings.seed)
    began = time.perf_counter()
    data = pair_data(dataset.table)
    trainee: Trainee | None = None
    try:
        trainee, same = _trainee(policy, data, settings, trained, reporter, accelerator)
        split = split_pairs(data, settings, weights, same)
        for reason, count in split.aside.items():
            reporter.note(f"{count:,} pairs set aside: {reason}")
        learner = _learner(dataset, trainee, settings, objective, split, weights, accelerator)
        progress = _run(
            learner, objective, settings, split, plan, trained, reporter, accelerator, report_to
        )
        if accelerator.is_main_process:
            files = trainee.save(directory)
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
    if settings.online is not None and weights is not None:
        raise UsageError(
            "--online makes its own weights: --weights has no place beside it",
            hint="Leave one of them out.",
        )


def check_settings(settings: TrainSettings, report_to: str | None = None) -> Objective:
    """The objective asked for. Raises UsageError for what cannot be trained: call it before
    anything is computed."""
    objective = settings.make_objective()
    _online(settings)
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
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true"):
            raise UsageError(
                f"{name} shards the weights, which this loop does not know",
                hint="Launch with plain data parallelism: accelerate launch --multi_gpu.",
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


def split_pairs(
    data: PairData, settings: TrainSettings, weights: PairWeights | None, same: Int
) -> Split:
    """Who trains and who validates: a function of (seed, content), repeats together.

    Raises DataError where no pair is left to train on.
    """
    count = len(data.pair_ids)
    share = hashed(data.fold_key, settings.seed, VALIDATION_SALT).astype(np.float64) / 2.0**64
    held = share < settings.validation
    usable = np.ones(count, bool)
    usable[same] = False
    aside = {"both sides read the same once cut to --max-length": int((~usable).sum())}
    if weights is not None:
        nothing = usable & ~held & (weights.weight == 0)
        aside["their weight is 0"] = int(nothing.sum())
        usable &= ~nothing
    found = Split(
        np.flatnonzero(usable & ~held),
        np.flatnonzero(usable & held),
        {reason: number for reason, number in aside.items() if number},
    )
    if not len(found.train):
        reasons = "; ".join(f"{number:,} {reason}" for reason, number in found.aside.items())
        raise DataError(
            f"no pair is left to train on: of {count:,}, {int(held.sum()):,} are held out"
            + (f"; {reasons}" if reasons else ""),
            hint="Lower --validation, raise --max-length, or use other weights.",
        )
    return found


def _trainee(
    policy: Policy,
    data: PairData,
    settings: TrainSettings,
    trained: Trained,
    reporter: Reporter,
    accelerator: Accelerator,
) -> tuple[Trainee, Int]:
    """The policy ready to train, and the pairs whose sides it cannot tell apart."""
    from noisescope.policies.causal_lm import CausalLMPolicy
    from noisescope.policies.diffusion import DiffusionPolicy

    config = _online(settings)
    adapters = 1 if config is None else config.adapters
    together = config is not None and config.mode == "ema"
    seeds = [settings.seed * 1000 + (0 if together else m) for m in range(adapters)]
    if isinstance(policy, CausalLMPolicy):
        from noisescope.learners.text import TextAdapters, WholeText, alike, text_space
        from noisescope.replicas.adapters import attach_adapters

        for remark in policy.remarks(data.items):
            reporter.note(remark)
        corpus, same = alike(policy, data)
        layers = None if settings.full else settings.layers
        with (
            reporter.stage("reference log-probabilities") as advance,
            accelerator.main_process_first(),
            accelerator.autocast(),  # rounded as the policy is: l is then 0 before the first step
        ):
            space = text_space(
                policy,
                data,
                corpus,
                trained.reference,
                layers=layers,
                checkpointing=settings.checkpointing,
                report=lambda stage, done, total: advance(done, total, None),
            )
        if settings.full:
            policy.model.requires_grad_(True)
            return WholeText(space), same
        first = space.trunk.cut.first
        made = attach_adapters(policy.model, adapters, settings.lora_r, first, settings.targets)
        made.initialise(seeds, settings.lora_alpha)
        return TextAdapters(space, made), same
    if isinstance(policy, DiffusionPolicy):
        from noisescope.learners.images import ImageSpace, WholeUNet, image_adapters

        scene = ImageSpace(policy, data, settings.seed)
        if settings.full:
            return WholeUNet(scene, settings.checkpointing), np.zeros(0, np.int64)
        return image_adapters(
            scene,
            replicas=adapters,
            rank=settings.lora_r,
            alpha=settings.lora_alpha,
            seeds=seeds,
            layers=settings.layers,
            checkpointing=settings.checkpointing,
        ), np.zeros(0, np.int64)
    raise UsageError(f"{policy.identity.id} cannot be trained")


def _online(settings: TrainSettings) -> OnlineConfig | None:
    """Who judges while training, if anybody. Raises UsageError."""
    if settings.online is None:
        return None
    mode: Mode | None = next((mode for mode in MODES if mode == settings.online), None)
    if mode is None:
        raise UsageError(
            f"--online must be one of {', '.join(MODES)}, not {settings.online}",
            hint="Leave it out to train with an audit's weights.",
        )
    return OnlineConfig(mode, settings.online_replicas, settings.rho, settings.constants)


def _learner(
    dataset: PreferenceDataset,
    trainee: Trainee,
    settings: TrainSettings,
    objective: Objective,
    split: Split,
    weights: PairWeights | None,
    accelerator: Accelerator,
) -> PreferenceLearner:
    config = _online(settings)
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


def _run(
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
    if report_to is not None:
        flat = {k: v for k, v in settings.to_json().items() if isinstance(v, str | int | float)}
        accelerator.init_trackers("noisescope", config=flat)
    if (trained.directory / STATE_FILE).exists():
        reporter.note(f"continuing from {trained.directory / STATE_FILE}")
    label = f"{settings.objective} on {len(split.train):,} pairs, {steps:,} steps"
    reporter.note(label)
    shown = time.monotonic()
    with reporter.stage("training") as advance:

        def after_step(progress: Progress) -> bool:
            nonlocal shown
            learner.finish(progress.averages, lambda t: _total(t, accelerator))
            record = progress.history[-1]
            due = progress.step == steps or progress.step % settings.save_every == 0
            if due and len(split.validation):
                record |= _validate(learner, objective, split.validation, plan, accelerator)
            if due and accelerator.is_main_process:
                trained.write_history(progress.history)
            if report_to is not None:
                accelerator.log(record, step=progress.step)
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
        )


def line(record: Mapping[str, float], steps: int) -> str:
    """One line of progress."""
    text = (
        f"step {record['step']:,}/{steps:,}  loss {record['loss']:.4f}  "
        f"margin {record['margin']:+.3f}  accuracy {record['accuracy']:.1%}  "
        f"W {record['weight']:.3f} ({record['light']:.0%} below ½)"
    )
    if "validation_loss" in record:
        text += (
            f"  validation loss {record['validation_loss']:.4f}, "
            f"accuracy {record['validation_accuracy']:.1%}"
        )
    return text


def _total(tensor: Tensor, accelerator: Accelerator) -> Tensor:
    """Sum of a tensor over processes."""
    if accelerator.num_processes == 1:
        return tensor
    summed: Tensor = accelerator.reduce(tensor.to(accelerator.device), "sum").cpu()
    return summed


def _validate(
    learner: PreferenceLearner,
    objective: Objective,
    pairs: Int,
    plan: TrainPlan,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Unweighted loss, margin and accuracy of held-out pairs, every process a share of them."""
    import torch

    totals = torch.zeros(4, dtype=torch.float64)
    mine = pairs[accelerator.process_index :: accelerator.num_processes]
    cost = int(learner.trainee.work[pairs].max())
    size = max(1, learner.trainee.budget // cost)
    for start in range(0, len(mine), size):
        with accelerator.autocast():
            values = learner.judge(mine[start : start + size], VALIDATION_DRAWS[plan.modality])
        margin, loss = objective.margin(values), objective(values)
        found = (loss.sum(), margin.sum(), (margin > 0).sum(), len(margin))
        totals += torch.tensor([float(value) for value in found], dtype=torch.float64)
    loss_sum, margin_sum, right, count = _total(totals, accelerator).tolist()
    return {
        "validation_loss": loss_sum / count,
        "validation_margin": margin_sum / count,
        "validation_accuracy": right / count,
    }


def summary(history: Sequence[Mapping[str, float]], split: Split) -> dict[str, Any]:
    """What a training came to: means over its first and last tenth, and the last validation."""
    tenth = max(1, len(history) // 10)
    found = [record for record in history if "validation_loss" in record]
    prefix = "validation_"
    return {
        "trained_pairs": len(split.train),
        "validation_pairs": len(split.validation),
        "set_aside_pairs": sum(split.aside.values()),
        "set_aside": dict(split.aside),
        "steps": len(history),
        "first": _means(history[:tenth]),
        "last": _means(history[-tenth:]),
        "validation": {k.removeprefix(prefix): v for k, v in found[-1].items() if prefix in k}
        if found
        else {},
    }


def _means(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([record[name] for record in records])) for name in MEASURES}
