"""Fit models of the label noise by likelihood, and compute p_wrong under the best one.

Each model gives a pair two rates: `this`, the chance that a vote for the labelled side is
recorded for the other side, and `other`, the chance that a vote for the other side is recorded
for the labelled one. With
F = sigma(g(m)) the chance that an honest vote goes to the labelled side (see `flip_rate`),

    P(label | m) = (1 - e_this) F + e_other (1 - F)

| model         | rates                                                                     |
|---------------|---------------------------------------------------------------------------|
| one rate      | e for every pair                                                          |
| annotator     | e_a ~ Beta, per annotator (`annotators.fit_crowd`)                        |
| source        | the same per source                                                       |
| strength      | the same per tenth of the strength of the preference, where it is known   |
| first side    | e_first where the truth is the side shown first, e_second where it is not |
| longer side   | the same for the longer and the shorter side                              |
| uninformative | flips e, and a share b of pairs the model cannot judge                    |
| disagreement  | every label that the held-out model disagrees with is wrong               |

With uninformative pairs P(label | m) = (1 - b)[(1 - e) F + e (1 - F)] + b/2, which equals that of
one rate e' = (1 - b) e + b/2 for every margin: margins alone cannot tell a share b of pairs that
the model cannot judge from a share b/2 of flips. Only rates that differ between annotators or sides
bound b: b/2 is at most the lowest of them. Nor can margins tell flips of close pairs from honest
disagreement: then the wrong share may be all of 1 - accuracy. Both alternatives have the
likelihood of one rate, and leave the interval only where another model beats that clearly. Usage:

    noise = fit_noise(margins, PairFacts(annotators=codes))
    noise.rate, noise.chosen, noise.p_wrong(margins)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit, ndtri

from noisescope.scoring.annotators import RATES, Crowd, fit_crowd
from noisescope.scoring.flip_rate import MASS, OVERDISPERSION, FlipRate, fit_flip_rate
from noisescope.scoring.metrics import Interval, share
from noisescope.scoring.pair_facts import PairFacts

Float = NDArray[np.float64]
Int = NDArray[np.int64]

ONE_RATE = "one rate"
#: Models this close to the best, in nats per 1,000 pairs, count as fitting too; of few pairs,
#: models within `DECISIVE`.
TOLERANCE = 2.0
#: Nats by which a model must beat one rate to take its place: odds of 20 to 1.
DECISIVE = 3.0
#: Pairs treated at once where an array has a column per rate: it stays in the processor's cache.
BLOCK = 1 << 10
#: Rates of `RATES` that are skipped by the first look for the best one.
STRIDE = 14
#: Nearest that a probability comes to 0 or 1 before its log odds are taken.
LEAST = 1e-6
#: Widest two-sided rate of a side: above 1/2 a label would mean its opposite.
WIDEST = 0.6


@final
@dataclass(frozen=True)
class NoiseModel:
    """One fitted model: what it makes of the flip rate, and its gain over one rate.

    `gain` is in nats of held-out log likelihood (each pair's label given all others'); `detail`
    lists its rates in words.
    """

    name: str
    rate: Interval
    gain: float
    detail: str = ""

    def to_json(self) -> dict[str, object]:
        """JSON object of the summary."""
        return {
            "name": self.name,
            "gain_nats": self.gain,
            "flip_rate": self.rate.to_json(),
            "detail": self.detail,
        }


@final
@dataclass(frozen=True)
class Noise:
    """All models, the chosen one, and the flip rate over those that fit.

    `rate` has the link g, the chosen model's estimate, and an interval that covers one rate and
    every model that fits nearly as well as the best. `single` is the fit of one rate. `this`,
    `other` [N] are the chosen model's rates per pair, learnt from the other pairs.
    """

    rate: FlipRate
    single: FlipRate
    chosen: str
    models: tuple[NoiseModel, ...]
    this: Float
    other: Float

    def p_wrong(self, margins: Float, pairs: slice = slice(None)) -> Float:
        """P(the label is not what most people would choose | m) of these pairs, in [0, 1]."""
        return self.single.p_wrong(margins, self.this[pairs], self.other[pairs])

    def p_prior(self, *evidence: Float) -> Float:
        """P(the label is wrong) [N] by all that is known but the audited model's margins.

        In P(label | F) = (1 - e_this) F + e_other (1 - F), which is proportional to
        (1 - p) F + p (1 - F), p = e_other / (1 - e_this + e_other); `evidence` are log odds [N]
        that the label is right, of sources that know it independently.
        """
        chance = self.other / np.maximum(1 - self.this + self.other, LEAST)
        return np.asarray(expit(log_odds(chance) - sum(evidence)))


def log_odds(p: Float) -> Float:
    """log(p / (1 - p)) of p [N] kept LEAST from 0 and 1; NaN stays NaN."""
    return np.asarray(logit(np.clip(p, LEAST, 1 - LEAST)))


def fit_noise(margins: Float, facts: PairFacts | None = None) -> Noise:
    """Fit every model that `facts` allow to mean held-out margins [N] (NaN: not judged).

    Raises EvidenceError for fewer than ten margins or when all are zero.
    """
    facts = facts or PairFacts()
    margins = np.asarray(margins, dtype=np.float64)
    weights = np.ones(len(margins)) if facts.weights is None else facts.weights
    known = np.isfinite(margins)
    single = fit_flip_rate(margins, weights)
    likely = expit(single.gap(np.where(known, margins, 0.0)))
    weights = np.where(known, weights, 0.0)
    base = _constant(likely, weights)
    fits = [_Fit(ONE_RATE, _interval(single), 0.0, np.full((2, len(margins)), single.estimate))]
    for name, codes in (
        ("annotator", facts.annotators),
        ("source", facts.sources),
        ("strength", facts.strengths),
    ):
        if codes is not None and len(np.unique(codes[codes >= 0])) > 1:
            fits.append(_hierarchical(name, codes, likely, base, weights, single))
    for name, side in (("first side", facts.first), ("longer side", facts.longer)):
        if side is not None and len(np.unique(side[(side >= 0) & known])) > 1:
            fits.append(_by_side(name, side, likely, base, weights, single))
    best = max(fits, key=lambda fit: fit.gain)
    chosen = best if best.gain > DECISIVE else fits[0]
    models = [NoiseModel(fit.name, fit.rate, fit.gain, fit.detail) for fit in fits]
    models += [_uninformative(fit) for fit in fits if fit is fits[0] or fit is chosen]
    models.append(_disagreement(chosen, margins[known], weights[known]))
    top = max(model.gain for model in models)
    margin = max(TOLERANCE * float(weights.sum()) / 1000, DECISIVE)
    near = [model for model in models if top - model.gain <= margin]
    low = min([chosen.rate.low, single.low, *(model.rate.low for model in near)])
    high = max([chosen.rate.high, single.high, *(model.rate.high for model in near)])
    rate = replace(single, estimate=chosen.rate.estimate, low=low, high=min(high, 1.0))
    return Noise(rate, single, chosen.name, tuple(models), *chosen.rates)


@final
@dataclass(frozen=True)
class _Fit:
    """A fitted model with its rates (this, other) [2, N].

    `lowest` bounds b/2 from above, where rates differ for a reason that is not the content of the
    pairs: annotators and the order of sides, but not sources or lengths.
    """

    name: str
    rate: Interval
    gain: float
    rates: Float
    lowest: float | None = None
    detail: str = ""


def _constant(share: Float, weights: Float) -> Float:
    """log P(label | F) [N] at the one rate of `RATES` that fits best; it costs one nat.

    The log likelihood is concave in the rate, so the best one is beside the best of a few.
    """

    def value(rate: float) -> float:
        return float(weights @ _log(share, rate, rate))

    near = STRIDE * int(np.argmax([value(rate) for rate in RATES[::STRIDE]]))
    best = max(RATES[max(near - STRIDE, 0) : near + STRIDE].tolist(), key=value)
    return _log(share, best, best)


def _interval(rate: FlipRate) -> Interval:
    return Interval(rate.estimate, rate.low, rate.high)


def _log(share: Float, this: Float | float, other: Float | float) -> Float:
    """log P(label | F) [N]."""
    likelihood = (1 - this) * share + other * (1 - share)
    return np.log(np.maximum(likelihood, np.finfo(np.float64).tiny))


def _widened(estimate: float, error: float, single: FlipRate) -> Interval:
    """An interval from the model's own standard error and the link's, as one rate has it."""
    z = float(ndtri((1 + MASS) / 2)) * error
    low = estimate - np.hypot(single.estimate - single.low, z)
    high = estimate + np.hypot(single.high - single.estimate, z)
    return Interval(estimate, float(max(0.0, low)), float(min(1.0, high)))


def _hierarchical(
    name: str, codes: Int, share: Float, base: Float, weights: Float, single: FlipRate
) -> _Fit:
    """A rate per code, shrunk together; each pair's from the posterior without that pair.

    With the posterior w_a over `RATES` and q_i(e) = P(label i | m_i, e), the rate without pair i
    is E[e / q_i] / E[1 / q_i] and its predictive probability 1 / E[1 / q_i], both under w_a.
    """
    use = (codes >= 0) & (weights > 0)
    _, where = np.unique(codes[use], return_inverse=True)
    crowd = fit_crowd(where.astype(np.int64), share[use], weights[use])
    rate, predictive = _without_own(crowd, where, share[use])
    this = np.full(len(codes), single.estimate)
    this[use] = rate
    gain = float((weights[use] * (np.log(predictive) - base[use])).sum()) + 1.0
    mean = crowd.posterior @ RATES
    spread = crowd.posterior @ np.square(RATES) - np.square(mean)
    size = np.bincount(where, weights[use])
    size = size / size.sum()
    overall = float(size @ mean)
    error = float(np.sqrt(np.square(size) @ spread * OVERDISPERSION))
    rest = weights[~use].sum() / weights.sum()
    estimate = float((1 - rest) * overall + rest * single.estimate)
    lowest = float(np.interp(0.1, np.cumsum(crowd.prior), RATES)) if name == "annotator" else None
    detail = f"{len(mean):,} of them, rates {mean.min():.1%} to {mean.max():.1%}"
    rates = np.stack([this, this])
    return _Fit(name, _widened(estimate, error, single), gain, rates, lowest, detail)


def _without_own(crowd: Crowd, where: Int, share: Float) -> tuple[Float, Float]:
    """Each pair's rate and predictive probability given all other pairs, [N] each."""
    rate, predictive = np.empty(len(where)), np.empty(len(where))
    for start in range(0, len(where), BLOCK):
        part = slice(start, start + BLOCK)
        likelihood = share[part, None] + (1 - 2 * share[part, None]) * RATES
        ratio = crowd.posterior[where[part]] / likelihood
        total = ratio.sum(axis=1)
        rate[part], predictive[part] = (ratio @ RATES) / total, 1 / total
    return rate, predictive


