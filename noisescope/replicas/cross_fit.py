"""The problems of a cross-fit: which pairs each of them trains on, and which it holds out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from noisescope.training.batch_order import U64, fold_of

#: Blocks of responses where pairs are held out by both sides: 21 problems, 4/9 of the pairs each.
BLOCKS = 6


@final
@dataclass(frozen=True)
class Folds:
    """The problems of a cross-fit: `train` [N, P] in {0, 1}, and each pair's own problem [N].

    A pair's own problem holds it out, together with everything that shares its key.
    """

    train: NDArray[np.float32]
    own: NDArray[np.int64]

    @property
    def count(self) -> int:
        """P."""
        return int(self.train.shape[1])


def assign(keys: U64, *, seed: int, replica: int, folds: int) -> Folds:
    """Folds of keys [N]: one problem a fold, without the pairs of that fold.

    Keys [N, 2] are those of a pair's two sides: each falls into one of `BLOCKS` blocks, and there
    is a problem for each two blocks, without any pair that has a side in one of them. No side of
    a held-out pair is then seen in training, however connected the comparisons are.
    """
    if keys.ndim == 1:
        own = fold_of(keys, seed=seed, replica=replica, folds=folds)
        return Folds((own[:, None] != np.arange(folds)).astype(np.float32), own)
    block = fold_of(keys.ravel(), seed=seed, replica=replica, folds=BLOCKS).reshape(-1, 2)
    low, high = block.min(axis=1), block.max(axis=1)
    names, own = np.unique(low * BLOCKS + high, return_inverse=True)
    hidden = [np.isin(block, divmod(name, BLOCKS)).any(axis=1) for name in names.tolist()]
    return Folds(1 - np.stack(hidden, axis=1).astype(np.float32), own.astype(np.int64))
