"""Train LoRA replicas to the end and write their margins and adapters: text and images alike.

    writer = ReplicaWriter(learner, run_directory, plan.steps, report)
    progress = train_replicas(learner, writer, plan, run_directory / "replicas")

`packed.PackedReplicas` and `packed_image.DiffusionReplicas` are the learners. Replica m trains on
its own half of the pairs, in an order and from a start that are functions of (seed, m), so replicas
may be trained in one process or in several.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import DataError
from noisescope.models.device import single_process_accelerator
from noisescope.models.memory import OomRetry
from noisescope.pairs import digest
from noisescope.replicas.checkpoints import (
    checkpoint_steps,
    held_out_loss,
    part_name,
    write_step,
)
from noisescope.replicas.config import ReplicaConfig
from noisescope.training.batch_order import Stream
from noisescope.training.config import TrainConfig
from noisescope.training.loop import Learner, train
from noisescope.training.objectives import DPO
from noisescope.training.pair_data import PairData, Report
from noisescope.training.state import STATE_FILE, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.training.lora.adapters import Adapters

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]


class Replicas(Learner, Protocol):
    """M replicas in training, numbers `first` to `first` + M - 1 of their run."""

    @property
    def adapters(self) -> Adapters: ...

    @property
    def config(self) -> ReplicaConfig: ...

    @property
    def data(self) -> PairData: ...

    @property
    def first(self) -> int: ...

    @property
    def held_out(self) -> Bool:
        """[M, N]: True where a replica never trains on the pair."""

    def margins(self, report: Report | None = None) -> Float:
        """beta * l of every pair under every replica, [M, N]."""

    def save(self, replica: int, directory: Path, weights: Mapping[str, Tensor]) -> list[str]:
        """Write one replica of `weights` (stacked) as its library loads it; the files' names."""


def halves(data: PairData, config: ReplicaConfig) -> Bool:
    """[M, N]: the pairs each replica holds out. Raises DataError if one has none to train on."""
    held = data.held_out(seed=config.seed, replicas=config.replicas)
    if len(data.pair_ids) < 4 or held.all(1).any():
        raise DataError(
            f"{len(data.pair_ids)} pairs are too few for LoRA replicas",
            hint="Give a dataset with at least 4 pairs, better hundreds, or use --kind head.",
        )
    return held


def largest_half(held: Bool) -> int:
    """The most pairs that a replica trains on."""
    return int((~held).sum(1).max())


def make_streams(
    data: PairData, held: Bool, seed: int, cluster: int, members: range
) -> list[Stream]:
    """Each replica's endless order over the pairs it trains on."""
    return [
        Stream(
            np.flatnonzero(~held[m]),
            data.chosen,
            data.rejected,
            seed=(seed, m),
            cluster=cluster,
        )
        for m in members
    ]


def initialise(adapters: Adapters, config: ReplicaConfig, first: int, alpha: float) -> None:
    """Every replica (the lowest is `first`) at its start: A from its own seed, B zero."""
    seeds = [config.seed * 1000 + first + m for m in range(adapters.replicas)]
    adapters.initialise(seeds, alpha)


def evidence_fingerprint(
    model: str, data: PairData, config: ReplicaConfig, members: range, *extra: str
) -> str:
    """Digest of what a saved state belongs to: model, settings, pairs, and replicas if not all."""
    some = [str(members)] if len(members) < config.replicas else []
    return digest(
        *some,
        model,
        json.dumps(asdict(config), sort_keys=True),
        *extra,
        *data.pair_ids,
        *(data.items[i].key for i in (*data.chosen, *data.rejected)),
    )


