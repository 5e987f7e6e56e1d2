"""Fit the same labels a second time with other folds, to see whether errors are shared.

    contrasts = second_fits(table, features, (chosen, rejected), "prompt", config, fit, facts)

A fit that holds out whole prompts is set beside one that pools responses, and the reverse, where
responses or prompts recur at all (see `scoring.contrasts`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noisescope.replicas.groups import held_out_groups, pair_keys
from noisescope.replicas.head import HeadConfig, HeadFit, fit_heads
from noisescope.replicas.prior import IDENTITY, Int
from noisescope.replicas.solver import Float
from noisescope.scoring.contrasts import HELD_OUT, POOLED, Contrast, measure
from noisescope.scoring.pair_facts import PairFacts

if TYPE_CHECKING:
    import pyarrow as pa

#: A second fit yields two numbers, not a ranking: few replicas and a short search do.
REPLICAS = 2
STEPS = 10
#: Variance of the abilities where the search begins, if the first fit had none.
ABILITY = 0.1


def second_fits(
    table: pa.Table,
    features: Mapping[str, Float],
    sides: tuple[Int, Int],
    folds_by: str,
    config: HeadConfig,
    fit: HeadFit,
    facts: PairFacts,
    numbers: Mapping[str, Float] | None = None,
) -> list[Contrast]:
    """Accuracy and flip rate of the cross-fits that `fit` is not; `facts` of the pairs."""
    own = POOLED if config.identity and folds_by == "pair" else HELD_OUT
    found = []
    for name, keys in _kinds(table, sides, own, folds_by):
        identity = name == POOLED
        start = {group: value for group, value in fit.variance.items() if group != IDENTITY}
        settings = replace(
            config,
            replicas=REPLICAS,
            identity=identity,
            search_steps=STEPS,
            test_chance=False,
        )
        if identity:
            start[IDENTITY] = fit.variance.get(IDENTITY, ABILITY)
        other = fit_heads(
            features,
            *sides,
            pair_keys(table),
            settings,
            numbers=numbers,
            held_out=keys,
            sources=facts.sources,
            start=start,
        )
        found.append(measure(name, other.margins.mean(axis=0, dtype=np.float64), facts))
    return found


def _kinds(
    table: pa.Table, sides: tuple[Int, Int], own: str, folds_by: str
) -> Iterator[tuple[str, NDArray[np.uint64]]]:
    """Names and keys of the fits to make beside the `own` one."""
    single = pair_keys(table)
    ends = np.concatenate(sides)
    if own == HELD_OUT and len(np.unique(ends)) < len(ends):
        yield POOLED, single
    if own == POOLED or folds_by == "pair":
        keys = held_out_groups(table, "prompt").keys
        if keys.ndim == 2 or len(np.unique(keys)) < len(np.unique(single)):
            yield HELD_OUT, keys
