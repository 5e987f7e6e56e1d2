"""Estimate the share of wrong labels from a few people's judgements, whatever the noise is.

    strata = stratify(p_wrong)                        # [N] 1..K
    order = queue(strata, coins(ids), coins_2(ids))   # review in this order; stop anywhere
    found = estimate(strata, p_wrong, votes)          # found.share.estimate, .low, .high

A stratum holds an equal share of sum_i sqrt(q_i (1 - q_i)), q = p_wrong drawn a little towards one
half, and each round of the queue takes one pair from every stratum, so that sizes are near
Neyman's and any beginning of the queue is a stratified sample. Given a stratum's answers its share
of wrong labels is Beta-distributed, with a prior that weighs as much as one answer and is centred
on p_wrong *as recalibrated on the answers themselves*; the variance has the finite-population
factor of the design. p_wrong decides how narrow the interval is; that it covers rests on the draw.

Reviewers err. Where two or more judge the same pairs, their disagreements identify one error
rate r: pairs of judgements differ with probability 2 r (1 - r), right label or wrong. The estimate
averages over r's posterior. Where nobody judged a pair twice r is not identified, and the estimate
is of what this reviewer would say.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv, expit, logit, xlogy

from noisescope.errors import EvidenceError
from noisescope.statistics import MASS, Interval

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Strata = NDArray[np.uint8]

#: Strata of a new sample, and the fewest pairs that one may hold on average.
STRATA = 10
FEWEST_A_STRATUM = 5
#: How far p_wrong is drawn towards one half before it decides sizes: where the audit is sure and
#: wrong, pairs must still be looked at.
FLOOR = 0.02
#: Smallest and largest centre of a stratum's prior.
CENTRE = 0.05
#: Stratum of pairs that are not sampled: all of them were looked at (`--for fix`).
CENSUS = 0
#: Pairs that two reviewers must have judged before their error rate is estimated.
FEWEST_SHARED = 10
#: Beta prior of a reviewer's error rate below one half: mean 10 %.
ERROR_PRIOR = (1.0, 9.0)
#: Standard deviations of the recalibration's prior: intercept, and slope around 1.
RECALIBRATION_PRIOR = (3.0, 1.0)
FLATTEST = 0.05
_RATES = 60  # grid of error rates
_SHARES = 400  # grid of a stratum's share
_EDGE = 1e-3  # probabilities are kept this far from 0 and 1 before their log odds are taken


def stratify(p: Float, census: Bool | None = None) -> Strata:
    """Stratum [N] of each pair by p_wrong [N]: 1..K, CENSUS where `census` [N] holds.

    Undefined probabilities count as one half: the audit knows nothing of these pairs.
    """
    known = np.zeros(len(p), bool) if census is None else census
    strata = np.full(len(p), CENSUS, np.uint8)
    here = np.flatnonzero(~known)
    if not len(here):
        return strata
    count = max(1, min(STRATA, len(here) // FEWEST_A_STRATUM))
    q = FLOOR + (1 - 2 * FLOOR) * np.nan_to_num(p[here], nan=0.5)
    size = np.sqrt(q * (1 - q))
    order = np.argsort(q, kind="stable")
    middle = np.cumsum(size[order]) - size[order] / 2
    strata[here[order]] = 1 + np.minimum(count * middle / size.sum(), count - 1).astype(np.uint8)
    return strata


def queue(strata: Strata, coins: Float, again: Float) -> NDArray[np.int64]:
    """Places of the sampled pairs in the order to review them.

    `coins` and `again` [N] are two independent uniform numbers of each pair. Round r takes the
    pair with the r-th smallest coin of every stratum, in an order of their `again`.
    """
    sampled = np.flatnonzero(strata != CENSUS)
    by_coin = sampled[np.lexsort((coins[sampled], strata[sampled]))]
    sizes = np.bincount(strata[sampled])
    starts = np.cumsum(sizes) - sizes
    turn = np.arange(len(by_coin)) - starts[strata[by_coin]]
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


def recalibrate(p: Float, votes: Votes, weights: Float, error: float) -> Recalibration:
    """Fit the two parameters to judgements by weighted maximum likelihood.

    p [n] and weights [n] (inverse inclusion probabilities) belong to the pairs of `votes`. The
    weights are scaled to sum to Kish's effective number of answers, so that the prior, slope
    around 1 and intercept around 0, counts as it would in a simple random sample.
    """
    from scipy.optimize import minimize

    told = (votes.judged > 0) & np.isfinite(p)
    if not told.any():
        return Recalibration()
    x = logit(np.clip(p[told], _EDGE, 1 - _EDGE))
    w = weights[told] * weights[told].sum() / np.square(weights[told]).sum()
    against, favour = (side[0][told] for side in votes.likelihoods(error))
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

    `strata` [N] as drawn, `p` [N] is p_wrong as recalibrated, `weights` [n] the inverse inclusion
    probabilities of the judged pairs (0 for those outside the sample).
    """

    strata: Strata
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
        used = (self.weights > 0) & inside[self.votes.place]
        mean, variance = np.zeros(len(self.error.rates)), np.zeros(len(self.error.rates))
        for stratum in np.unique(self.strata[inside]):
            members = inside & (self.strata == stratum)
            chosen = used & (self.strata[self.votes.place] == stratum)
            weight = members.sum() / size
            centre, spread = self._stratum(members, chosen, census=stratum == CENSUS)
            mean += weight * centre
            variance += np.square(weight) * spread
        estimate = float(self.error.weights @ mean)
        total = float(self.error.weights @ (variance + np.square(mean - estimate)))
        return Estimate(beta_interval(estimate, total), size, int(used.sum()))

    def _stratum(self, members: Bool, chosen: Bool, *, census: bool) -> tuple[Float, Float]:
        """Mean and variance [R] of the share of wrong labels among `members` [N] at each rate."""
        n, size = int(chosen.sum()), int(members.sum())
        centre = float(np.clip(self.p[members].mean(), CENTRE, 1 - CENTRE))
        votes = self.votes
        if not self.error.known:
            tied = (votes.judged == 0)[chosen]
            major = (np.sign(votes.wrong - votes.right) + 1)[chosen] / 2
            wrong = float(np.where(tied, 0.5, major).sum())
            a, b = wrong + centre, n - wrong + 1 - centre
            share = np.array([a / (a + b)])
            spread = share * (1 - share) / (n + 2)
            sampled = min(n / size, 1.0)
            if census or n == size:
                return np.array([wrong / max(n, 1)]), np.zeros(1)
            rest = (wrong + (size - n) * share) / size
            return rest, spread * (1 - sampled)
        share, spread = self._posterior(centre, chosen)
        ideal = share * (1 - share) / (n + 2)
        return share, np.maximum(spread - min(n / size, 1.0) * ideal, 0.0)

    def _posterior(self, centre: float, chosen: Bool) -> tuple[Float, Float]:
        """Mean and variance [R] of a stratum's share, where reviewers err at each rate [R]."""
        edges = np.sin(np.linspace(0, np.pi / 2, _SHARES + 1)) ** 2
        prior = np.diff(betainc(centre, 1 - centre, edges))
        shares = (edges[1:] + edges[:-1]) / 2
        votes = self.votes
        kinds, counts = np.unique(
            np.stack([votes.wrong, votes.right, votes.tie > 0])[:, chosen], axis=1,
            return_counts=True,
        )  # fmt: skip
        log = np.log(np.maximum(prior, 1e-300))[None, :] + np.zeros((len(self.error.rates), 1))
        for (wrong, right, _), count in zip(kinds.T, counts, strict=True):
            if wrong + right == 0:  # ties alone: half wrong, half right
                log += count * (np.log(shares) + np.log1p(-shares)) / 2
                continue
            r = self.error.rates[:, None]
            against = (1 - r) ** wrong * r**right
            favour = r**wrong * (1 - r) ** right
            log += count * np.log(against * shares + favour * (1 - shares))
        mass = np.exp(log - log.max(axis=1, keepdims=True))
        mass /= mass.sum(axis=1, keepdims=True)
        mean = mass @ shares
        return mean, np.maximum(mass @ np.square(shares) - np.square(mean), 0.0)

    def posterior(self) -> Float:
        """p_wrong [N] given the answers: recalibrated, and of judged pairs by Bayes' rule.

        One reviewer whose error rate nobody measured is taken to err once in fifty.
        """
        p = self.p.copy()
        error = max(self.error.mean, 0.02)
        against, favour = (side[0] for side in self.votes.likelihoods(error))
        before = np.nan_to_num(p[self.votes.place], nan=0.5)
        p[self.votes.place] = against * before / (against * before + favour * (1 - before))
        return p


