"""Intervals that know clusters: pairs that share a prompt, a response or an annotator.

An estimate that is (to first order) a mean of influences psi_i, or a sum of means over classes c of
pairs (AUROC: wrong and right ones), moves by -J_g where cluster g is deleted, and has the
delete-one-cluster jackknife variance (Miller 1974; CR3 of MacKinnon, White 1985)

    J_g = sum_c sum_{i in g, c} psi_i / (N (1 - h_gc)),     V = (G - 1) / G sum_g J_g^2

h_gc is the share of the pairs of class c that are in g. Its interval uses Student's t with G* - 1
degrees of freedom, G* = min_c 1 / sum_g h_gc^2 the effective number of clusters (after Carter,
Schnepel, Steigerwald 2017): few wrong labels in few prompts leave few. Pairs that share a response
overlap without forming clusters: the J_u of responses u hold every pair twice, which is taken off
(Fafchamps, Gubert 2007). The widest of the given groupings counts. Shares are transformed to log
odds. Usage:

    auroc_interval(score, wrong, [prompts, np.stack([chosen, rejected], axis=1), annotators])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtrit

from noisescope.errors import EvidenceError
from noisescope.scoring.metrics import MASS, Interval, share

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

#: How often pure-noise labels may pass as better than chance.
CHANCE_LEVEL = 0.05


def cluster_interval(
    estimate: float,
    influence: Float,
    groupings: Sequence[Int],
    mass: float = MASS,
    classes: NDArray[Any] | None = None,
) -> Interval:
    """The widest interval of a share with influences [N], over `groupings` and single pairs.

    A grouping is codes [N], or [N, 2] where a pair belongs to two units (its responses); codes
    below 0 are clusters of their own. `classes` [N]: see `half_width`.
    """
    half = widest(influence, groupings, mass, classes)
    if not 0 < estimate < 1:
        edge = share(estimate * len(influence), len(influence), mass)
        return Interval(estimate, min(edge.low, 1 - half), max(edge.high, half))
    spread = half / (estimate * (1 - estimate))
    low, high = expit(logit(estimate) + np.array([-spread, spread]))
    return Interval(estimate, float(low), float(high))


def widest(
    influence: Float,
    groupings: Sequence[Int],
    mass: float = MASS,
    classes: NDArray[Any] | None = None,
) -> float:
    """Half the width of the widest interval, over `groupings` and single pairs."""
    single = np.arange(len(influence))
    return max(half_width(influence, codes, mass, classes) for codes in (single, *groupings))


def half_width(
    influence: Float,
    codes: NDArray[Any],
    mass: float = MASS,
    classes: NDArray[Any] | None = None,
) -> float:
    """Half the width of the interval of a mean of `influence` [N], clustered by `codes`.

    `classes` [N] are the classes of pairs that the estimate averages over one by one; None: one.
    1, the widest, where fewer than two clusters are effective.
    """
    count = len(influence)
    units, once = _units(codes)
    clusters = int(units.max()) + 1
    moved, effective = np.zeros(clusters), np.inf
    labels: Int = np.zeros(count, np.int64)
    if classes is not None:
        labels = np.unique(classes, return_inverse=True)[1].astype(np.int64)
    for label, members in enumerate(np.bincount(labels)):
        inside = (labels[:, None] == label) & once
        held = np.bincount(units[inside], minlength=clusters).astype(np.float64)
        effective = min(effective, float(held.sum() ** 2 / np.square(held).sum()))
        rest = 1 - held / members
        if effective < 2 or not rest.all():
            return 1.0
        each = np.broadcast_to(influence[:, None], units.shape)[inside]
        moved += np.bincount(units[inside], each, clusters) / rest
    square = float(np.square(moved).sum())
    if units.shape[1] == 2:
        own = np.square(influence)
        square = max(square - own[once[:, 1]].sum(), own.sum())
    variance = square * (clusters - 1) / clusters
    return float(stdtrit(effective - 1, (1 + mass) / 2) * np.sqrt(variance) / count)


def _units(codes: NDArray[Any]) -> tuple[Int, Bool]:
    """Units 0.. of each pair [N, K], and where one counts [N, K]: not twice in the same pair."""
    table = codes.reshape(len(codes), -1)
    unknown = np.repeat(table.min(axis=1, keepdims=True) < 0, table.shape[1], axis=1)
    fresh = np.arange(len(table))[:, None] + int(table.max(initial=0)) + 1
    table = np.where(unknown, fresh, table)
    units = np.unique(table, return_inverse=True)[1].reshape(table.shape)
    once = np.ones(table.shape, bool)
    once[:, 1:] = units[:, 1:] != units[:, :1]
    return units, once


def share_interval(values: Float, groupings: Sequence[Int]) -> Interval:
    """Mean of `values` [N] in [0, 1] with its cluster interval; NaN values are omitted."""
    known = np.isfinite(values)
    if not known.any():
        raise EvidenceError("a share of nothing has no value")
    mean = float(values[known].mean())
    return cluster_interval(mean, values[known] - mean, [codes[known] for codes in groupings])


def auroc_interval(score: Float, wrong: Bool, groupings: Sequence[Int]) -> Interval:
    """AUROC of `score` [N] for `wrong` [N] with its cluster interval.

    The influences are DeLong's placements: psi_i = N / n1 (P(score_i > a right pair's) - A) of a
    wrong pair, N / n0 (P(a wrong pair's > score_i) - A) of a right one; ties count half.
    """
    from scipy.stats import rankdata  # most of a second to load

    wrong = np.asarray(wrong, dtype=bool)
    ones, zeros = int(wrong.sum()), int((~wrong).sum())
    if not ones or not zeros:
        raise EvidenceError("AUROC needs wrong labels and right ones")
    rank = rankdata(score)
    place = np.empty(len(score))
    place[wrong] = (rank[wrong] - rankdata(score[wrong])) / zeros
    place[~wrong] = 1 - (rank[~wrong] - rankdata(score[~wrong])) / ones
    area = float(place[wrong].mean())
    scale = np.where(wrong, len(score) / ones, len(score) / zeros)
    return cluster_interval(area, scale * (place - area), groupings, classes=wrong)


def no_better_than_chance(margins: Float, codes: Int | None, *, cross_fitted: bool) -> bool:
    """Whether held-out margins [N] agree with the labels no more than a coin would (level 5 %).

    z = sum_g H_g / sqrt(c sum_g H_g^2), H_g the summed signs of the margins in cluster g, against
    Student's t. c = 2 where the replicas were cross-fitted to these labels: each label both is
    predicted and trains the others' predictions, which doubles the variance of a symmetric linear
    smoother. c = 1 for external replicas. `chance.sign_flip_test` is exact, and preferred.
    """
    known = np.isfinite(margins)
    signs = np.sign(margins[known])
    clusters = np.arange(known.sum()) if codes is None else codes[known]
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], signs)
    square = float(np.square(sums).sum()) * (2 if cross_fitted else 1)
    if len(sums) < 2 or not square:
        return True
    z = float(signs.sum()) / np.sqrt(square)
    return bool(z <= stdtrit(len(sums) - 1, 1 - CHANCE_LEVEL))
