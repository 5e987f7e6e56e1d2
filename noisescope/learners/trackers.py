"""Where every step is logged besides history.jsonl: TensorBoard, Weights & Biases, MLflow.

A tracker that cannot begin is an error; one that fails later never ends a training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

from noisescope.errors import UsageError
from noisescope.gathering import Reporter
from noisescope.learners.settings import TrainSettings

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
        """Open the tracker with the settings. Raises UsageError where it cannot."""
        if self.name is None:
            return
        flat = {k: v for k, v in settings.to_json().items() if isinstance(v, str | int | float)}
        options = {"wandb": {"dir": str(self.directory)}} if self.name == "wandb" else {}
        try:
            self.accelerator.init_trackers(PROJECT, config=flat, init_kwargs=options)
        except Exception as error:  # whatever somebody else's service raises
            raise UsageError(
                f"--report-to {self.name} cannot begin: {_first(error)}",
                hint="Mend its settings, or leave --report-to out: history.jsonl has every step.",
            ) from error

    def log(self, record: Mapping[str, float], step: int) -> None:
        """Log one step; a tracker that fails is told of once and then left alone."""
        if self.name is None:
            return
        try:
            self.accelerator.log(dict(record), step=step)
        except Exception as error:
            self.reporter.note(
                f"{self.name} failed at step {step:,} and is left out from here: {_first(error)}; "
                "history.jsonl goes on"
            )
            self.name = None


def _first(error: Exception) -> str:
    """What an error says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
