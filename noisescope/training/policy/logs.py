"""Log a training: trackers, one line of progress a step, and a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from noisescope.errors import UsageError, first_line
from noisescope.progress import Reporter
from noisescope.training.policy.settings import TrainSettings
from noisescope.training.policy.split import Split

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "noisescope"


@final
class Tracker:
    """accelerate's tracker `name` (None: none) of one training; its files go into `directory`."""

    def __init__(
        self, name: str | None, accelerator: Accelerator, directory: Path, reporter: Reporter
    ) -> None:
        self.name, self.accelerator, self.directory = name, accelerator, directory
        self.reporter = reporter

    def begin(self, settings: TrainSettings) -> None:
        """Open the tracker with the settings. Raises UsageError if that fails."""
        if self.name is None:
            return
        flat = {k: v for k, v in settings.to_json().items() if isinstance(v, str | int | float)}
        options = {"wandb": {"dir": str(self.directory)}} if self.name == "wandb" else {}
        try:
            self.accelerator.init_trackers(PROJECT, config=flat, init_kwargs=options)
        except Exception as error:  # whatever somebody else's service raises
            raise UsageError(
                f"--report-to {self.name} cannot begin: {first_line(error)}",
                hint="Correct its settings, or remove --report-to: history.jsonl has every step.",
            ) from error

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Log one step. If the tracker fails, note it once and stop using it."""
        if self.name is None:
            return
        try:
            self.accelerator.log(dict(record), step=step)
        except Exception as error:
            self.reporter.note(
                f"{self.name} failed at step {step:,} and is not used from here: "
                f"{first_line(error)}; history.jsonl goes on"
            )
            self.name = None


MEASURES = ("loss", "margin", "accuracy", "weight", "light")


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


def summary(history: Sequence[Mapping[str, float]], split: Split) -> dict[str, Any]:
    """Means over the first and last tenth of a training, and the last validation."""
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