def review(strata: Strata, p: Float, votes: Votes) -> Reviewed:
    """Make sense of judgements. p [N] is p_wrong as the audit has it, `strata` [N] as drawn.

    Judged pairs in the stratum CENSUS stand for themselves; those of a stratum stand for it.
    """
    sizes = np.bincount(strata)
    answered = np.bincount(strata[votes.place], minlength=len(sizes))
    inclusion = answered / np.maximum(sizes, 1)
    inclusion[CENSUS] = 1.0
    weights = 1 / inclusion[strata[votes.place]]
    error = error_rate(votes)
    half = np.nan_to_num(p, nan=0.5)
    fitted = recalibrate(half[votes.place], votes, weights, error.mean)
    return Reviewed(strata, fitted(half), votes, weights, error, fitted)


def beta_interval(mean: float, variance: float) -> Interval:
    """Interval of the Beta distribution with this mean and variance; both 0 give a point."""
    spread = mean * (1 - mean)
    if variance <= 0 or spread <= 0:
        return Interval(mean, mean, mean)
    size = max(spread / variance - 1, 1e-3)
    a, b = mean * size, (1 - mean) * size
    low, high = (float(betaincinv(a, b, q)) for q in ((1 - MASS) / 2, (1 + MASS) / 2))
    return Interval(mean, min(low, mean), max(high, mean))
