"""Test whether held-out margins know more about the labels than a coin: sign-flip permutation.

Under the null hypothesis the labels of a group (all pairs of one key) may be reversed together
without changing their distribution. The statistic is the best held-out log likelihood
over `LEVELS` of regularisation, so the search is part of the null distribution; it is computed
for the labels as they are and for `DRAWS` random reversals. At p(label) = 1/2 the logistic fit is
linear in the labels (weights 1/4, working response s/2), so all reversals and folds are right-hand
sides of one linear system. The test is exact: its level is 1/20 whatever the number of features,
the density of the comparison graph, or the copies in the data. Usage:

    p = sign_flip_test(problem, keys, assign(keys, seed=0, replica=0, folds=FOLDS), seed=0)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit

from noisescope.pairs import hashed
from noisescope.replicas.cross_fit import Folds
from noisescope.replicas.prior import Problem
from noisescope.replicas.solver import Design, Float, Preconditioner, solve_linear

#: Random reversals: 38 of 39 below the observed statistic make p = 1/20.
DRAWS = 39
FOLDS = 5
#: Common log prior variances of all groups of features.
LEVELS = (-7.0, -4.0, -2.0, 0.0)
#: Pairs x right-hand sides solved together: bounds memory at some 500 MB.
CELLS = 12_000_000
_SALT = 31


def sign_flip_test(problem: Problem, keys: NDArray[np.uint64], folds: Folds, *, seed: int) -> float:
    """p value of "the labels are a coin toss given the features", in {1/40, 2/40, .., 1}.

    keys [N] name the groups whose labels are reversed together.
    """
    signs = random_signs(keys, seed)
    best = np.full(len(signs), -np.inf)
    for level in LEVELS:
        design = problem.design(dict.fromkeys(problem.names, float(np.exp(level))))
        margins = linear_margins(design, signs, folds)
        best = np.maximum(best, log_expit((signs * margins).astype(np.float64)).mean(axis=1))
    return float((best >= best[0]).mean())


def random_signs(keys: NDArray[np.uint64], seed: int) -> Float:
    """Signs [DRAWS + 1, N] in {-1, 1}, equal where the key is; the first row is all 1."""
    rows = [np.ones(len(keys), np.float32)]
    for draw in range(DRAWS):
        bit = hashed(keys, seed, draw, _SALT) >> np.uint64(63)
        rows.append(np.where(bit == 1, np.float32(1), np.float32(-1)))
    return np.stack(rows)


def linear_margins(design: Design, signs: Float, folds: Folds) -> Float:
    """Held-out margins [B, N] of the logistic fit to labels `signs` [B, N], linearised at 0.

    With training weights w [N] of a problem: (I + A' diag(w / 4) A) u = A' (w s / 2).
    """
    pairs, width = np.arange(len(folds.own)), folds.count
    precondition = Preconditioner.of(design, folds.train.mean(axis=1) / 4)
    together = max(1, CELLS // folds.train.size)
    out = np.empty(signs.shape, np.float32)
    for start in range(0, len(signs), together):
        part = signs[start : start + together].T  # [N, b]
        weights: Float = np.tile(folds.train, (1, part.shape[1]))  # column b * P + problem
        right = design.adjoint(weights * np.repeat(part / np.float32(2), width, axis=1))
        fitted = design.margins(solve_linear(design, weights / np.float32(4), right, precondition))
        for b in range(part.shape[1]):
            out[start + b] = fitted[pairs, b * width + folds.own]
    return out
