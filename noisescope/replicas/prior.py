"""How much each group of features may move a margin: prior variances, by held-out likelihood.

Every group is scaled so that variance 1 means "this group alone gives margins of standard
deviation 1"; identity is one more group, a free ability per recurring response. The search is
gradient ascent on the K-fold held-out log-likelihood over log variances; it never sees truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit, log_expit

from noisescope.replicas.cross_fit import Folds
from noisescope.replicas.solver import Design, Float, solve, solve_linear

Int = NDArray[np.int64]
IDENTITY = "identity"
JITTER = 1e-4  # ability variance that keeps a kernel positive definite; margins of sd 0.01
KERNEL_ROWS = 2500  # up to here a Cholesky factor of the R x R kernel may replace the columns
LEVELS = (-8.0, -5.0, -3.0, -1.0, 1.0, 3.0)  # common log variance: the coarse search
BOUNDS = (-12.0, 8.0)
GAIN = 1000.0  # L-BFGS sees nats per thousand pairs: a first step of a sensible length


@dataclass(frozen=True)
class Problem:
    """The pairs and their scaled groups, without weights or variances."""

    groups: Mapping[str, Float]  # [K, D_g]; K = R responses, or N within-pair differences
    incidence: csr_array  # [N, R], +1 at the chosen and -1 at the rejected response
    recurring: NDArray[np.bool_]  # [R], responses that get a free ability
    by_response: bool  # whether K = R
    grams: Mapping[str, NDArray[np.float64]]  # [R, R] per group where R is the smaller side
    pairs: Mapping[str, Float] = field(default_factory=dict)  # [N, E_g], numbers of the pairs

    @property
    def names(self) -> list[str]:
        """The groups that have a variance."""
        return [*self.groups, *self.pairs, *([IDENTITY] if self.recurring.any() else [])]

    def design(self, variance: Mapping[str, float]) -> Design:
        """Margins as a map of whitened coefficients u ~ N(0, 1) under these prior variances."""
        identity = variance.get(IDENTITY, 0.0)
        numbers = None
        if self.pairs:
            weighed = [np.float32(np.sqrt(variance[name])) * x for name, x in self.pairs.items()]
            numbers = np.concatenate(weighed, axis=1)
        if self.grams:
            kernel = np.diag(identity * self.recurring + JITTER)
            for name, gram in self.grams.items():
                kernel += variance[name] * gram
            factor = np.linalg.cholesky(kernel).astype(np.float32)
            return Design(factor, self.incidence, None, numbers)
        scaled = [np.float32(np.sqrt(variance[name])) * x for name, x in self.groups.items()]
        dense = np.concatenate([np.zeros((self.rows, 0), np.float32), *scaled], axis=1)
        abilities = self.incidence[:, self.recurring] * np.float32(np.sqrt(identity))
        incidence = self.incidence if self.by_response else None
        return Design(dense, incidence, abilities if self.recurring.any() else None, numbers)

    @property
    def rows(self) -> int:
        """K."""
        return int(self.incidence.shape[1 if self.by_response else 0])

    def project(self, name: str, slopes: Float) -> Float:
        """Slopes [N, Q] -> [D_g, Q]: the transpose of a group's map at variance 1."""
        if name == IDENTITY:
            out: Float = (self.incidence.T @ slopes)[self.recurring]
            return out
        if name in self.pairs:
            return self.pairs[name].T @ slopes
        rows = self.incidence.T @ slopes if self.by_response else slopes
        return self.groups[name].T @ rows


def pose(
    rows: Mapping[str, Float],
    chosen: Int,
    rejected: Int,
    recurring: NDArray[np.bool_],
    pairs: Mapping[str, Float] | None = None,
) -> Problem:
    """Pose the problem over `rows` [R, D_g] and `pairs` [N, E_g].

    Differences are taken once if R exceeds N.
    """
    pairs = pairs or {}
    n, r = len(chosen), len(recurring)
    signs = np.tile(np.array([1, -1], np.float32), n)
    ends = np.stack([chosen, rejected], axis=1).ravel()
    incidence = csr_array((signs, ends, np.arange(0, 2 * n + 1, 2)), shape=(n, r))
    if r > n:
        differences = {name: x[chosen] - x[rejected] for name, x in rows.items()}
        return Problem(differences, incidence, recurring, False, {}, pairs)
    grams = {}
    if r <= min(KERNEL_ROWS, sum(x.shape[1] for x in rows.values()) + int(recurring.sum())):
        grams = {name: gram(x) for name, x in rows.items()}
    return Problem(rows, incidence, recurring, True, grams, pairs)


