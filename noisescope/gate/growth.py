"""Compare the flip rate of pairs that are not in a baseline with that of the baseline's pairs.

The baseline may be an earlier state of the same dataset, or another delivery with no pair in
common: then replicas are fitted to both together, so that both are judged by the same model.

The link g is fitted on the old pairs; given g, a label agrees with its held-out margin m with
probability (1 - e) F + e (1 - F), F = sigma(g(m)), so each group has a posterior of its flip rate
e (uniform prior, likelihood tempered by OVERDISPERSION). The check is on e_new - e_old, the
difference of two independent posteriors.
"""

from __future__ import annotations

import shlex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import expit

from noisescope.errors import RunError
from noisescope.gate.input import Subject, pairs_without
from noisescope.gate.policy import Policy
from noisescope.gate.verdict import Estimate, Result, compare_threshold, plural
from noisescope.replicas.refit import refitter
from noisescope.scoring.flip_rate import FEWEST_PAIRS, OVERDISPERSION, FlipRate, fit_flip_rate
from noisescope.storage.run import Run

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
    """Compare the flip rate of pairs that are not in the baseline with that of its pairs."""
    if policy.max_growth is None or subject.baseline is None:
        return None
    name, count = subject.baseline.directory.name, int(subject.new.sum())
    if count == 0:
        message = f"no pair is new against {name}"
        return Result("growth", "pass", message, threshold=policy.max_growth)
    new, old = _margins(subject, subject.baseline)
    if min(len(new), len(old)) < FEWEST_PAIRS:
        message = f"{plural(len(new), 'new pair')} against {plural(len(old), 'pair')} of {name}: "
        message += "too few to compare"
        return Result("growth", "inconclusive", message, threshold=policy.max_growth)
    found = difference(new, old)
    status, needed = compare_threshold(found, policy.max_growth, "lower", policy.detect)
    return Result(
        "growth",
        status,
        f"the flip rate of {plural(count, 'new pair')} is {found.value * 100:+.1f} points "
        f"({found.low * 100:+.1f} to {found.high * 100:+.1f}) compared with "
        f"{plural(len(old), 'pair')} of {name}",
        found.value,
        found.low,
        found.high,
        policy.max_growth,
        "lower",
        needed,
        subject.worst(subject.new) if status != "pass" else (),
    )


def _margins(subject: Subject, baseline: Run) -> tuple[Float, Float]:
    """Mean held-out margins of the new pairs, and of the baseline's, under one fit.

    A run that contains most of the baseline has both. Otherwise heads are fitted to the pairs of
    both runs together, on the features in their cache. Raises RunError if they are not comparable.
    """
    margins = subject.columns["margin"]
    rest = pairs_without(baseline, subject.run)
    if rest.num_rows <= (~subject.new).sum():
        return margins[subject.new], margins[~subject.new]
    _check_comparable(subject.run, baseline)
    own = pq.read_table(subject.run.pairs_path)
    table = pa.concat_tables([own, rest], promote_options="default")
    fitted = refitter(subject.run, table, second=False)(np.zeros(len(table), bool), None)
    together = fitted.margins.margins[:, -1, :].mean(axis=0, dtype=np.float64)
    new = np.concatenate([subject.new, np.zeros(rest.num_rows, bool)])
    return together[new], together[~new]


def _check_comparable(run: Run, baseline: Run) -> None:
    """Raise RunError unless both runs have head replicas of one model, with one feature cache."""
    mine, other = run.plan(), baseline.plan()
    again = f"noisescope score DATASET --model {shlex.quote(str(mine['model']))}"
    if {each["evidence"].get("kind") for each in (mine, other)} != {"head"}:
        raise RunError(
            f"{baseline.directory} and {run.directory} have no pairs in common, and not both have "
            "head replicas: their margins cannot be compared",
            hint=f"Score both with heads: {again}",
        )
    if mine["evidence"].get("sources"):
        raise RunError(
            f"{run.directory} has evidence from outside, which is not compared between deliveries",
            hint=f"Score both without --evidence: {again}",
        )
    if mine["model_fingerprint"] != other["model_fingerprint"]:
        raise RunError(
            f"{baseline.directory} was scored with another model than {run.directory}",
            hint=f"Score the baseline's dataset with the same model: {again}",
        )
    if run.directory.parent.resolve() != baseline.directory.parent.resolve():
        raise RunError(
            f"{baseline.directory} is not beside {run.directory}: their features are not in one "
            "cache",
            hint=f"Score the baseline's dataset here, with the same --runs-dir: {again}",
        )
