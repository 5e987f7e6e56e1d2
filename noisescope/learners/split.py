"""Which pairs train and which validate: a function of (seed, content)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from noisescope.errors import DataError
from noisescope.learners import Int
from noisescope.learners.settings import TrainSettings
from noisescope.replicas.folds import hashed
from noisescope.replicas.packed import PairData
from noisescope.weighting import PairWeights

#: Purpose number of the validation split's hash; folds and bootstrap have others.
VALIDATION_SALT = 77


@final
@dataclass(frozen=True)
class Split:
    """Pairs to train on, pairs to validate on, and how many were set aside, by reason."""

    train: Int
    validation: Int
    aside: Mapping[str, int]


def split_pairs(
    data: PairData, settings: TrainSettings, weights: PairWeights | None, same: Int
) -> Split:
    """Who trains and who validates: a function of (seed, content), repeats together.

    Raises DataError where no pair is left to train on.
    """
    count = len(data.pair_ids)
    share = hashed(data.fold_key, settings.seed, VALIDATION_SALT).astype(np.float64) / 2.0**64
    held = share < settings.validation
    usable = np.ones(count, bool)
    usable[same] = False
    aside = {"both sides read the same once cut to --max-length": int((~usable).sum())}
    if weights is not None:
        nothing = usable & ~held & (weights.weight == 0)
        aside["their weight is 0"] = int(nothing.sum())
        usable &= ~nothing
    found = Split(
        np.flatnonzero(usable & ~held),
        np.flatnonzero(usable & held),
        {reason: number for reason, number in aside.items() if number},
    )
    if not len(found.train):
        reasons = "; ".join(f"{number:,} {reason}" for reason, number in found.aside.items())
        raise DataError(
            f"no pair is left to train on: of {count:,}, {int(held.sum()):,} are held out"
            + (f"; {reasons}" if reasons else ""),
            hint="Lower --validation, raise --max-length, or use other weights.",
        )
    return found
