"""The training loop of `noisescope train`: validation, history, trackers and progress."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from noisescope.gathering import Reporter
from noisescope.learners.online import EMA_DECAYS
from noisescope.learners.preference import PreferenceLearner
from noisescope.learners.settings import TrainSettings
from noisescope.learners.split import Split
from noisescope.learners.summary import line
from noisescope.learners.trackers import Tracker
from noisescope.learners.trained import Trained, TrainPlan
from noisescope.learners.validation import total_over, validate
from noisescope.objectives import Objective
from noisescope.training import STATE_FILE, Progress, TrainConfig, train

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
            fitting=learner,
        )