def _by_side(
    name: str, side: Int, share: Float, base: Float, weights: Float, single: FlipRate
) -> _Fit:
    """Two rates, by which side the truth is, by maximum likelihood less one nat a parameter."""
    use = (side >= 0) & (weights > 0)
    own, f, w = side[use] == 1, share[use], weights[use]

    def value(theta: Float) -> tuple[float, Float]:
        this, other = np.where(own, theta[0], theta[1]), np.where(own, theta[1], theta[0])
        p = np.maximum((1 - this) * f + other * (1 - f), 1e-12)
        by_this, by_other = -w * f / p, w * (1 - f) / p
        first = np.where(own, by_this, by_other).sum()
        second = np.where(own, by_other, by_this).sum()
        return -float((w * np.log(p)).sum()), -np.array([first, second])

    start = np.full(2, min(max(single.estimate, 0.01), 0.4))
    found = minimize(value, start, jac=True, method="L-BFGS-B", bounds=[(0.0, WIDEST)] * 2)
    e = found.x
    this, other = np.full(len(side), single.estimate), np.full(len(side), single.estimate)
    this[use], other[use] = np.where(own, e[0], e[1]), np.where(own, e[1], e[0])
    gain = -float(found.fun) - float((w * base[use]).sum()) - 1.0
    flips = (1 - f) * other[use] / np.maximum((1 - this[use]) * f + other[use] * (1 - f), 1e-12)
    rest = weights[~use].sum() / weights.sum()
    estimate = float((1 - rest) * (w @ flips) / w.sum() + rest * single.estimate)
    detail = f"{e[0]:.1%} where it is the truth, {e[1]:.1%} where it is not"
    rates, lowest = np.stack([this, other]), float(e.min()) if name == "first side" else None
    return _Fit(name, _widened(estimate, 0.0, single), gain, rates, lowest, detail)


