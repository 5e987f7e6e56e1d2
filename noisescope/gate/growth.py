"""Compare the flip rate of pairs that are new since a baseline with that of the old ones.

The link g is fitted on the old pairs; given g, a label agrees with its held-out margin m with
probability (1 - e) F + e (1 - F), F = sigma(g(m)), so each group has a posterior of its flip rate
e (uniform prior, likelihood tempered by OVERDISPERSION). The check is on e_new - e_old, the
difference of two independent posteriors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from noisescope.gate.input import Subject
from noisescope.gate.policy import Policy
from noisescope.gate.verdict import Estimate, Result, compare_threshold, plural
from noisescope.scoring.flip_rate import FEWEST_PAIRS, OVERDISPERSION, FlipRate, fit_flip_rate

Float = NDArray[np.float64]

#: Midpoints of the quadrature over a flip rate in (0, 1).
RATES = (np.arange(400) + 0.5) / 400


def rate_posterior(margins: Float, link: FlipRate) -> Float:
    """Compute the posterior [400] over RATES of the flip rate of margins [n], given the link."""
    share = expit(link.gap(margins))
    log_likelihood = np.array(
        [np.log(np.maximum((1 - e) * share + e * (1 - share), 1e-300)).sum() for e in RATES]
    )
    density = np.exp((log_likelihood - log_likelihood.max()) / OVERDISPERSION)
    return np.asarray(density / density.sum())


def difference(new: Float, old: Float) -> Estimate:
    """Estimate e_new - e_old with its 90 % interval, from the margins of new and old pairs."""
    link = fit_flip_rate(old)
    density = np.convolve(rate_posterior(new, link), rate_posterior(old, link)[::-1])
    values = np.linspace(RATES[0] - RATES[-1], RATES[-1] - RATES[0], len(density))
    cumulative = np.cumsum(density)
    low, high = (float(np.interp(mass, cumulative, values)) for mass in (0.05, 0.95))
    return Estimate(float(density @ values), low, high, len(new))


def growth(subject: Subject, policy: Policy) -> Result | None:
    """Compare the flip rate of pairs that are not in the baseline with that of the others."""
    if policy.max_growth is None or subject.baseline is None:
        return None
    new, margins = subject.new, subject.columns["margin"]
    count = int(new.sum())
    against = f"against {subject.baseline.directory.name}"
    if count == 0:
        return Result("growth", "pass", f"no pair is new {against}", threshold=policy.max_growth)
    if len(new) - count < FEWEST_PAIRS:
        message = f"{count:,} of {plural(len(new), 'pair')} are new {against}: "
        message += "too few old ones to compare with"
        return Result("growth", "inconclusive", message, threshold=policy.max_growth)
    found = difference(margins[new], margins[~new])
    status, needed = compare_threshold(found, policy.max_growth, "lower", policy.detect)
    return Result(
        "growth",
        status,
        f"the flip rate of {plural(count, 'new pair')} is {found.value * 100:+.1f} points "
        f"({found.low * 100:+.1f} to {found.high * 100:+.1f}) compared with the old ones {against}",
        found.value,
        found.low,
        found.high,
        policy.max_growth,
        "lower",
        needed,
        subject.worst(new) if status != "pass" else (),
    )
