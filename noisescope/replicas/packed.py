"""LoRA replicas of a causal language model: M adapters in one forward, each with its own pairs.

learner = PackedReplicas(activations, adapters, data, config, streams)
train(learner, ...)
learner.margins()  # [M, N], beta * l
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.models.memory import Limit, OomRetry
from noisescope.models.packing import Corpus, Packed, pack
from noisescope.replicas.config import LoraConfig
from noisescope.training.batch_order import Stream
from noisescope.training.loop import MicroBatch, PairBatch, Piece
from noisescope.training.objectives import PairValues
from noisescope.training.pair_data import PairData, Report

if TYPE_CHECKING:
    from torch import Tensor

    from noisescope.training.lora.activations import Activations
    from noisescope.training.lora.adapters import Adapters

Int = NDArray[np.int64]
Float = NDArray[np.float32]


@final
@dataclass
class PackedReplicas:
    """M replicas over one model (`train.Replicas`).

    `first` is the number of the lowest replica; `base` the model that adapter files name; `limit`
    the most responses to score at once, after more did not fit into memory.
    """

    activations: Activations
    adapters: Adapters
    data: PairData
    config: LoraConfig
    streams: list[Stream] = field(default_factory=list)
    first: int = 0
    base: str = ""
    limit: Limit = field(default_factory=Limit)

    @cached_property
    def held_out(self) -> NDArray[np.bool_]:
        config, numbers = self.config, slice(self.first, self.first + self.adapters.replicas)
        return self.data.held_out(seed=config.seed, replicas=config.replicas)[numbers]

    @property
    def corpus(self) -> Corpus:
        return self.activations.corpus

    def trainable(self) -> dict[str, Tensor]:
        return dict(self.adapters.parameters())

    def clip(self, max_norm: float | None) -> float:
        return self.adapters.clip(max_norm)

    def items_of(self, pairs: Int) -> Int:
        """Distinct items of some pairs, sorted."""
        return np.unique(np.concatenate([self.data.chosen[pairs], self.data.rejected[pairs]]))

    def batches(self, step: int) -> list[MicroBatch]:
        """Every replica's pairs of a step, folded into forwards of at most `tokens` tokens."""
        groups: list[MicroBatch] = []
        room = 0
        for accumulated in range(self.config.accumulation):
            for m, stream in enumerate(self.streams):
                pairs = stream.batch(step, self.config.batch)
                mine = np.array_split(pairs, self.config.accumulation)[accumulated]
                if not len(mine):
                    continue
                size = int(self.corpus.work[self.items_of(mine)].sum())
                if not groups or size > room or (accumulated and groups[-1][0].replica == m):
                    groups.append([])
                    room = self.config.tokens
                groups[-1].append(PairBatch(m, mine, len(mine) / len(pairs), step))
                room -= size
        return groups

    def pieces(self, batch: MicroBatch) -> Iterator[Piece]:
        import torch

        packs = [
            pack(self.corpus, self.items_of(part.pairs), self.config.row_tokens) for part in batch
        ]
        logps = self._forward(packs, [part.replica for part in batch])
        start = 0
        for part, packed in zip(batch, packs, strict=True):
            own = logps[start : start + len(packed.items)]
            start += len(packed.items)
            ratio = own - self.activations.reference[torch.from_numpy(packed.items)].to(own.device)
            sides = (self.data.chosen[part.pairs], self.data.rejected[part.pairs])
            chosen, rejected = (
                torch.from_numpy(np.searchsorted(packed.items, side)).to(own.device)
                for side in sides
            )
            yield Piece(PairValues(ratio[chosen] - ratio[rejected]), part.share)

    def _forward(self, packs: Sequence[Packed], replicas: Sequence[int]) -> Tensor:
        """log pi_m(response) of every packed item, one pack a replica, concatenated."""
        from noisescope.training.lora.split_model import adapted_logps

        return adapted_logps(self.activations, self.adapters, packs, replicas)

    def logps(self, report: Report | None = None) -> Tensor:
        """log pi_m(response | prompt) of every item under every replica: [M, I]."""
        import torch

        plan = self.activations.plan(self.config.tokens)
        result = torch.zeros(self.adapters.replicas, len(self.data.items))
        retry: OomRetry[int] = OomRetry(
            "responses", lambda item: f"response {self.data.items[item].key}", self.limit
        )
        with torch.inference_mode():
            for done, items in enumerate(plan):
                for mine, logps in retry.run(self._scored, items.tolist()):
                    result[:, torch.tensor(mine)] = logps
                if report is not None:
                    report("scoring", done + 1, len(plan))
        return result

    def _scored(self, items: Sequence[int]) -> Tensor:
        """log pi_m(response) of some items under every replica, [M, n]."""
        import torch

        packed = pack(self.corpus, items, self.config.row_tokens)
        count, together = self.adapters.replicas, max(1, self.config.tokens // packed.tokens)
        found = []
        for m in range(0, count, together):
            group = list(range(m, min(m + together, count)))
            found.append(self._forward([packed] * len(group), group).view(len(group), -1).cpu())
        return torch.cat(found)

    def margins(self, report: Report | None = None) -> Float:
        """beta * l of every pair under every replica, [M, N]."""
        ratio = (self.logps(report) - self.activations.reference).numpy()
        sides = ratio[:, self.data.chosen], ratio[:, self.data.rejected]
        margins: Float = self.config.beta * (sides[0] - sides[1])
        return margins

    def save(self, replica: int, directory: Path, weights: Mapping[str, Tensor]) -> list[str]:
        """One replica as a directory that PEFT loads."""
        from noisescope.training.lora.peft_files import save_peft

        return save_peft(self.adapters, replica, directory, base=self.base, weights=weights)