def _uninformative(fit: _Fit) -> NoiseModel:
    """A model with as many pairs that the model cannot judge as its rates allow.

    e' = (1 - b) e + b/2 with b/2 at most the lowest rate, and the likelihood stays the same.
    """
    half = min(fit.rate.estimate if fit.lowest is None else fit.lowest, fit.rate.estimate)
    b = min(2 * half, 0.999)
    ends = [max(0.0, (e - b / 2) / (1 - b)) for e in (fit.rate.low, fit.rate.high)]
    middle = max(0.0, (fit.rate.estimate - b / 2) / (1 - b))
    low, high = min(ends[0], middle), max(ends[1], middle)
    name = "uninformative" if fit.name == ONE_RATE else f"uninformative, {fit.name}"
    return NoiseModel(name, Interval(middle, low, high), fit.gain, f"up to {b:.1%} of the pairs")


def _disagreement(fit: _Fit, margins: Float, weights: Float) -> NoiseModel:
    """All labels wrong that disagree with their margin.

    It has the likelihood of one rate, or that of the chosen model where content may explain it.
    """
    agreement = (np.sign(margins) + 1) / 2
    found = share(float(weights @ (1 - agreement)), weights.sum())
    gain = fit.gain if fit.lowest is None else 0.0
    return NoiseModel("disagreement", found, gain, "the model is right about every pair")
