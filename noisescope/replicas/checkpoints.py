"""Margins of replicas in training: at which steps, in which files, and their held-out loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from noisescope.scoring.margins import write_margins
from noisescope.training.state import Progress

Float = NDArray[np.float32]


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

    @classmethod
    def of(
        cls, progress: Progress, seconds: dict[str, float], *, items: int, replicas: int
    ) -> Self:
        """The summary of a training, from what `train.ReplicaWriter` recorded in `progress`."""
        losses = {int(step): loss for step, loss in progress.note["held_out_loss"].items()}
        return cls(
            steps=progress.step,
            best_step=int(progress.note["best_step"]),
            stopped_early=bool(progress.note["stopped"]),
            held_out_loss=losses,
            seconds=seconds,
            items=items,
            replicas=replicas,
        )


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
