"""How reliable each annotator is, from held-out margins: a flip rate each, shrunk together.

Annotator a flips a share e_a of labels; a label agrees with its held-out margin with probability
(1 - e_a) F + e_a (1 - F), F = sigma(g(m)) (see `flip_rate`). e_a ~ Beta(mean, concentration) in
the whole crowd, both fitted by marginal likelihood (empirical Bayes): an annotator with few
labels stays near the crowd. This is RE-PO's per-annotator EM with the Beta posterior in place of
its M step. Usage: `annotator_table(*coded(column), margins, rate)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, xlogy

from noisescope.errors import EvidenceError
from noisescope.scoring.flip_rate import FlipRate
from noisescope.scoring.metrics import MASS

if TYPE_CHECKING:
    import pyarrow as pa

Float = NDArray[np.float64]
Int = NDArray[np.int64]

#: Midpoints of the quadrature over e_a in (0, 1); above 1/2 is contrarian.
RATES = (np.arange(200) + 0.5) / 200
#: Labels treated at once: their numbers stay in the processor's cache.
BLOCK = 1 << 15


@final
@dataclass(frozen=True)
class Annotator:
    """One annotator: labels judged, agreement with held-out margins, e_a with its 90 % interval.

    `careless`: the whole interval is above the crowd's mean rate. `contrarian`: it is above 1/2.
    """

    name: str
    labels: int
    agreement: float
    flip_rate: float
    low: float
    high: float
    careless: bool
    contrarian: bool

    @property
    def reliability(self) -> float:
        """1 - e_a."""
        return 1.0 - self.flip_rate


@final
@dataclass(frozen=True)
class Crowd:
    """The fitted crowd: mean flip rate, Beta prior and each annotator's posterior.

    `posterior` [A, 200] and `prior` [200] are over `RATES` and sum to 1.
    """

    mean: float
    posterior: Float
    prior: Float


def _log_prior(mean: float, concentration: float) -> Float:
    """Beta prior [200] on `RATES`, normalised to sum to 1."""
    a, b = mean * concentration, (1 - mean) * concentration
    density = xlogy(a - 1, RATES) + xlogy(b - 1, 1 - RATES)
    return np.asarray(density - logsumexp(density), dtype=np.float64)


def fit_crowd(codes: Int, share: Float, weights: Float | None = None) -> Crowd:
    """Empirical-Bayes fit; codes [N] in 0 .. A-1, share [N] = P(label right | margin, no flips).

    `weights` [N] count pairs in part. log P(label | margin, e) = log((1 - e) F + e (1 - F)).
    """
    count = int(codes.max()) + 1
    weights = np.ones(len(codes)) if weights is None else weights
    log_likelihood: Float = np.zeros((count, len(RATES)))
    size = max(BLOCK, 8 * count)
    for start in range(0, len(codes), size):
        part = slice(start, start + size)
        for column, rate in enumerate(RATES):
            agreement = np.log((1 - rate) * share[part] + rate * (1 - share[part]))
            log_likelihood[:, column] += np.bincount(codes[part], weights[part] * agreement, count)

    peak = log_likelihood.max(axis=1)
    likelihood = np.exp(log_likelihood - peak[:, None])

    def objective(theta: Float) -> float:
        prior = np.exp(_log_prior(float(expit(theta[0])), float(np.exp(theta[1]))))
        # concentration ~ Gamma(2, 1/10): keeps a crowd of one from fitting a point mass
        penalty = np.exp(theta[1]) / 10 - theta[1]
        marginal = np.maximum(likelihood @ prior, np.finfo(np.float64).tiny)
        return float(penalty - (peak + np.log(marginal)).sum())

    bounds = [(-5.0, 0.0), (-0.5, 6.0)]
    fit = minimize(objective, np.array([-2.0, 2.0]), method="L-BFGS-B", bounds=bounds)
    concentration = float(np.exp(fit.x[1]))
    log_prior = _log_prior(float(expit(fit.x[0])), concentration)
    log_posterior = log_likelihood + log_prior
    log_posterior -= logsumexp(log_posterior, axis=1, keepdims=True)
    mean = float(np.exp(log_prior) @ RATES)
    return Crowd(mean, np.exp(log_posterior), np.exp(log_prior))


def coded(names: pa.ChunkedArray) -> tuple[list[str], Int]:
    """The distinct names, sorted, and each row's place among them [N], -1 where null."""
    encoded = names.combine_chunks().dictionary_encode()
    found: list[str] = encoded.dictionary.to_pylist()
    order = sorted(range(len(found)), key=found.__getitem__)
    place = np.full(len(found) + 1, -1, np.int64)  # the last one is null
    place[order] = np.arange(len(found))
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return [found[index] for index in order], place[codes]


def annotator_table(
    names: Sequence[str], codes: Int, margins: Float, rate: FlipRate
) -> list[Annotator]:
    """Every named annotator, least reliable first.

    `names` are distinct and `codes` [N] each pair's place among them, -1 unknown (see `coded`);
    margins [N] are held out. Raises EvidenceError if no pair has both a name and such a margin.
    """
    known = (codes >= 0) & np.isfinite(margins)
    if not known.any():
        raise EvidenceError(
            "no pair names its annotator",
            hint="Per-annotator results need an `annotator` column in the dataset.",
        )
    seen, codes = np.unique(codes[known], return_inverse=True)
    labels = [names[index] for index in seen.tolist()]
    judged = np.asarray(margins, dtype=np.float64)[known]
    crowd = fit_crowd(codes.astype(np.int64), expit(rate.gap(judged)))
    count = np.bincount(codes)
    agreement = np.bincount(codes, (np.sign(judged) + 1) / 2) / count
    cumulative = np.cumsum(crowd.posterior, axis=1)
    mean = crowd.posterior @ RATES
    low = RATES[(cumulative > (1 - MASS) / 2).argmax(axis=1)]
    high = RATES[(cumulative >= (1 + MASS) / 2).argmax(axis=1)]
    table = [
        Annotator(
            name=labels[i],
            labels=int(count[i]),
            agreement=float(agreement[i]),
            flip_rate=float(mean[i]),
            low=float(min(low[i], mean[i])),
            high=float(max(high[i], mean[i])),
            careless=bool(low[i] > crowd.mean),
            contrarian=bool(low[i] > 0.5),
        )
        for i in range(len(labels))
    ]
    return sorted(table, key=lambda row: (-row.flip_rate, row.name))
