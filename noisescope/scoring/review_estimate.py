"""Estimate the share of wrong labels from a few people's judgements, whatever the noise is.

    cells = stratify(p_wrong, seed)              # [N] 1..K * SLICES
    order = queue(cells, coins, again, seed)     # review in this order; stop anywhere
    found = review(cells, p_wrong, votes)
    found.share().share                          # Interval(estimate, low, high)

A stratum holds an equal share of sum_i sqrt(q_i (1 - q_i)), q = p_wrong drawn a little towards one
half, and each round of the queue takes one pair from every stratum, so that sizes are near
Neyman's and any beginning of the queue is a stratified sample. The share of stratum h is

    s_h = (k_h + c_h) / (n_h + 1)          k_h of n_h answers found the label wrong
    theta = sum_h W_h s_h                  W_h = N_h / N
    V = sum_h W_h^2 s_h (1 - s_h) / (n_h + 1) (1 - n_h / N_h) mean_i (1 + d_i)^2 (t / z)^2

with c_h the stratum's mean p_wrong as recalibrated on the answers themselves, d_i what an answer
adds to theta through that recalibration, relative to what it adds through its own stratum (the
c_h are no constants: an answer that moves all of them counts more), and t Student's quantile for
Satterthwaite's degrees of freedom, which matter where one stratum dominates. The
interval is that of the Beta distribution with this mean and variance. p_wrong decides how narrow
it is; that it covers rests on the draw alone.

Reviewers err. Where two or more judge the same pairs, their disagreements identify one error
rate r: pairs of judgements differ with probability 2 r (1 - r), right label or wrong. The estimate
averages over r's posterior. Where nobody judged a pair twice r is not identified, and the estimate
is of what this reviewer would say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, binom, expit, logit, ndtri, stdtrit, xlogy

from noisescope.errors import EvidenceError
from noisescope.scoring.metrics import MASS, Interval

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Cells = NDArray[np.uint8]

#: Cells of a stratum (a power of two), through which its sample walks.
SLICES = 8
_REVERSED = np.array([0, 4, 2, 6, 1, 5, 3, 7])
#: Strata of a sample at most and at least, and the fewest pairs that one may hold on average.
STRATA = 10
FEWEST_STRATA = 4
FEWEST_A_STRATUM = 5
#: How far p_wrong is drawn towards one half before it decides sizes: where the audit is sure and
#: wrong, pairs must still be looked at.
FLOOR = 0.05
#: Smallest centre of a stratum's prior, and 1 - the largest.
CENTRE = 0.02
#: Stratum of pairs that are not sampled: all of them were looked at (`--for fix`).
CENSUS = 0
#: Pairs that two reviewers must have judged before their error rate is estimated.
FEWEST_SHARED = 10
#: Beta prior of a reviewer's error rate below one half: mean 10 %.
ERROR_PRIOR = (1.0, 9.0)
#: Error rate of reviewers whom nobody checked, and the least of others.
UNCHECKED = 0.02
#: Standard deviations of the recalibration's prior: intercept, and slope around 1.
RECALIBRATION_PRIOR = (0.5, 0.25)
FLATTEST = 0.05
_SHIFT, _MASK = 1, 2  # salts of a sample's seed
_RATES = 60  # grid of error rates
_EDGE = 1e-3  # probabilities are kept this far from 0 and 1 before their log odds are taken


def strata_for(count: int) -> int:
    """Strata of a sample of `count` pairs: about ten answers each, or as many as are allowed."""
    return min(STRATA, max(FEWEST_STRATA, count // 10))


def stratify(p: Float, seed: int, census: Bool | None = None, *, strata: int = STRATA) -> Cells:
    """Cell [N] of each pair by p_wrong [N]: 1..`strata` * SLICES, CENSUS where `census` [N] holds.

    A stratum is SLICES cells in a row: slices of equal size of its pairs in the order of p_wrong,
    which is taken as a circle with a start drawn by `seed`, so that no pair is the likelier one.
    Undefined probabilities count as one half: the audit knows nothing of these pairs.
    """
    known = np.zeros(len(p), bool) if census is None else census
    cells = np.full(len(p), CENSUS, np.uint8)
    here = np.flatnonzero(~known)
    if not len(here):
        return cells
    count = max(1, min(strata, len(here) // FEWEST_A_STRATUM))
    q = FLOOR + (1 - 2 * FLOOR) * np.nan_to_num(p[here], nan=0.5)
    size = np.sqrt(q * (1 - q))
    order = np.argsort(q, kind="stable")
    middle = np.cumsum(size[order]) - size[order] / 2
    stratum = np.minimum(count * middle / size.sum(), count - 1).astype(np.int64)
    sizes = np.bincount(stratum, minlength=count)
    shift = np.random.default_rng((seed, _SHIFT)).integers(0, np.maximum(sizes, 1))
    position = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[stratum] + shift[stratum]
    position %= sizes[stratum]
    cells[here[order]] = 1 + SLICES * stratum + SLICES * position // sizes[stratum]
    return cells


def stratum_of(cells: Cells) -> Cells:
    """Stratum of each cell: 1..K, CENSUS for CENSUS."""
    return np.asarray((cells + np.uint8(SLICES - 1)) // np.uint8(SLICES))


def queue(cells: Cells, coins: Float, again: Float, seed: int) -> NDArray[np.int64]:
    """Places of the sampled pairs in the order to review them.

    `coins` and `again` [N] are two independent uniform numbers of each pair. Every round takes
    one pair of each stratum, in an order of their `again`; the rounds walk through a stratum's
    slices in bit-reversed order from a random start, so that few rounds already spread over all
    of p_wrong; within a slice the pair with the smallest coin is next.
    """
    sampled = np.flatnonzero(cells != CENSUS)
    by_coin = sampled[np.lexsort((coins[sampled], cells[sampled]))]
    cell = cells[by_coin].astype(np.int64)
    sizes = np.bincount(cell, minlength=1)
    taken = np.arange(len(by_coin)) - (np.cumsum(sizes) - sizes)[cell]
    stratum, piece = np.divmod(cell - 1, SLICES)
    masks = np.random.default_rng((seed, _MASK)).integers(0, SLICES, STRATA)
    visit = _REVERSED[piece ^ masks[stratum]]
    turn = np.empty(len(by_coin), np.int64)
    order = np.lexsort((visit, taken, stratum))  # close ranks where a slice is used up
    counts = np.bincount(stratum, minlength=STRATA)
    turn[order] = np.arange(len(order)) - (np.cumsum(counts) - counts)[stratum[order]]
    return np.asarray(by_coin[np.argsort(turn + again[by_coin], kind="stable")])


@final
@dataclass(frozen=True)
class Votes:
    """Judgements of n pairs: their places among N, and for each one how many reviewers found the
    label wrong, right, and how many called it a tie. [n] each.
    """

    place: NDArray[np.int64]
    wrong: Float
    right: Float
    tie: Float

    def __len__(self) -> int:
        return len(self.place)

    @property
    def judged(self) -> Float:
        """Judgements of each pair that take a side, [n]."""
        return self.wrong + self.right

    def likelihoods(self, error: Float | float) -> tuple[Float, Float]:
        """P(the judgements | label wrong) and P(... | right) at error rates [R]: [R, n] each."""
        r = np.atleast_1d(np.asarray(error, np.float64))[:, None]
        against = xlogy(self.wrong, 1 - r) + xlogy(self.right, r)
        favour = xlogy(self.wrong, r) + xlogy(self.right, 1 - r)
        return np.exp(against), np.exp(favour)

    @cached_property
    def agreement(self) -> tuple[float, int]:
        """Share of agreeing pairs of judgements on the same pair, a tie against a side counting
        one half, and how many pairs were judged twice or more.
        """
        total = self.wrong + self.right + self.tie
        several = total >= 2
        pairs = total * (total - 1) / 2
        same = sum(c * (c - 1) / 2 for c in (self.wrong, self.right, self.tie))
        half = self.tie * self.judged / 2
        agreeing = float((same + half)[several].sum())
        return agreeing / max(float(pairs[several].sum()), 1.0), int(several.sum())


@final
@dataclass(frozen=True)
class ErrorRate:
    """Posterior weights [R] of reviewers' error rate on a grid of rates [R]."""

    rates: Float
    weights: Float

    @property
    def known(self) -> bool:
        """Whether it was measured, rather than taken to be zero."""
        return len(self.rates) > 1

    @property
    def mean(self) -> float:
        return float(self.rates @ self.weights)

    def interval(self) -> Interval:
        """Mean and central interval."""
        mass = np.cumsum(self.weights)
        low, high = (self.rates[np.searchsorted(mass, q)] for q in ((1 - MASS) / 2, (1 + MASS) / 2))
        return Interval(self.mean, float(low), float(high))


