"""Which pairs a replica trains on, and in what order: functions of (seed, replica, epoch).

Replicas 2j and 2j + 1 train on the two complementary halves of split j, so two replicas
already hold out every pair, with its prompt. Pairs that share responses are drawn together in
small clusters, and clusters in random order: a batch then needs fewer distinct forward passes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import final

import numpy as np
from numpy.typing import NDArray

from noisescope.pairs import hashed

U64 = NDArray[np.uint64]


def fold_of(fold_key: U64, *, seed: int, replica: int, folds: int) -> NDArray[np.int64]:
    """Fold index in 0 .. folds - 1 of each key [N]; about N / folds keys each."""
    return (hashed(fold_key, seed, replica, 0) % np.uint64(folds)).astype(np.int64)


def bootstrap_weight(
    fold_key: U64, *, seed: int, replica: int, strength: float
) -> NDArray[np.float32]:
    """Weight [N] = 1 - strength + strength * Exp(1): mean 1, standard deviation `strength`.

    strength 1 is the Bayesian bootstrap (Rubin 1981); 0 gives every replica the same data.
    """
    uniform = (hashed(fold_key, seed, replica, 1) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (1 - strength - strength * np.log1p(-uniform)).astype(np.float32)


Int = NDArray[np.int64]


def held_out_by(fold_key: NDArray[np.uint64], *, seed: int, replicas: int) -> NDArray[np.bool_]:
    """[M, N]: True where replica m never trains on the pair; equal keys stay together."""
    return np.stack(
        [fold_of(fold_key, seed=seed, replica=m // 2, folds=2) == m % 2 for m in range(replicas)]
    )


def groups_held_out(keys: U64, *, seed: int, replicas: int) -> NDArray[np.bool_]:
    """`held_out_by` for large groups: in random order they fill one half up to half of the pairs.

    From two groups on neither half is empty, whatever their sizes.
    """
    names, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    held = np.empty((replicas, len(keys)), np.bool_)
    for m in range(replicas):
        order = np.argsort(hashed(names, seed, m // 2, 0), kind="stable")
        first = np.empty(len(names), np.bool_)
        first[order] = np.cumsum(sizes[order]) - sizes[order] / 2 < len(keys) / 2
        held[m] = first[group] == (m % 2 == 0)
    return held


def clusters(chosen: Int, rejected: Int, size: int, random: np.random.Generator) -> list[Int]:
    """Partition of n pairs into groups of at most `size` that share many responses.

    Grown greedily from a random pair: first pairs both of whose responses are already in the
    group, then pairs with one, in random order; a group without neighbours ends early.
    """
    order = random.permutation(len(chosen)).tolist()
    at: dict[int, list[int]] = {}
    for pair in order:
        at.setdefault(int(chosen[pair]), []).append(pair)
        at.setdefault(int(rejected[pair]), []).append(pair)
    used: set[int] = set()
    groups: list[Int] = []
    for start in order:
        if start in used:
            continue
        group: list[int] = []
        touched, inside = set[int](), set[int]()
        waiting: list[list[int]] = [[], [start]]  # both responses inside, one inside
        while len(group) < size and (waiting[0] or waiting[1]):
            pair = (waiting[0] or waiting[1]).pop()
            if pair in used:
                continue
            used.add(pair)
            group.append(pair)
            for response in {int(chosen[pair]), int(rejected[pair])} - inside:
                inside.add(response)
                for near in at[response]:
                    if near not in used:
                        waiting[0 if near in touched else 1].append(near)
                        touched.add(near)
        groups.append(np.array(group, np.int64))
    return groups


@final
class Stream:
    """The endless order in which one replica meets its pairs; `batch(step)` needs no state."""

    def __init__(
        self, pairs: Int, chosen: Int, rejected: Int, *, seed: tuple[int, ...], cluster: int
    ) -> None:
        self.pairs, self.chosen, self.rejected = pairs, chosen[pairs], rejected[pairs]
        self.seed, self.cluster = seed, cluster
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def _draw(self, epoch: int) -> Int:
        """Every pair once, clusters shuffled."""
        random = np.random.default_rng([*self.seed, epoch])
        groups = clusters(self.chosen, self.rejected, self.cluster, random)
        random.shuffle(groups)
        return self.pairs[np.concatenate(groups)]

    def batch(self, step: int, size: int) -> Int:
        """Pairs of 0-based optimiser step `step`, `size` of them (short only for tiny sets)."""
        n = len(self.pairs)
        size = min(size, n)
        epochs = range(step * size // n, ((step + 1) * size - 1) // n + 1)
        stream = np.concatenate([self._epoch(epoch) for epoch in epochs])
        start = step * size - epochs[0] * n
        return stream[start : start + size]
