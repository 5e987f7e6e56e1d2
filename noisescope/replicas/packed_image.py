"""LoRA replicas of a diffusion model: M adapters on one denoiser, each with its own pairs.

learner = DiffusionReplicas(noised, adapters, config, held_out, streams)
learner.measure_reference(cache_directory, progress)  # once
train(learner, ...)
learner.margins()  # [M, N], beta * l
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.models.denoising import logratio
from noisescope.models.memory import Limit, OomRetry
from noisescope.progress import Progress
from noisescope.replicas.config import DiffusionLoraConfig
from noisescope.replicas.reference_errors import ReferenceErrors
from noisescope.training.batch_order import Stream
from noisescope.training.loop import MicroBatch, PairBatch, Piece
from noisescope.training.noisy_pairs import NoisedPairs, Rows, squared_errors
from noisescope.training.objectives import PairValues
from noisescope.training.pair_data import PairData, Report

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.training.lora.adapters import Adapters

Float = NDArray[np.float32]


@final
@dataclass
class DiffusionReplicas:
    """M replicas over one denoiser (`train.Replicas`).

    `first` is the number of the lowest replica; `limit` the most pairs to score at once, after more
    did not fit into memory.
    """

    noised: NoisedPairs
    adapters: Adapters
    config: DiffusionLoraConfig
    held_out: NDArray[np.bool_]  # [M, N]
    streams: list[Stream]
    reference: Float = field(default_factory=lambda: np.zeros((2, 0, 0), np.float32))  # [2, N, K]
    first: int = 0
    limit: Limit = field(default_factory=Limit)

    @property
    def data(self) -> PairData:
        return self.noised.data

    def measure_reference(self, directory: Path | None, progress: Progress) -> None:
        """Find or compute the reference's errors: before any training or scoring."""
        source = ReferenceErrors.of(self.noised, self.config.rows)
        self.reference = source.all(directory, progress)

    def trainable(self) -> dict[str, Tensor]:
        return dict(self.adapters.parameters())

    def clip(self, max_norm: float | None) -> float:
        return self.adapters.clip(max_norm)

    def batches(self, step: int) -> list[MicroBatch]:
        """Every replica's pairs of a step, in forwards of at most `rows` latents."""
        groups: list[MicroBatch] = [[]]
        used = 0
        for replica, stream in enumerate(self.streams):
            pairs = stream.batch(step, self.config.batch)
            size = max(1, self.config.rows // 2)
            for start in range(0, len(pairs), size):
                mine = pairs[start : start + size]
                if groups[-1] and used + 2 * len(mine) > self.config.rows:
                    groups.append([])
                    used = 0
                groups[-1].append(PairBatch(replica, mine, len(mine) / len(pairs), step))
                used += 2 * len(mine)
        return groups

    def pieces(self, batch: MicroBatch) -> Iterator[Piece]:
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
        retry: OomRetry[int] = OomRetry(
            "pairs", lambda pair: f"pair {self.data.pair_ids[pair]}", self.limit
        )
        with torch.inference_mode():
            for start in range(0, count, size):
                pairs = range(start, min(start + size, count))
                for mine, margins in retry.run(self._scored, pairs):
                    out[:, list(mine)] = margins
                if report is not None:
                    report("scoring", pairs[-1] + 1, count)
        return out

    def _scored(self, mine: Sequence[int]) -> Float:
        """beta * l of some pairs under every replica, mean over K draws, [M, n]."""
        import torch

        pairs, k = np.array(mine, np.int64), self.noised.draws
        rows = self.noised.rows(pairs, [tuple(range(k))] * len(pairs))
        reference = torch.from_numpy(self.reference[:, pairs].ravel()).to(rows.target.device)
        middle = len(rows.target) // 2
        found = []
        for replica in range(self.adapters.replicas):
            errors = self._errors(rows, ((replica, 0, len(rows.target)),))
            ratio = logratio(
                errors[:middle], reference[:middle], errors[middle:], reference[middle:]
            )
            mean = ratio.view(len(pairs), k).mean(1)
            found.append(self.config.beta * mean.float().cpu().numpy())
        return np.stack(found)

    def save(self, replica: int, directory: Path, weights: Mapping[str, Tensor]) -> list[str]:
        """One replica as a directory that diffusers loads."""
        from noisescope.training.lora.unet import save_unet_adapter

        return save_unet_adapter(
            self.adapters, replica, directory, weights, self.noised.policy.pipeline.family.denoiser
        )

    def detach(self) -> None:
        """Give the policy its own denoiser back."""
        self.adapters.detach()

    def _epoch(self, part: PairBatch) -> int:
        """How often the replica has met all of its pairs before this step."""
        mine = int((~self.held_out[part.replica]).sum())
        return part.step * min(self.config.batch, mine) // mine

    def _errors(self, rows: Rows, segments: tuple[tuple[int, int, int], ...]) -> Tensor:
        """e of Eq. 6, [R], with adapters by segment (replica, first row, end)."""
        self.adapters.placement.segments = segments
        try:
            return squared_errors(self.noised.policy.pipeline.denoiser, rows)
        finally:
            self.adapters.placement.segments = ()
