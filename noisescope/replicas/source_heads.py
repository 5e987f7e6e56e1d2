"""A head for each source of the pairs, with a shared prior, where held-out labels want them.

A pair of source s has the margin (theta + delta_s) . z, where z are the leading principal
components of the differences of all features and delta_s ~ N(0, v). S sources are coded by S - 1
contrasts, so the shared head is their mean, and v is one more prior variance that held-out
likelihood chooses (`prior.search`). Heads are separate only if that beats one head with a slope
for each source, and one head on the labels of contrary sources reversed: labels of a source that
are noisier, or swapped throughout, must not be explained away as another preference. Usage:

    own = eligible(sources, keys)
    found = search_heads(problem, folds, own, keys, steps=25)
    if found.components:
        problem = found.components.added_to(problem, own.codes)    # with the group `BY_SOURCE`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import helmert
from scipy.optimize import minimize_scalar
from scipy.special import log_expit

from noisescope.replicas.cross_fit import Folds
from noisescope.replicas.prior import IDENTITY, Candidate, Int, Problem, evaluate, search
from noisescope.replicas.solver import Float, solve

if TYPE_CHECKING:
    import pyarrow as pa

#: Name of the group's prior variance.
BY_SOURCE = "by source"
#: A source has a head of its own from this many pairs and held-out groups on.
PAIRS, GROUPS = 50, 5
#: At most this many sources, the largest, have one.
SOURCES = 16
#: Principal components, and columns of the group (components x contrasts), at most.
COMPONENTS, COLUMNS = 64, 256
#: Prior variances of the coarse search.
LEVELS = (0.03, 0.3, 3.0)
#: Standard errors by which the held-out likelihood must rise: one-sided level .05.
CERTAIN = 1.645
#: Steepest slope of a shared margin; negative where a source's labels contradict the others.
STEEPEST = 4.0


@final
@dataclass(frozen=True)
class Sources:
    """Sources that may have heads of their own: `which` [N] numbers them (-1: the shared head).

    Rows of `contrasts` [S, S - 1] have norm 1 and inner products -1 / (S - 1); `names` [S] are the
    caller's numbers.
    """

    names: tuple[int, ...]
    which: Int
    contrasts: NDArray[np.float64]

    @property
    def codes(self) -> Float:
        """Contrasts of each pair's source, [N, S - 1]; 0 for the shared head."""
        known = (self.which >= 0)[:, None]
        return np.where(known, self.contrasts[self.which], 0).astype(np.float32)

    @property
    def components(self) -> int:
        """How many components the columns allow for so many contrasts."""
        return min(COMPONENTS, COLUMNS // int(self.contrasts.shape[1]))

    def among(self, pairs: NDArray[np.bool_]) -> Sources:
        """The sources of some of the pairs."""
        return replace(self, which=self.which[pairs])


def eligible(sources: Int | None, keys: NDArray[np.uint64]) -> Sources | None:
    """The largest sources [N] (-1 if unknown) that may have a head; None for fewer than two.

    keys [N] or [N, 2] are held out whole.
    """
    if sources is None:
        return None
    names, counts = np.unique(sources[sources >= 0], return_counts=True)
    large = [
        name
        for name in names[np.argsort(-counts, kind="stable")][:SOURCES].tolist()
        if (own := keys[sources == name]).shape[0] >= PAIRS
        and len(np.unique(own, axis=0)) >= GROUPS
    ]
    if len(large) < 2:
        return None
    which = np.full(len(sources), -1)
    for number, name in enumerate(large):
        which[sources == name] = number
    contrasts = helmert(len(large)).T * np.sqrt(len(large) / (len(large) - 1))
    return Sources(tuple(large), which, contrasts)


@final
@dataclass(frozen=True)
class Components:
    """The leading principal components of differences of features: group -> [D_g, d].

    Labels have no part in them: all groups weigh the same. At variance 1 all components together
    give margins of standard deviation 1.
    """

    loadings: Mapping[str, Float]

    @classmethod
    def of(cls, problem: Problem, count: int) -> Components:
        """At most `count` components, by three subspace iterations from a fixed random start."""
        names = [name for name in problem.names if name != IDENTITY]
        ends = np.cumsum([_columns(problem, name).shape[1] for name in names])
        width = int(ends[-1])

        def split(loadings: Float) -> dict[str, Float]:
            return dict(zip(names, np.split(loadings, ends[:-1]), strict=True))

        start = np.random.default_rng(0).normal(size=(width, min(width, count + 16)))
        basis: Float = start.astype(np.float32)
        for _ in range(3):
            basis = np.linalg.qr(basis)[0]
            spread = weighed(problem, split(basis))
            basis = np.vstack([problem.project(name, spread) for name in names])
        basis = np.linalg.qr(basis)[0]
        spread = weighed(problem, split(basis)).astype(np.float64)
        values, vectors = np.linalg.eigh(spread.T @ spread / len(spread))
        scale = np.sqrt(max(float(values[-count:].sum()), 1e-30))
        return cls(split((basis @ (vectors[:, -count:] / scale)).astype(np.float32)))

    def added_to(self, problem: Problem, codes: Float) -> Problem:
        """The problem with the group `BY_SOURCE`, [N, (S - 1) d]: contrasts times components."""
        columns = codes[:, :, None] * weighed(problem, self.loadings)[:, None, :]
        pairs = {**problem.pairs, BY_SOURCE: columns.reshape(len(codes), -1)}
        return replace(problem, pairs=pairs)

    def cosines(
        self, posed: Problem, variance: Mapping[str, float], contrasts: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Cosines [S, S] of the margins that the sources' heads, fitted to all, give all pairs."""
        everything = np.ones((posed.incidence.shape[0], 1), np.float32)
        slopes = solve(posed.design(variance), everything).slopes
        names = [name for name in posed.names if name != IDENTITY]
        theta = {name: np.float32(variance[name]) * posed.project(name, slopes) for name in names}
        delta = theta.pop(BY_SOURCE).reshape(contrasts.shape[1], -1)  # [S - 1, d]
        own = weighed(posed, self.loadings) @ delta.T @ contrasts.T.astype(np.float32)
        margins = (weighed(posed, theta) + own).astype(np.float64)  # [N, S]
        products = margins.T @ margins
        size = np.sqrt(np.maximum(np.diag(products), 1e-30))
        return np.asarray(products / np.outer(size, size))


def origins(table: pa.Table, sources: Int | None) -> list[str]:
    """The name of each source code of the pairs [N], in the order of the codes."""
    import pyarrow.compute as pc

    if sources is None:
        return []
    columns = [table.column(n) for n in ("origin", "source") if n in table.column_names]
    known = np.flatnonzero(sources >= 0)  # -1: of no known source
    first = known[np.unique(sources[known], return_index=True)[1]]
    return [str(name) for name in pc.coalesce(*columns).take(first).to_pylist()]


def weighed(problem: Problem, loadings: Mapping[str, Float]) -> Float:
    """Sum over groups of differences [N, D_g] times loadings [D_g, d], [N, d]."""
    parts = []
    for name, part in loadings.items():
        product = _columns(problem, name) @ part
        rows = name in problem.groups and problem.by_response
        parts.append(problem.incidence @ product if rows else product)
    out: Float = np.sum(parts, axis=0, dtype=np.float32)
    return out


def _columns(problem: Problem, name: str) -> Float:
    return problem.pairs[name] if name in problem.pairs else problem.groups[name]


@final
@dataclass(frozen=True)
class BySource:
    """How heads by source compare with one head, in nats of held-out likelihood a pair.

    `gain` and its standard error are over one head with a slope for each source. `alike` [S, S]
    are cosines of the margins that the heads give all pairs. `own`: each source has its own head.
    Otherwise the labels of `reversed_ones` contradict the others as if they were reversed.
    """

    sources: Sources
    alike: NDArray[np.float64]
    gain: float
    error: float
    own: bool
    reversed_ones: tuple[int, ...] = ()

    def to_json(self, origins: Sequence[str], variance: Mapping[str, float]) -> dict[str, Any]:
        """JSON object of the manifest; `origins` names the source of each code."""
        names = [origins[code] for code in self.sources.names]
        return {
            "own_heads": self.own,
            "sources": names,
            "alike": self.alike.round(4).tolist(),
            "gain_nats": self.gain,
            "gain_error": self.error,
            "variance": variance.get(BY_SOURCE, 0.0),
            "reversed": [names[number] for number in self.reversed_ones],
        }


@final
@dataclass(frozen=True)
class Found:
    """The search, best first; the components of heads by source if they are used."""

    candidates: Sequence[Candidate]
    components: Components | None = None
    by_source: BySource | None = None


def search_heads(
    problem: Problem,
    folds: Folds,
    sources: Sources | None,
    keys: NDArray[np.uint64],
    *,
    steps: int,
    start: Mapping[str, float] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Found:
    """Search the prior variances of a problem (see `prior.search`), and choose heads by source.

    `start`, the variances of an earlier fit, decides about the heads too. `problem` is without
    `BY_SOURCE`; keys [N] or [N, 2] are held out whole.
    """
    if sources is not None and start is not None and BY_SOURCE in start:
        components = Components.of(problem, sources.components)
        posed = components.added_to(problem, sources.codes)
        return Found(search(posed, folds, steps=steps, origin=start, progress=progress), components)
    shared = search(problem, folds, steps=steps, origin=start, progress=progress)
    if sources is None or start is not None:
        return Found(shared)
    components = Components.of(problem, sources.components)
    posed = components.added_to(problem, sources.codes)
    tried = [
        evaluate(posed, folds, {**shared[0].variance, BY_SOURCE: level}, shared[0].margins)
        for level in LEVELS
    ]
    best = max(tried, key=lambda candidate: candidate.log_likelihood)
    if best.log_likelihood <= shared[0].log_likelihood:
        return Found(shared)
    found = search(posed, folds, steps=steps // 2, origin=best.variance, progress=progress)
    held_out = partial(log_likelihoods, folds, sources)
    after = log_expit(_held_out(found[0], folds))
    gain, error = mean_gain(after - held_out(shared[0]), keys)
    if gain <= CERTAIN * error:
        return Found(shared)
    alike = components.cosines(posed, found[0].variance, sources.contrasts)
    opposite = tuple(np.flatnonzero(alike[0] < 0).tolist())
    if opposite:
        turned = reverse(problem, np.isin(sources.which, opposite))
        other = search(turned, folds, steps=steps, progress=progress)[0]
        gain, error = min((gain, error), mean_gain(after - held_out(other), keys))
    own = gain > CERTAIN * error
    verdict = BySource(sources, alike, gain, error, own, () if own else opposite)
    return Found(found, components, verdict) if own else Found(shared, None, verdict)


def _held_out(candidate: Candidate, folds: Folds) -> NDArray[np.float64]:
    return candidate.margins[np.arange(len(folds.own)), folds.own].astype(np.float64)


def reverse(problem: Problem, pairs: NDArray[np.bool_]) -> Problem:
    """The problem with the labels of some pairs [N] reversed."""
    sign = np.where(pairs, np.float32(-1), np.float32(1))[:, None]
    groups = problem.groups
    if not problem.by_response:
        groups = {name: x * sign for name, x in groups.items()}
    return replace(
        problem,
        groups=groups,
        incidence=problem.incidence.multiply(sign).tocsr(),
        pairs={name: x * sign for name, x in problem.pairs.items()},
    )


def log_likelihoods(folds: Folds, sources: Sources, candidate: Candidate) -> NDArray[np.float64]:
    """Held-out log likelihood [N] of one head with the most likely slope of each source."""
    margins = _held_out(candidate, folds)
    for number in range(len(sources.contrasts)):
        own = margins[sources.which == number]
        slope = minimize_scalar(
            lambda a, own=own: -log_expit(a * own).sum(),
            bounds=(-STEEPEST, STEEPEST),
            method="bounded",
        ).x
        margins[sources.which == number] *= slope
    return np.asarray(log_expit(margins))


def mean_gain(gains: NDArray[np.float64], keys: NDArray[np.uint64]) -> tuple[float, float]:
    """Mean of gains [N] and its standard error, where pairs of one key count as one draw."""
    groups = np.unique(keys, axis=0, return_inverse=True)[1].ravel()
    mean = float(gains.mean())
    sums = np.bincount(groups, gains - mean)
    return mean, float(np.sqrt(np.square(sums).sum())) / len(gains)
