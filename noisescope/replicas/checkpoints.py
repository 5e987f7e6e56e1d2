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
) -> None:
    """Write one checkpoint's margins [M, N] as part-<step>.parquet."""
    write_margins(
        directory / part_name(step),
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

    def _write(self, margins: Float, progress: Progress) -> None:
        """The checkpoint's adapters and margins, and those of averaged copies if any."""
        from noisescope.replicas.peft_files import ADAPTER_WEIGHTS, save_peft

        ids, adapters = self.learner.data.pair_ids, self.learner.adapters
        copies = [self._averaged(copy) for copy in progress.averages.values()]
        names = []
        for m in range(adapters.replicas):
            own = self.run_directory / "replicas" / str(m)
            save_peft(adapters, m, own, base=self.base, weights=self.learner.trainable())
            names.append(f"replicas/{m}/{ADAPTER_WEIGHTS}")
            for decay, weights in progress.averages.items():
                save_peft(adapters, m, own / f"ema-{decay}", base=self.base, weights=weights)
        if copies:
            rows = np.stack(copies, 1).reshape(-1, margins.shape[1])  # row C m + copy
            held = np.repeat(self.held_out, len(copies), 0)
            write_step(self.run_directory / "averages", ids, rows, held, progress.step)
            names.append(f"averages/{part_name(progress.step)}")
        write_step(self.run_directory / "margins", ids, margins, self.held_out, progress.step)
        names.append(f"margins/{part_name(progress.step)}")
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