def error_rate(votes: Votes) -> ErrorRate:
    """How often reviewers take the wrong side, from pairs that several of them judged.

    Zero, and not `known`, where fewer than FEWEST_SHARED pairs were judged twice.
    """
    several = votes.judged >= 2
    if several.sum() < FEWEST_SHARED:
        return ErrorRate(np.zeros(1), np.ones(1))
    rates = (np.arange(_RATES) + 0.5) / (2 * _RATES)
    against, favour = votes.likelihoods(rates)
    split = np.log((against + favour)[:, several]).sum(axis=1)  # the same for both truths
    a, b = ERROR_PRIOR
    log = split + xlogy(a - 1, rates) + xlogy(b - 1, 1 - rates)
    weights = np.exp(log - log.max())
    return ErrorRate(rates, weights / weights.sum())


@final
@dataclass(frozen=True)
class Recalibration:
    """p' = sigma(intercept + slope logit p), slope > 0: the order of pairs stays."""

    intercept: float = 0.0
    slope: float = 1.0

    def __call__(self, p: Float) -> Float:
        """Recalibrated probabilities, NaN where p is."""
        return np.asarray(expit(self.intercept + self.slope * logit(np.clip(p, _EDGE, 1 - _EDGE))))


def levelled(p: Float, share: float) -> Float:
    """Move the log odds of p [N] by one constant, so that the mean is `share`; NaN stays NaN."""
    from scipy.optimize import brentq

    known = p[np.isfinite(p)]
    if not len(known):
        return p
    share = min(max(share, _EDGE), 1 - _EDGE)
    return Recalibration(brentq(lambda a: float(Recalibration(a)(known).mean()) - share, -20, 20))(
        p
    )


