"""Cache the errors of the reference denoiser for every pair, side and draw.

    errors = ReferenceErrors.of(noised, rows=64).all(directory, progress)  # [2, N, K]

All replicas see a pair under the same draws, in training as in scoring, and so does every other
run over the same pairs: a flipped copy of the dataset reuses the cache of the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from noisescope.models import Item
from noisescope.models.memory import Limit, OomRetry
from noisescope.pairs import digest
from noisescope.progress import Progress
from noisescope.storage.cache import Array, compute_missing, gather, missing, scan
from noisescope.training.noisy_pairs import NoisedPairs, squared_errors

Int = NDArray[np.int64]
Float = NDArray[np.float32]
#: Latent positions to one unit of work.
WORK_POSITIONS = 64


@final
@dataclass(frozen=True)
class ReferenceErrors:
    """Source of reference errors (`storage.cache.Source`): an item is a pair, with its own key.

    `swapped` [N] is True if the chosen side's key sorts after the rejected side's: the cache does
    not depend on the label. `rows` bounds the latents of one forward.
    """

    noised: NoisedPairs
    items: list[Item]  # [N]
    swapped: NDArray[np.bool_]  # [N]
    index: dict[str, int]
    rows: int
    limit: Limit = field(default_factory=Limit)

    @classmethod
    def of(cls, noised: NoisedPairs, rows: int) -> ReferenceErrors:
        """The source for all pairs of `noised`."""
        data = noised.data
        items, swapped = [], []
        for pair, one, other in zip(data.pair_ids, data.chosen, data.rejected, strict=True):
            sides = [data.items[one].key, data.items[other].key]
            swapped.append(sides[0] > sides[1])
            items.append(Item(digest(pair, *sorted(sides)), data.items[one].prompt, None, ""))
        index = {item.key: row for row, item in enumerate(items)}
        return cls(noised, items, np.array(swapped), index, rows)

    def directory(self, cache_directory: Path) -> Path:
        """Directory of the errors of this policy under these draws."""
        fingerprint = self.noised.policy.identity.fingerprint
        name = digest(fingerprint, str(self.noised.seed), str(self.noised.draws))
        return cache_directory / name

    def unknown(self, cache_directory: Path | None) -> int:
        """How many pairs are yet to be computed."""
        parts = [] if cache_directory is None else scan(self.directory(cache_directory))[0]
        return len(missing(self.items, parts))

    def sizes(self, items: Sequence[Item]) -> Int:
        """Work of each pair, [n]: latent positions / 64 of its denoiser calls."""
        _, height, width = self.noised.policy.latent_shape
        work = 2 * self.noised.draws * height * width // WORK_POSITIONS
        return np.full(len(items), max(1, work), np.int64)

    def features(self, items: Sequence[Item]) -> dict[str, Array]:
        """`errors` [n, 2, K] float32, the side of the smaller key first."""
        import torch

        k, denoiser = self.noised.draws, self.noised.policy.pipeline.denoiser
        pairs = np.array([self.index[item.key] for item in items], np.int64)
        size = max(1, self.rows // (2 * k))
        retry: OomRetry[int] = OomRetry(
            "pairs", lambda pair: f"pair {self.noised.data.pair_ids[pair]}", self.limit
        )

        def errors_of(mine: Sequence[int]) -> Array:
            rows = self.noised.rows(np.array(mine, np.int64), [tuple(range(k))] * len(mine))
            errors = squared_errors(denoiser, rows).view(2, len(mine), k)
            found: Array = errors.transpose(0, 1).cpu().numpy()
            return found

        found = []
        with torch.inference_mode():
            for start in range(0, len(pairs), size):
                batch = pairs[start : start + size].tolist()
                found += [errors for _, errors in retry.run(errors_of, batch)]
        return {"errors": self._exchanged(np.concatenate(found), pairs)}

    def all(self, cache_directory: Path | None, progress: Progress) -> Float:
        """[2, N, K], chosen side first: read from the cache, or computed and kept there."""
        if cache_directory is None:
            errors = self.features(self.items)["errors"]
        else:
            parts = compute_missing(
                self, self.items, self.directory(cache_directory), progress, "reference error"
            )
            errors = gather(parts, [item.key for item in self.items])["errors"]
        mine = self._exchanged(errors, np.arange(len(self.items)))
        return np.ascontiguousarray(mine.transpose(1, 0, 2))

    def _exchanged(self, errors: Array, pairs: Int) -> Array:
        """[n, 2, K] from (chosen, rejected) to (smaller key, larger key), or back."""
        return np.where(self.swapped[pairs, None, None], errors[:, ::-1], errors)
