"""Split pairs into training and validation: a function of (seed, content).

All pairs of a prompt are on one side, so no prompt, and no response or image made for it, is both
trained on and validated. If a dataset has too few prompts for a split near the requested share,
pairs are held out one by one, repeats together, and `Split.by_prompt` is False.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import DataError
from noisescope.pairs import digest, hashed
from noisescope.training.batch_order import U64
from noisescope.training.pair_data import PairData
from noisescope.training.policy import Int
from noisescope.training.policy.pair_weights import PairWeights
from noisescope.training.policy.settings import TrainSettings

Bool = NDArray[np.bool_]

#: Purpose number of the validation split's hash; folds and bootstrap have others.
VALIDATION_SALT = 77
#: Whole prompts may hold out the requested share times or divided by RATIO, and at most MOST.
RATIO, MOST = 2.0, 0.9


@final
@dataclass(frozen=True)
class Split:
    """Pairs to train on, pairs to validate on, and how many were set aside, by reason.

    `by_prompt`: whether no prompt is on both sides.
    """

    train: Int
    validation: Int
    aside: Mapping[str, int]
    by_prompt: bool = True

    @property
    def sides(self) -> tuple[Int, Int]:
        """Pairs to train on, and pairs to validate on."""
        return self.train, self.validation


def split_pairs(
    data: PairData, settings: TrainSettings, weights: PairWeights | None, same: Int
) -> Split:
    """Split the pairs; those of weight 0 and the `same` ones are set aside.

    Raises DataError if no pair is left to train on.
    """
    count = len(data.pair_ids)
    held, by_prompt = held_out(data, settings.validation, settings.seed)
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
        by_prompt,
    )
    if not len(found.train):
        reasons = "; ".join(f"{number:,} {reason}" for reason, number in found.aside.items())
        raise DataError(
            f"no pair is left to train on: of {count:,}, {int(held.sum()):,} are held out"
            + (f"; {reasons}" if reasons else ""),
            hint="Lower --validation, raise --max-length, or use other weights.",
        )
    return found


def held_out(data: PairData, share: float, seed: int) -> tuple[Bool, bool]:
    """Which pairs validate, [N], about `share` of them, and whether whole prompts do.

    Prompts are drawn in the order of their hashes until the share is met as nearly as it can be.
    """
    count = len(data.pair_ids)
    if share == 0:
        return np.zeros(count, bool), True
    prompts, of, sizes = np.unique(prompt_keys(data), return_inverse=True, return_counts=True)
    order = np.argsort(hashed(prompts, seed, VALIDATION_SALT), kind="stable")
    held = np.cumsum(sizes[order]) / count
    taken = int(np.argmin(np.abs(held - share)))
    if share / RATIO <= held[taken] <= min(share * RATIO, MOST):
        return np.isin(of, order[: taken + 1]), True
    alone = hashed(data.fold_key, seed, VALIDATION_SALT).astype(np.float64) / 2.0**64 < share
    return alone, False


def prompt_keys(data: PairData) -> U64:
    """A hash of each pair's prompt, [N]."""
    prompts = [item.prompt for item in data.items]
    keys = {text: int(digest("prompt", text)[:16], 16) for text in set(prompts)}
    return np.array([keys[prompts[item]] for item in data.chosen.tolist()], np.uint64)
