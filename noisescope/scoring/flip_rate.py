"""How many labels are flips, and how likely each one is, from held-out margins alone.

A label agrees with the sign of its pair's held-out margin m with probability

    P(agree | m) = (1 - e) sigma(g) + e sigma(-g),     g(m) = tau sign(m) |m / scale|^k

e, tau and k are fitted jointly (mixture likelihood; `scale` is the median |m|). e is the flip
rate: labels wrong regardless of difficulty, the asymptote of disagreement at large |m|. A
straight link (k = 1) mistakes its own misfit for flips; k has the prior log k ~ N(0, 0.2^2).
Usage: `rate = fit_flip_rate(margins); p = rate.p_flip(margins)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, expit, logit, xlogy

from noisescope.errors import EvidenceError

Float = NDArray[np.float64]

#: Fewer pairs than this support no flip rate at all.
FEWEST_PAIRS = 10
#: The rate counts as identified when its 90 % interval is no wider than this.
WIDEST_IDENTIFIED = 0.15
#: Credible mass of every flip-rate interval.
MASS = 0.90
#: Prior standard deviations of log tau (loose: only keeps a coin-toss fit finite) and log k.
SPREAD = (3.0, 0.2)
#: Variance factor of the likelihood: margins are fits to the same labels, so estimates of e
#: scatter up to 1.4 times their nominal error between plantings of the same share of flips.
OVERDISPERSION = 1.5
#: Prior weight of "the pair has one right answer" against "people split on it", in p_wrong.
ONE_ANSWER = 0.25
BINS = 128
BOUNDS = (8.0, 1.0)  # of |log tau| and |log k|
STEPS = 60
TOLERANCE = 1e-4  # nats


@final
@dataclass(frozen=True)
class FlipRate:
    """The fitted flip rate with its 90 % interval, and the link g it was fitted with.

    `identifiable` is False where the interval is wider than 0.15: the labels then fit few flips
    with hard pairs about as well as many flips with easy ones ("not identifiable at this size").
    """

    estimate: float
    low: float
    high: float
    temperature: float
    exponent: float
    scale: float
    pairs: int
    #: Flip rates [E] and the likeliest (log tau, log k) [E, 2] at each; None where not fitted.
    profile: tuple[Float, Float] | None = field(default=None, repr=False, compare=False)

    def at(self, rate: float) -> FlipRate:
        """The fit if the flip rate were `rate`: with the link that is likeliest then."""
        if self.profile is None:
            return replace(self, estimate=rate)
        rates, theta = self.profile
        tau, k = (float(np.exp(np.interp(rate, rates, theta[:, j]))) for j in (0, 1))
        return replace(self, estimate=rate, temperature=tau, exponent=k)

    @property
    def identifiable(self) -> bool:
        return self.high - self.low <= WIDEST_IDENTIFIED

    def gap(self, margins: Float) -> Float:
        """g(m), the calibrated log odds that an unflipped label agrees; same shape as m."""
        size = np.abs(margins) / self.scale
        with np.errstate(divide="ignore"):
            return np.asarray(self.temperature * np.sign(margins) * size**self.exponent)

    def p_flip(self, margins: Float) -> Float:
        """P(flip | m) = sigma(logit e - g(m)) in [0, 1]; NaN stays NaN (docs/method.md 3)."""
        if self.estimate <= 0.0:
            return np.where(np.isnan(margins), np.nan, 0.0)
        return np.asarray(expit(logit(self.estimate) - self.gap(margins)), dtype=np.float64)

    def p_mislabelled(
        self, margins: Float, this: Float | None = None, other: Float | None = None
    ) -> Float:
        """P(the label is not what most people would choose | m) in [0, 1]; NaN stays NaN.

        A flip, or an honest vote of the minority. One label a pair cannot tell a close pair from
        a model that does not know, so this needs an assumption, and it is the uniform one
        (Bayes, Laplace): the share theta of people who side with the chosen response is
        Beta(2 F, 2 - 2 F), F = sigma(g(m)); a coin-toss margin makes every theta equally likely.

            p = [(1 - e_this) E(theta; theta < 1/2) + e_other E(1 - theta; theta < 1/2)]
                / [(1 - e_this) F + e_other (1 - F)]

        `this`, `other` [N]: the pair's own rates of flipping a vote for the labelled side and
        one for the other side (`noise_models`); e for both if None.
        """
        share = np.clip(expit(self.gap(margins)), 1e-9, 1 - 1e-9)
        minority = share * betainc(2 * share + 1, 2 - 2 * share, 0.5)
        below = betainc(2 * share, 2 - 2 * share, 0.5)
        one = self.estimate if this is None else this
        two = self.estimate if other is None else other
        agree = (1 - one) * share + two * (1 - share)
        return np.asarray(((1 - one) * minority + two * (below - minority)) / agree)

    def p_wrong(
        self, margins: Float, this: Float | None = None, other: Float | None = None
    ) -> Float:
        """P(the label is wrong | m) in [0, 1], the headline probability; NaN stays NaN.

        The mean of two readings of a label that the replicas disagree with, which have the same
        likelihood: people split on the pair (`p_mislabelled`, weight 1 - `ONE_ANSWER`), or it has
        one right answer and only a flip is wrong (`flipped`).
        """
        flip = self.flipped(margins, this, other)
        split = self.p_mislabelled(margins, this, other)
        return np.asarray(ONE_ANSWER * flip + (1 - ONE_ANSWER) * split, dtype=np.float64)

    def flipped(
        self, margins: Float, this: Float | None = None, other: Float | None = None
    ) -> Float:
        """P(the label is flipped | m) in [0, 1] = e_other (1 - F) / P(label | m); NaN stays NaN."""
        share = np.clip(expit(self.gap(margins)), 1e-9, 1 - 1e-9)
        one = self.estimate if this is None else this
        two = self.estimate if other is None else other
        return np.asarray(two * (1 - share) / ((1 - one) * share + two * (1 - share)))

    def contested(self, margins: Float) -> Float:
        """2 min(p, 1 - p) in [0, 1], p [N] = mean_m sigma(g(margin_m)), margins [M, N] (NaN: none).

        1: the replicas cannot say which side is better, or disagree about it.
        """
        p = expit(self.gap(margins))
        count = np.isfinite(p).sum(axis=0)
        mean = np.where(count > 0, np.nansum(p, axis=0) / np.maximum(count, 1), np.nan)
        return np.asarray(2 * np.minimum(mean, 1 - mean), dtype=np.float64)

    def to_json(self) -> dict[str, object]:
        """JSON object of the summary."""
        return {
            "estimate": self.estimate,
            "low": self.low,
            "high": self.high,
            "identifiable": self.identifiable,
        }


@final
@dataclass(frozen=True)
class Binned:
    """Margins compressed to quantile bins of |m|: all the likelihood needs, whatever N is."""

    log_size: Float  # [K] log(|m| / scale)
    agree: Float  # [K] labels that agree with the margin's sign; a zero margin counts half
    count: Float  # [K]

    @classmethod
    def of(cls, margins: Float, scale: float, weights: Float | None = None) -> Binned:
        order = np.argsort(np.abs(margins), kind="stable")
        ordered = margins[order]
        weight = np.ones(len(ordered)) if weights is None else weights[order]
        starts = np.unique(np.linspace(0, len(ordered), BINS, endpoint=False).astype(np.int64))
        count = np.add.reduceat(weight, starts)
        size = np.add.reduceat(weight * np.abs(ordered), starts) / count
        agree = np.add.reduceat(weight * (np.sign(ordered) + 1) / 2, starts)
        return cls(np.log(np.maximum(size / scale, 1e-12)), agree, count)

    def objective(self, theta: Float, rates: Float) -> tuple[Float, Float, Float]:
        """Negative log posterior [E] of theta [E, 2] = (log tau, log k) at flip rates [E].

        Also its gradient [E, 2] and Fisher information [E, 2, 2].
        """
        e, power = rates[:, None], np.exp(theta[:, 1:])
        g = np.exp(np.clip(theta[:, :1] + power * self.log_size, -60, 6))  # [E, K]
        right = expit(g)
        agree = np.clip(e + (1 - 2 * e) * right, 1e-300, 1 - 1e-16)
        likelihood = xlogy(self.agree, agree) + xlogy(self.count - self.agree, 1 - agree)
        by_tau = (1 - 2 * e) * right * expit(-g) * g
        slopes = np.stack([by_tau, by_tau * power * self.log_size], axis=1)  # [E, 2, K]
        variance = agree * (1 - agree)
        residual = (self.agree - self.count * agree) / variance
        information = (slopes * (self.count / variance)[:, None]) @ slopes.transpose(0, 2, 1)
        precision = 1 / np.square(np.array(SPREAD))
        value = -likelihood.sum(axis=1) / OVERDISPERSION + (np.square(theta) @ precision) / 2
        gradient = precision * theta - (slopes @ residual[:, :, None])[:, :, 0] / OVERDISPERSION
        return value, gradient, information / OVERDISPERSION + np.diag(precision)

    def profile(self, rates: Float) -> tuple[Float, Float]:
        """Best (log tau, log k) [E, 2] at each of `rates` [E], and the objective there [E].

        Fisher scoring with Levenberg's damping, all rates in step.
        """
        theta, damping = np.zeros((len(rates), 2)), np.full(len(rates), 1e-3)
        value, gradient, information = self.objective(theta, rates)
        for _ in range(STEPS):
            scaled = information * (1 + damping[:, None, None] * np.eye(2))
            trial = theta - np.linalg.solve(scaled, gradient[:, :, None])[:, :, 0]
            trial = np.clip(trial, -np.array(BOUNDS), BOUNDS)
            fresh = self.objective(trial, rates)
            better = fresh[0] < value
            gain = np.where(better, value - fresh[0], 0.0)
            theta = np.where(better[:, None], trial, theta)
            value = np.where(better, fresh[0], value)
            gradient = np.where(better[:, None], fresh[1], gradient)
            information = np.where(better[:, None, None], fresh[2], information)
            damping = np.clip(np.where(better, damping / 5, damping * 10), 1e-9, 1e9)
            if float(gain.max()) < TOLERANCE and not (~better & (damping < 1e3)).any():
                break
        return theta, value


def fit_flip_rate(margins: Float, weights: Float | None = None) -> FlipRate:
    """Fit e with its 90 % interval on mean held-out margins [N]; NaN margins are omitted.

    The profile likelihood over tau and k, tempered by `OVERDISPERSION`, with a uniform prior on
    e in [0, 1/2): its mean is the estimate, its highest-density 90 % the interval (so 0 is in
    the interval wherever no flips fit best). Where the labels do not identify e the estimate
    stays near the middle of what is possible and the interval is wide. `weights` [N] count pairs
    in part (copies). Raises EvidenceError for fewer than ten margins or when all are zero.
    """
    judged = np.asarray(margins, dtype=np.float64)
    known = np.isfinite(judged)
    weight = None if weights is None else np.asarray(weights, dtype=np.float64)[known]
    judged = judged[known]
    if len(judged) < FEWEST_PAIRS:
        raise EvidenceError(
            f"{len(judged)} pairs with a held-out margin support no flip rate",
            hint=f"Give at least {FEWEST_PAIRS} pairs; some hundreds make an estimate.",
        )
    size = np.abs(judged)
    if not size.any():
        raise EvidenceError(
            "every held-out margin is 0: the replicas learnt nothing",
            hint="Look at the dataset (are all sides the same?) or choose another model.",
        )
    scale = float(np.median(size)) or float(size[size > 0].mean())
    binned = Binned.of(judged, scale, weight)
    rates = _focus(binned)
    theta, value = binned.profile(rates)
    density = np.exp(value.min() - value) * np.gradient(rates)
    density /= density.sum()
    estimate = float((density * rates).sum())
    low, high = _highest_density(rates, value, density)
    ends = min(low, estimate), max(high, estimate)
    return FlipRate(estimate, *ends, 1.0, 1.0, scale, len(judged), (rates, theta)).at(estimate)


def _focus(binned: Binned) -> Float:
    """Rates [E] that cover what the likelihood leaves possible, finely."""
    coarse = np.concatenate([[0.0, 0.002, 0.005, 0.01], np.linspace(0.02, 0.495, 39)])
    value = binned.profile(coarse)[1]
    plausible = np.flatnonzero(value - value.min() < 8.0)
    first, last = max(plausible[0] - 1, 0), min(plausible[-1] + 1, len(coarse) - 1)
    return np.linspace(coarse[first], coarse[last], 81)


def _highest_density(rates: Float, value: Float, density: Float) -> tuple[float, float]:
    """Ends of the smallest set of rates that holds `MASS` of the density."""
    order = np.argsort(value, kind="stable")
    inside = order[: int(np.searchsorted(np.cumsum(density[order]), MASS)) + 1]
    return float(rates[inside.min()]), float(rates[inside.max()])