def recalibrate(p: Float, votes: Votes, weights: Float, error: float) -> Recalibration:
    """Fit the two parameters to judgements by weighted maximum likelihood.

    p [n] and weights [n] (inverse inclusion probabilities) belong to the pairs of `votes`. The
    weights are scaled by `kish`, so that the prior, slope around 1 and intercept around 0, counts
    as it would in a simple random sample.
    """
    from scipy.optimize import minimize

    used = (votes.judged > 0) & np.isfinite(p) & (weights > 0)
    if not used.any():
        return Recalibration()
    x = logit(np.clip(p[used], _EDGE, 1 - _EDGE))
    w = kish(weights[used])
    against, favour = (side[0][used] for side in votes.likelihoods(error))
    spread = np.array(RECALIBRATION_PRIOR)

    def objective(theta: Float) -> tuple[float, Float]:
        q = expit(theta[0] + theta[1] * x)
        mixed = np.maximum(against * q + favour * (1 - q), 1e-12)
        slopes = w * (against - favour) * q * (1 - q) / mixed
        away = (theta - (0.0, 1.0)) / spread
        value = -(w * np.log(mixed)).sum() + np.square(away).sum() / 2
        return float(value), -np.array([slopes.sum(), (slopes * x).sum()]) + away / spread

    best = minimize(
        objective,
        np.array([0.0, 1.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-20, 20), (FLATTEST, 5)],
    )
    return Recalibration(float(best.x[0]), float(best.x[1]))


def kish(weights: Float) -> Float:
    """Weights [n] scaled to sum to Kish's effective number of answers."""
    return np.asarray(weights * weights.sum() / max(float(np.square(weights).sum()), 1e-300))


@final
@dataclass(frozen=True)
class Estimate:
    """What judgements give about some pairs: share of wrong labels, and how many pairs of them
    were judged.
    """

    share: Interval
    pairs: int
    judged: int


