"""Which pair a replica holds out, and how much it weighs it: functions of content, never of order.

Both are hashes of (seed, replica, fold_key), so shuffling rows, adding pairs or dropping
some leaves every other pair's fold and weight as they were; equal keys share both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: U64) -> U64:
    """The splitmix64 finaliser (Steele, Lea, Flood 2014): a bijection of uint64 that avalanches."""
    with np.errstate(over="ignore"):
        x = x + GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed(fold_key: U64, *salt: int) -> U64:
    """Hash of each key [N] under integer salts (seed, replica, purpose)."""
    state = np.zeros(1, np.uint64)
    for part in salt:
        state = mix(state ^ np.array([part % 2**64], np.uint64))
    return mix(fold_key.astype(np.uint64) ^ state)


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
