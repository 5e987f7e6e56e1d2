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

from noisescope.replicas.packed import Float, PackedReplicas
from noisescope.scoring.margins import write_margins
from noisescope.training.loop import Progress
from noisescope.training.pair_data import Report

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


def part_name(step: int) -> str:
    """File of one checkpoint's margins."""
    return f"part-{step:06d}.parquet"


def checkpoint_steps(steps: int, checkpoints: int) -> list[int]:
    """The steps, at most `checkpoints` of them, evenly spaced, after which margins are written."""
    return sorted({max(1, round(steps * (t + 1) / checkpoints)) for t in range(checkpoints)})


def write_step(
    directory: Path,
    pair_ids: Sequence[str],
    margins: Float,
    held_out: NDArray[np.bool_],
    step: int,
    first: int = 0,
) -> None:
    """Write one checkpoint's margins [M, N] of replicas `first`.. as part-<step>.parquet."""
    write_margins(
        directory / part_name(step),
        pa.array(pair_ids, pa.string()),
        margins[:, None],
        steps=[step],
        held_out=held_out,
        first_replica=first,
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
        if progress.step not in checkpoint_steps(self.total, config.checkpoints):
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

    def lost(self, progress: Progress) -> list[Path]:
        """Files that `progress` says were written and that are gone."""
        written = [self.run_directory / name for name in progress.note.get("written", [])]
        return [path for path in written if not path.is_file()]

    def mend(self, progress: Progress) -> None:
        """Save adapters again of which a file is gone, where the last state is what they hold."""
        gone = [path.relative_to(self.run_directory).parts[0] for path in self.lost(progress)]
        if set(gone) == {"replicas"} and progress.note["best_step"] == progress.step:
            self._save(progress)

    def _save(self, progress: Progress) -> list[str]:
        """Write the adapters and their averaged copies; names of their files."""
        from noisescope.training.lora.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, save_peft

        adapters, first, names = self.learner.adapters, self.learner.first, []
        weights = {"": self.learner.trainable()}
        weights |= {f"/ema-{decay}": copies for decay, copies in progress.averages.items()}
        for m in range(adapters.replicas):
            for inner, tensors in weights.items():
                folder = f"replicas/{first + m}{inner}"
                place = self.run_directory / folder
                save_peft(adapters, m, place, base=self.base, weights=tensors)
                names += [f"{folder}/{ADAPTER_WEIGHTS}", f"{folder}/{ADAPTER_CONFIG}"]
        return names

    def _write(self, margins: Float, progress: Progress) -> None:
        """The checkpoint's adapters and margins, and those of averaged copies if any."""
        ids, first, step = self.learner.data.pair_ids, self.learner.first, progress.step
        copies = [self._averaged(copy) for copy in progress.averages.values()]
        names = self._save(progress)
        if copies:
            rows = np.stack(copies, 1).reshape(-1, margins.shape[1])  # row C m + copy
            held, lowest = np.repeat(self.held_out, len(copies), 0), first * len(copies)
            write_step(self.run_directory / "averages", ids, rows, held, step, lowest)
            names.append(f"averages/{part_name(step)}")
        write_step(self.run_directory / "margins", ids, margins, self.held_out, step, first)
        names.append(f"margins/{part_name(step)}")
        known = progress.note.setdefault("written", [])
        known += [name for name in names if name not in known]

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

    def summary(self, progress: Progress, *, trunk: float, train: float) -> LoraSummary:
        """What the run did; seconds of the trunk, and of training with its scoring."""
        losses = {int(step): loss for step, loss in progress.note["held_out_loss"].items()}
        return LoraSummary(
            steps=progress.step,
            best_step=int(progress.note["best_step"]),
            stopped_early=bool(progress.note["stopped"]),
            held_out_loss=losses,
            seconds={
                "trunk": trunk,
                "train": train - self.scoring_seconds,
                "score": self.scoring_seconds,
            },
            items=len(self.learner.data.items),
            replicas=len(self.held_out),
        )