@final
@dataclass(frozen=True)
class Reviewed:
    """Everything that answers support: made once by `review`, asked of any set of pairs.

    `cells` [N] as drawn, `p` [N] is p_wrong as recalibrated, `weights` [n] the inverse inclusion
    probabilities of the judged pairs (1 in the census, 0 outside the
    sample).
    """

    cells: Cells
    p: Float
    votes: Votes
    weights: Float
    error: ErrorRate
    recalibration: Recalibration

    def share(self, domain: Bool | None = None) -> Estimate:
        """Share of wrong labels among the pairs of `domain` [N], all of them by default.

        Raises EvidenceError for an empty domain.
        """
        inside = np.ones(len(self.p), bool) if domain is None else domain
        size = int(inside.sum())
        if not size:
            raise EvidenceError("a share of no pairs has no value")
        strata = stratum_of(self.cells)
        used = (self.weights > 0) & inside[self.votes.place]
        parts = []
        for stratum in np.unique(strata[inside]):
            members = inside & (strata == stratum)
            chosen = used & (strata[self.votes.place] == stratum)
            parts.append((members, chosen, *self._stratum(members, chosen)))
        weight = np.array([members.sum() / size for members, *_ in parts])
        mean = weight @ np.stack([part[2] for part in parts])  # [R]
        estimate = float(self.error.weights @ mean)
        within = np.square(weight) * (np.stack([part[3] for part in parts]) @ self.error.weights)
        within = within * self._pulled(parts, weight)  # [H]
        freedom = np.array([max(int(chosen.sum()) - 1, 1) for _, chosen, *_ in parts])
        wider = _student(within, freedom) * within.sum()
        between = float(self.error.weights @ np.square(mean - estimate))
        return Estimate(beta_interval(estimate, wider + between), size, int(used.sum()))

    def _pulled(self, parts: Sequence[tuple[Bool, Bool, Float, Float]], weight: Float) -> Float:
        """mean_i (1 + d_i)^2 of each stratum [H] of `weight` [H].

        `parts` are its members [N], judged pairs [n], share and variance [R]. A stratum's c has
        the share u = variance / (s (1 - s)) of its estimate, as has each of its answers.
        """
        shrunk, slopes = [], []
        for members, _, share, variance in parts:
            spread = np.maximum(share * (1 - share), 1e-12)  # 0 in a census
            shrunk.append(float(self.error.weights @ (variance / spread)))
            q = self.p[members]
            slopes.append([(q * (1 - q)).mean(), (q * (1 - q) * self._log_odds(q)).mean()])
        pull = (weight * np.array(shrunk)) @ np.array(slopes) @ self._answers_move()  # [n]
        factors = []
        for (members, chosen, *_), u, w in zip(parts, shrunk, weight, strict=True):
            left = 1 - chosen.sum() / members.sum()
            own = w * u / left if left > 0 else 0.0
            factors.append(np.square(1 + pull[chosen] / own).mean() if own and chosen.any() else 1)
        return np.array(factors)

    def _log_odds(self, q: Float) -> Float:
        """logit p before the recalibration, from q after it."""
        fitted = self.recalibration
        return np.asarray((logit(q) - fitted.intercept) / fitted.slope)

    def _answers_move(self) -> Float:
        """How far each answer moves the recalibration's two parameters, [2, n]: H^-1 x w."""
        q, used = self.p[self.votes.place], (self.weights > 0) & (self.votes.judged > 0)
        w = np.where(used, kish(np.where(used, self.weights, 0.0)), 0.0)
        x = np.stack([np.ones(len(q)), self._log_odds(q)])
        known = np.zeros(len(q))
        for judged in np.unique(self.votes.judged[used]):
            here = used & (self.votes.judged == judged)
            each = information(q[here, None], np.array([self.error.mean]), judged)[:, 0]
            known[here] = each * np.square(q[here] * (1 - q[here]))
        curvature = (x * (w * known)) @ x.T + np.diag(1 / np.square(RECALIBRATION_PRIOR))
        return np.asarray(np.linalg.solve(curvature, x * w))

    def _stratum(self, members: Bool, chosen: Bool) -> tuple[Float, Float]:
        """Mean and variance [R] of the share of wrong labels among `members` [N] of a stratum at
        each error rate, from the judged pairs `chosen` [n].
        """
        n, size = int(chosen.sum()), int(members.sum())
        sampled = n / size
        centre = float(np.clip(self.p[members].mean(), CENTRE, 1 - CENTRE))
        if self.error.known:
            share, variance = _mode(self.votes, chosen, centre, self.error.rates)
            of_the_draw = share * (1 - share) / (n + 1)
            return share, np.maximum(variance - sampled * of_the_draw, 0.0)
        wrong = float(self._wrong[chosen].sum())
        share = np.array([(wrong + centre) / (n + 1)])
        mean = sampled * wrong / max(n, 1) + (1 - sampled) * share
        return mean, share * (1 - share) / (n + 1) * (1 - sampled)

    @cached_property
    def _wrong(self) -> Float:
        """1 where most reviewers of a pair found its label wrong, 0 right, one half a draw [n]."""
        return np.asarray((np.sign(self.votes.wrong - self.votes.right) + 1) / 2)

    def posterior(self) -> Float:
        """p_wrong [N] given the answers: recalibrated, and of judged pairs by Bayes' rule.

        Reviewers whose error rate nobody measured are taken to err once in fifty.
        """
        p = self.p.copy()
        error = checked_error(self.error)
        against, favour = (side[0] for side in self.votes.likelihoods(error))
        before = np.nan_to_num(p[self.votes.place], nan=0.5)
        p[self.votes.place] = against * before / (against * before + favour * (1 - before))
        return p