def gram(x: Float) -> NDArray[np.float64]:
    """Inner products [R, R] in float64: a kernel of large variances has to stay definite."""
    wide = x.astype(np.float64)
    out: NDArray[np.float64] = wide @ wide.T
    return out


def unit_pair_scale(x: Float) -> Float:
    """Column factors [E] for numbers of pairs [N, E], as `unit_scale` has them for responses.

    Pairs without a number (0) do not count: variance 1 means margins of standard deviation 1 where
    the source knows something, however few pairs those are.
    """
    known = np.maximum((x != 0).sum(axis=0), 1)
    rms = np.sqrt(np.square(x.astype(np.float64)).sum(axis=0) / known)
    live = rms > 0
    scale = np.divide(1.0, rms, out=np.zeros_like(rms), where=live)
    out: Float = (scale / np.sqrt(max(int(live.sum()), 1))).astype(np.float32)
    return out


def unit_scale(x: Float, chosen: Int, rejected: Int) -> Float:
    """Column factors [D] that make each column's within-pair mean square 1 / (live columns).

    Constant columns get 0. Scaling by pair differences, not by rows, ignores what the prompt
    explains (it cancels in every margin).
    """
    square = np.zeros(x.shape[1])
    for start in range(0, len(chosen), 4096):
        part = slice(start, start + 4096)
        difference = x[chosen[part]].astype(np.float64) - x[rejected[part]]
        square += np.square(difference).sum(axis=0)
    rms = np.sqrt(square / len(chosen))
    live = rms > 1e-6 * max(float(np.abs(x).max(initial=0.0)), 1e-30)
    factor = np.where(live, 1 / np.where(live, rms, 1), 0) / np.sqrt(max(1, live.sum()))
    out: Float = factor.astype(np.float32)
    return out


@dataclass(frozen=True)
class Candidate:
    """One point of the search: prior variance per group and its held-out result."""

    variance: Mapping[str, float]
    log_likelihood: float  # mean held-out log sigma(margin), nats per pair
    gradient: NDArray[np.float64]  # by log variance
    margins: Float  # [N, folds], a warm start for its neighbours


def evaluate(
    problem: Problem,
    folds: Folds,
    variance: Mapping[str, float],
    start: Float | None,
) -> Candidate:
    """K-fold held-out likelihood and its exact gradient by implicit differentiation.

    With L = mean log sigma(m_i,own(i)), c = dL/dm, W = diag(s p (1-p)), H = I + A'WA:
    mu = c - W A H^-1 A' c and dL/d log v_g = v_g <Phi_g' mu, Phi_g' slopes>.
    """
    design, pairs, weights = problem.design(variance), np.arange(len(folds.own)), folds.train
    fit = solve(design, weights, start)
    held_out = fit.margins[pairs, folds.own]
    outer = np.zeros_like(weights)
    outer[pairs, folds.own] = expit(-held_out) / len(pairs)
    p = expit(fit.margins)
    curvature = weights * p * (1 - p)
    right = design.adjoint(outer)
    adjoint = solve_linear(design, curvature, right, fit.precondition, tolerance=0.01)
    mu = outer - curvature * design.margins(adjoint)
    gradient = [
        variance[name]
        * float(np.vdot(problem.project(name, mu), problem.project(name, fit.slopes)))
        for name in problem.names
    ]
    value = float(log_expit(held_out.astype(np.float64)).mean())
    return Candidate(dict(variance), value, np.array(gradient), fit.margins)


def search(
    problem: Problem,
    folds: Folds,
    *,
    steps: int,
    origin: Mapping[str, float] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Sequence[Candidate]:
    """Candidates tried: a common level for all groups, then L-BFGS from the best; best first.

    `origin`, the variances found for almost the same labels, takes the place of the levels.
    """
    tried: list[Candidate] = []

    def descend(log_variance: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        variance = dict(zip(problem.names, np.exp(log_variance).tolist(), strict=True))
        start = tried[-1].margins if tried else None
        tried.append(evaluate(problem, folds, variance, start))
        if progress:
            progress(f"held-out log-likelihood {tried[-1].log_likelihood:.5f}")
        return -GAIN * tried[-1].log_likelihood, -GAIN * tried[-1].gradient

    if origin is None:
        for level in LEVELS:
            descend(np.full(len(problem.names), level))
        origin = max(tried, key=lambda candidate: candidate.log_likelihood).variance
    begin = np.log([origin[name] for name in problem.names])
    options = {"maxfun": steps, "ftol": 1e-6}
    bounds = [BOUNDS] * len(begin)
    minimize(descend, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return sorted(tried, key=lambda candidate: -candidate.log_likelihood)
