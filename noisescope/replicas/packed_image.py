"""The learner behind LoRA replicas of a diffusion model: M adapters over one UNet.

learner = DiffusionReplicas(noised, adapters, config, held_out, streams)
learner.judge(cache_directory, progress)  # the reference's errors, once
training.train(learner, ...)
learner.margins()                         # [M, N], beta * l
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import UsageError
from noisescope.models.denoising import logratio
from noisescope.models.memory import Halving, Limit
from noisescope.progress import Progress
from noisescope.replicas.packed import Part
from noisescope.replicas.reference_errors import ReferenceErrors
from noisescope.storage.files import write_tensors
from noisescope.training.batch_order import Stream
from noisescope.training.loop import SCHEDULES, Piece, TrainConfig
from noisescope.training.noisy_pairs import NoisedPairs, Rows, squared_errors
from noisescope.training.objectives import PairValues
from noisescope.training.pair_data import PairData, Report

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.training.lora.adapters import Adapters

Float = NDArray[np.float32]

WEIGHTS = "pytorch_lora_weights.safetensors"


@final
@dataclass(frozen=True)
class DiffusionLoraConfig:
    """M replicas of rank `rank`; `beta` as in Eq. 6 without DiffusionDPO's extra 0.5.

    `draws` is K, the (t, eps) draws a pair is judged by, the policy's own number (`--draws`) if
    None; in training every epoch sees another of them, beginning anywhere. `batch` pairs an
    optimiser step; `steps` overrides `epochs`; `checkpoints` T times margins are written; `rows`
    bounds the latents of one forward. Raises UsageError naming every impossible flag.
    """

    replicas: int = 8
    rank: int = 8
    beta: float = 2500.0
    learning_rate: float = 1e-3
    schedule: str = "linear"
    epochs: float = 2.0
    steps: int | None = None
    warmup: float = 0.1
    batch: int = 32
    draws: int | None = None
    checkpoints: int = 1
    rows: int = 64
    save_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        low = {
            "--replicas": (self.replicas, 2),
            "--lora-r": (self.rank, 1),
            "--batch-size": (self.batch, 1),
            "--draws": (1 if self.draws is None else self.draws, 1),
            "--checkpoints": (self.checkpoints, 1),
            "--steps": (1 if self.steps is None else self.steps, 1),
        }
        faults = [
            f"{flag} must be at least {least}, not {value}"
            for flag, (value, least) in low.items()
            if value < least
        ]
        above = {
            "--beta": self.beta,
            "--learning-rate": self.learning_rate,
            "--epochs": self.epochs,
        }
        faults += [
            f"{flag} must be above 0 and finite, not {value:g}"
            for flag, value in above.items()
            if not 0 < value < float("inf")
        ]
        if self.schedule not in SCHEDULES:
            faults.append(f"--schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule}")
        if not 0 <= self.warmup < 1:
            faults.append(f"--warmup must be a share in [0, 1), not {self.warmup:g}")
        if faults:
            raise UsageError("; ".join(faults), hint="Run `noisescope fine-tune --help`.")


@final
@dataclass
class DiffusionReplicas:
    """The learner (`training.Learner`): M adapters over one UNet, and their scores.

    `first` is the number of its lowest replica where others are trained elsewhere; `largest` then
    the pairs that any of them trains on at most. `limit` is the most pairs that are scored at
    once, where more did not fit into memory.
    """

    noised: NoisedPairs
    adapters: Adapters
    config: DiffusionLoraConfig
    held_out: NDArray[np.bool_]  # [M, N]
    streams: list[Stream]
    reference: Float = field(default_factory=lambda: np.zeros((2, 0, 0), np.float32))  # [2, N, K]
    first: int = 0
    largest: int = 0
    limit: Limit = field(default_factory=Limit)
    _step: int = 0

    @property
    def data(self) -> PairData:
        return self.noised.data

    def judge(self, directory: Path | None, progress: Progress) -> None:
        """Find or compute the reference's errors: before any training or scoring."""
        source = ReferenceErrors.of(self.noised, self.config.rows)
        self.reference = source.all(directory, progress)

    def plan(self, evidence: str = "") -> TrainConfig:
        """The loop's settings: `epochs` over the largest half, unless `steps` says otherwise."""
        config, largest = self.config, self.largest or int((~self.held_out).sum(1).max())
        steps = max(1, round(config.epochs * largest / min(config.batch, largest)))
        return TrainConfig(
            steps=config.steps or steps,
            learning_rate=config.learning_rate,
            schedule=config.schedule,
            warmup=config.warmup,
            save_every=config.save_every,
            evidence=evidence,
        )

    def trainable(self) -> dict[str, Tensor]:
        return dict(self.adapters.parameters())

    def clip(self, max_norm: float | None) -> float:
        return self.adapters.clip(max_norm)

    def batches(self, step: int) -> list[list[Part]]:
        """Every replica's pairs of a step, in forwards of at most `rows` latents."""
        groups: list[list[Part]] = [[]]
        used = 0
        for replica, stream in enumerate(self.streams):
            pairs = stream.batch(step, self.config.batch)
            size = max(1, self.config.rows // 2)
            for start in range(0, len(pairs), size):
                mine = pairs[start : start + size]
                if groups[-1] and used + 2 * len(mine) > self.config.rows:
                    groups.append([])
                    used = 0
                groups[-1].append(Part(replica, mine, len(mine) / len(pairs)))
                used += 2 * len(mine)
        self._step = step
        return groups

    def pieces(self, batch: list[Part]) -> Iterator[Piece]:
        """l of the batch's pairs, replica by replica, with gradient."""
        import torch

        pairs = np.concatenate([part.pairs for part in batch])
        epochs = np.repeat([self._epoch(p) for p in batch], [len(p.pairs) for p in batch])
        first = (self.data.fold_key[pairs] >> np.uint64(8)).astype(np.int64)
        draws = (first + epochs) % self.noised.draws
        rows = self.noised.rows(pairs, [(draw,) for draw in draws.tolist()])
        reference = torch.from_numpy(self.reference[:, pairs, draws].ravel()).to(rows.target.device)
        ends = np.cumsum([len(part.pairs) for part in batch]).tolist()
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        offset = len(pairs)
        segments = tuple(
            (part.replica, side + start, side + end)
            for side in (0, offset)
            for part, (start, end) in zip(batch, spans, strict=True)
        )
        errors = self._errors(rows, segments)
        ratio = logratio(errors[:offset], reference[:offset], errors[offset:], reference[offset:])
        for part, (start, end) in zip(batch, spans, strict=True):
            yield Piece(PairValues(ratio[start:end]), part.share)

    def margins(self, report: Report | None = None) -> Float:
        """beta * l of every pair under every replica, mean over K draws, [M, N]."""
        import torch

        count, k = len(self.data.pair_ids), self.noised.draws
        size = max(1, self.config.rows // (2 * k))
        out = np.zeros((self.adapters.replicas, count), np.float32)
        halving: Halving[int] = Halving(
            "pairs", lambda pair: f"pair {self.data.pair_ids[pair]}", self.limit
        )
        with torch.inference_mode():
            for start in range(0, count, size):
                pairs = range(start, min(start + size, count))
                for mine, margins in halving.run(self._scored, pairs):
                    out[:, list(mine)] = margins
                if report is not None:
                    report("scoring", pairs[-1] + 1, count)
        return out

    def _scored(self, mine: Sequence[int]) -> Float:
        """beta * l of some pairs under every replica, mean over K draws, [M, n]."""
        import torch

        pairs, k = np.array(mine, np.int64), self.noised.draws
        rows = self.noised.rows(pairs, [tuple(range(k))] * len(pairs))
        apart = torch.from_numpy(self.reference[:, pairs].ravel()).to(rows.target.device)
        middle = len(rows.target) // 2
        found = []
        for replica in range(self.adapters.replicas):
            errors = self._errors(rows, ((replica, 0, len(rows.target)),))
            ratio = logratio(errors[:middle], apart[:middle], errors[middle:], apart[middle:])
            mean = ratio.view(len(pairs), k).mean(1)
            found.append(self.config.beta * mean.float().cpu().numpy())
        return np.stack(found)

    def initialise(self) -> None:
        """Every replica at its start: A from its own seed, B zero."""
        lowest = self.config.seed * 1000 + self.first
        seeds = [lowest + m for m in range(self.adapters.replicas)]
        self.adapters.initialise(seeds, float(self.config.rank))

    def save(self, replica: int, directory: Path) -> None:
        """One replica as `pytorch_lora_weights.safetensors`, which diffusers loads as it is."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.adapters.layers.items():
            a, b = layer.a[replica].detach(), layer.b[replica].detach() * layer.scales[replica]
            tensors |= {f"unet.{name}.lora_A.weight": a, f"unet.{name}.lora_B.weight": b}
        write_tensors(directory / WEIGHTS, tensors)

    def detach(self) -> None:
        """Give the policy its own UNet back."""
        self.adapters.detach()

    def _epoch(self, part: Part) -> int:
        """How often the replica has met all of its pairs before this step."""
        mine = int((~self.held_out[part.replica]).sum())
        return self._step * min(self.config.batch, mine) // mine

    def _errors(self, rows: Rows, segments: tuple[tuple[int, int, int], ...]) -> Tensor:
        """e of Eq. 6, [R], with adapters by segment (replica, first row, end)."""
        self.adapters.placement.segments = segments
        try:
            return squared_errors(self.noised.policy.pipeline.unet, rows)
        finally:
            self.adapters.placement.segments = ()
