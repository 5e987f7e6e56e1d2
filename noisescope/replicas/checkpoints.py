"""Evidence of training replicas: margins at T checkpoints, and when to stop early."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noisescope.margins import write_margins
from noisescope.replicas.packed import Float, PackedReplicas, Report
from noisescope.training import Progress

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class LoraSummary:
    """What a run of replicas did: optimiser steps, the last one whose margins count, losses."""

    steps: int
    best_step: int
    stopped_early: bool
    held_out_loss: dict[int, float]
    seconds: dict[str, float]
    items: int
    replicas: int


def write_step(
    run_directory: Path,
    pair_ids: Sequence[str],
    margins: Float,
    held_out: NDArray[np.bool_],
    step: int,
) -> None:
    """Write one checkpoint's margins [M, N] as margins/part-<step>.parquet."""
    write_margins(
        run_directory / "margins" / f"part-{step:06d}.parquet",
        pa.array(pair_ids, pa.string()),
        margins[:, None],
        steps=[step],
        held_out=held_out,
    )


def held_out_loss(margins: Float, held_out: NDArray[np.bool_]) -> float:
    """Mean of -log sigma(margin) over held-out (replica, pair) cells."""
    return float(np.logaddexp(0.0, -margins[held_out]).mean())


@final
@dataclass
class EvidenceWriter:
    """Called after every step: writes margins at T checkpoints, says when to stop early."""

    learner: PackedReplicas
    held_out: NDArray[np.bool_]  # [M, N]
    run_directory: Path
    base: str
    report: Report | None
    total: int = 0
    scoring_seconds: float = 0.0

    def __call__(self, progress: Progress) -> bool:
        config = self.learner.config
        if self.report is not None:
            self.report("training", progress.step, self.total)
        due = {round(self.total * (t + 1) / config.checkpoints) for t in range(config.checkpoints)}
        if progress.step not in due:
            return False
        started = time.perf_counter()
        margins = self.learner.margins(self.report)
        losses: dict[str, float] = progress.note.setdefault("held_out_loss", {})
        losses[str(progress.step)] = held_out_loss(margins, self.held_out)
        best = min(losses, key=lambda step: losses[step])
        progress.note["best_step"] = int(best)
        if config.patience == 0 or int(best) == progress.step:
            self._write(margins, progress)
        self.scoring_seconds += time.perf_counter() - started
        since = [step for step in losses if int(step) > int(best)]
        return bool(config.patience) and len(since) >= config.patience

    def _write(self, margins: Float, progress: Progress) -> None:
        """The checkpoint's part, with averaged copies beside the live replicas if any."""
        if not progress.averages:
            rows, held = margins, self.held_out
        else:
            copies = [margins, *(self._averaged(c) for c in progress.averages.values())]
            rows = np.stack(copies, 1).reshape(-1, margins.shape[1])  # replica 3m + copy
            held = np.repeat(self.held_out, len(copies), 0)
        self._save_adapters(progress)
        ids = self.learner.data.pair_ids
        write_step(self.run_directory, ids, rows, held, progress.step)

    def _save_adapters(self, progress: Progress) -> None:
        """PEFT directories replicas/<m>/, numbered as in the margins."""
        from noisescope.replicas.adapters import save_peft

        sets = [self.learner.trainable(), *progress.averages.values()]
        for m in range(self.learner.adapters.replicas):
            for copy, weights in enumerate(sets):
                place = self.run_directory / "replicas" / str(m * len(sets) + copy)
                save_peft(self.learner.adapters, m, place, base=self.base, weights=weights)

    def _averaged(self, copies: dict[str, Tensor]) -> Float:
        """Margins under averaged adapters; the live ones are put back."""
        import torch

        live = {name: tensor.detach().clone() for name, tensor in self.learner.trainable().items()}
        with torch.no_grad():
            for name, tensor in self.learner.trainable().items():
                tensor.copy_(copies[name])
            margins = self.learner.margins(self.report)
            for name, tensor in self.learner.trainable().items():
                tensor.copy_(live[name])
        return margins

    def summary(self, progress: Progress, clock: dict[str, float]) -> LoraSummary:
        """What the run did."""
        losses = {int(step): loss for step, loss in progress.note["held_out_loss"].items()}
        return LoraSummary(
            steps=progress.step,
            best_step=int(progress.note["best_step"]),
            stopped_early=bool(progress.note["stopped"]),
            held_out_loss=losses,
            seconds={
                "trunk": clock["trunk"] - clock["start"],
                "train": clock["train"] - clock["trunk"] - self.scoring_seconds,
                "score": self.scoring_seconds,
            },
            items=len(self.learner.data.items),
            replicas=len(self.held_out) * (1 + len(progress.averages)),
        )