def train_replicas(
    learner: Replicas, writer: ReplicaWriter, plan: TrainConfig, directory: Path
) -> Progress:
    """Train to the end, from the saved state if there is one, with all evidence written.

    If a file that the state records as written is gone, it is written again from the state, or
    the training starts again. torch's own random numbers are not used, but they are saved with the
    state: they are seeded so that the state does not depend on what the process did before.
    """
    import torch

    ids = learner.data.pair_ids
    retry: OomRetry[int] = OomRetry("pairs", lambda pair: f"pair {ids[pair]}")

    def run() -> Progress:
        torch.manual_seed(learner.config.seed)
        return train(
            learner,
            DPO(beta=learner.config.beta),
            plan,
            directory,
            accelerator=single_process_accelerator(learner.adapters.model.dtype),
            after_step=writer,
            retry=retry,
        )

    with torch.random.fork_rng(devices=[]):
        start = {name: tensor.detach().clone() for name, tensor in learner.trainable().items()}
        progress = run()
        writer.repair(progress)
        if writer.missing(progress):
            (directory / STATE_FILE).unlink()
            _copy(start, learner.trainable())
            progress = run()
    return progress


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Set every tensor of `target` to that of `source`."""
    import torch

    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


@final
@dataclass
class ReplicaWriter:
    """Called after every step: writes margins and adapters at the checkpoints.

    Stops the training after `patience` checkpoints without a better held-out loss (0: never).
    """

    learner: Replicas
    directory: Path  # of the run
    steps: int
    report: Report | None = None
    patience: int = 0
    scoring_seconds: float = 0.0

    def __call__(self, progress: Progress) -> bool:
        if self.report is not None:
            self.report("training", progress.step, self.steps)
        if progress.step not in checkpoint_steps(self.steps, self.learner.config.checkpoints):
            return False
        started = time.perf_counter()
        margins = self.learner.margins(self.report)
        losses: dict[str, float] = progress.note.setdefault("held_out_loss", {})
        losses[str(progress.step)] = held_out_loss(margins, self.learner.held_out)
        best = min(losses, key=lambda step: losses[step])
        progress.note["best_step"] = int(best)
        if self.patience == 0 or int(best) == progress.step:
            self._write(margins, progress)
        self.scoring_seconds += time.perf_counter() - started
        since = [step for step in losses if int(step) > int(best)]
        return bool(self.patience) and len(since) >= self.patience

    def missing(self, progress: Progress) -> list[Path]:
        """Files that `progress` records as written and that are gone."""
        written = [self.directory / name for name in progress.note.get("written", [])]
        return [path for path in written if not path.is_file()]

    def repair(self, progress: Progress) -> None:
        """Write missing adapters again, if the saved state is the one they were written from."""
        gone = {path.relative_to(self.directory).parts[0] for path in self.missing(progress)}
        if gone == {"replicas"} and progress.note["best_step"] == progress.step:
            self._save(progress)

    def _save(self, progress: Progress) -> list[str]:
        """Write the adapters and their averaged copies; names of their files."""
        learner, names = self.learner, []
        weights = {"": learner.trainable()}
        weights |= {f"/ema-{decay}": copies for decay, copies in progress.averages.items()}
        for m in range(learner.adapters.replicas):
            for copy, tensors in weights.items():
                folder = f"replicas/{learner.first + m}{copy}"
                files = learner.save(m, self.directory / folder, tensors)
                names += [f"{folder}/{file}" for file in files]
        return names

    def _write(self, margins: Float, progress: Progress) -> None:
        """The checkpoint's adapters and margins, and those of averaged copies if any."""
        learner, step = self.learner, progress.step
        ids, first, held = learner.data.pair_ids, learner.first, learner.held_out
        copies = [self._margins_under(copy) for copy in progress.averages.values()]
        names = self._save(progress)
        if copies:
            rows = np.stack(copies, 1).reshape(-1, margins.shape[1])  # row C m + copy
            repeated = np.repeat(held, len(copies), 0)
            lowest = first * len(copies)
            write_step(self.directory / "averages", ids, rows, repeated, step, lowest)
            names.append(f"averages/{part_name(step)}")
        write_step(self.directory / "margins", ids, margins, held, step, first)
        names.append(f"margins/{part_name(step)}")
        known = progress.note.setdefault("written", [])
        known += [name for name in names if name not in known]

    def _margins_under(self, copies: Mapping[str, Tensor]) -> Float:
        """Margins under averaged adapters; the live ones are put back."""
        trained = self.learner.trainable()
        live = {name: tensor.detach().clone() for name, tensor in trained.items()}
        _copy(copies, trained)
        margins = self.learner.margins(self.report)
        _copy(live, trained)
        return margins