def checked_error(error: ErrorRate) -> float:
    """The error rate that one answer is read with: UNCHECKED where nobody measured more."""
    return max(error.mean, UNCHECKED)


def review(
    cells: Cells,
    p: Float,
    votes: Votes,
    *,
    drawn: Bool | None = None,
    error: ErrorRate | None = None,
) -> Reviewed:
    """Estimate everything from judgements. p [N] is p_wrong as the audit has it, `cells` as drawn.

    `drawn` [n] is False for judged pairs that the queue has not reached (copies of a pair that it
    has): they are no part of the sample. Judged pairs of the cell CENSUS represent themselves
    alone. `error` is that of `votes` unless given.
    """
    counted = np.ones(len(votes), bool) if drawn is None else drawn
    strata = stratum_of(cells)
    sizes = np.bincount(strata)
    answered = np.bincount(strata[votes.place[counted]], minlength=len(sizes))
    weight = sizes / np.maximum(answered, 1)
    weight[CENSUS] = 1.0
    weights = np.where(counted, weight[strata[votes.place]], 0.0)
    error = error or error_rate(votes)
    half = np.nan_to_num(p, nan=0.5)
    fitted = recalibrate(half[votes.place], votes, weights, error.mean)
    return Reviewed(cells, fitted(half), votes, weights, error, fitted)


def _mode(votes: Votes, chosen: Bool, centre: float, rates: Float) -> tuple[Float, Float]:
    """Share of wrong labels [R] behind the judgements of the pairs `chosen` [n], and its variance.

    At an error rate r a pair with judgements v has the likelihood A s + B (1 - s), A = P(v | wrong
    label), B = P(v | right). The share s maximises their product times s^c (1 - s)^(1 - c), one
    answer's worth of prior; its variance is the inverse of the expected information. At r = 0
    both are those of `Reviewed._stratum`.
    """
    sides = np.stack([votes.wrong, votes.right])[:, chosen]
    kinds, counts = np.unique(sides, axis=1, return_counts=True)
    wrong, right = kinds  # [J]
    r = rates[:, None]
    against, favour = (1 - r) ** wrong * r**right, r**wrong * (1 - r) ** right  # [R, J]
    tied = counts[wrong + right == 0].sum() / 2
    count = np.where(wrong + right > 0, counts, 0)
    low, high = np.zeros_like(r), np.ones_like(r)
    for _ in range(50):  # the slope falls
        s = (low + high) / 2
        slope = (centre + tied) / s - (1 - centre + tied) / (1 - s)
        slope += (count * (against - favour) / (against * s + favour * (1 - s))).sum(
            1, keepdims=True
        )
        low, high = np.where(slope > 0, s, low), np.where(slope > 0, high, s)
    s = (low + high) / 2
    known = (1 + 2 * tied) / (s * (1 - s))
    for judged, several in zip(*np.unique(sides.sum(axis=0), return_counts=True), strict=True):
        known += several * information(s, rates, judged)
    return s[:, 0], 1 / known[:, 0]


def information(s: Float, rates: Float, judged: float) -> Float:
    """Expected information [R, 1] about the share s [R, 1] in a pair that `judged` reviewers
    judged, at their error rates [R] (or one rate and s [n, 1]: [n, 1]).
    """
    r, v = rates[:, None], np.arange(judged + 1)
    against, favour = (1 - r) ** v * r ** (judged - v), r**v * (1 - r) ** (judged - v)
    mixed = against * s + favour * (1 - s)
    each = binom(judged, v) * np.square(against - favour) / mixed
    return np.asarray(each.sum(axis=1, keepdims=True))


def _student(variances: Float, freedom: NDArray[np.int64]) -> float:
    """(t / z)^2 at Satterthwaite's degrees of freedom for a sum of variances [H]."""
    total = variances.sum()
    if total <= 0:
        return 1.0
    degrees = total**2 / (np.square(variances) / freedom).sum()
    upper = (1 + MASS) / 2
    return float((stdtrit(degrees, upper) / ndtri(upper)) ** 2)


def beta_interval(mean: float, variance: float) -> Interval:
    """Interval of the Beta distribution with this mean and variance; both 0 give a point."""
    spread = mean * (1 - mean)
    if variance <= 0 or spread <= 0:
        return Interval(mean, mean, mean)
    size = max(spread / variance - 1, 1e-3)
    a, b = mean * size, (1 - mean) * size
    low, high = (float(betaincinv(a, b, q)) for q in ((1 - MASS) / 2, (1 + MASS) / 2))
    return Interval(mean, min(low, mean), max(high, mean))
