"""Checks on estimated quantities, and CHECKS: name -> function of (subject, policy).

A function returns None if its check is off, else one Result. Shares are shares of pairs unless
stated otherwise. A new check is a setting in `policy`, a function and a line in CHECKS.

`growth` compares the flip rates of new and old pairs of one audit. The link g is fitted on the old
pairs; given g, a label agrees with its held-out margin m with probability
(1 - e) F + e (1 - F), F = sigma(g(m)), so each group has a posterior of its flip rate e (uniform
prior, likelihood tempered by OVERDISPERSION). The check is on e_new - e_old, the difference of two
independent posteriors.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from noisescope.errors import EvidenceError
from noisescope.gate.counts import (
    contradictions,
    duplicates,
    encoding_faults,
    faults,
    near_duplicates,
    score_conflicts,
    ties,
)
from noisescope.gate.input import Subject
from noisescope.gate.label_bias import giveaways, length_bias, side_order
from noisescope.gate.policy import Policy
from noisescope.gate.verdict import Estimate, Result, Row, compare_threshold, plural
from noisescope.scoring.flip_rate import FEWEST_PAIRS, OVERDISPERSION, FlipRate, fit_flip_rate
from noisescope.scoring.metrics import Interval, share
from noisescope.scoring.summary import CONTESTED

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


Check = Callable[[Subject, Policy], Result | None]


def flip_rate(subject: Subject, policy: Policy) -> Result | None:
    """Check the flip rate e of `fit_flip_rate`, by the chosen bound of its interval."""
    if policy.max_flip_rate is None:
        return None
    rate = subject.rate
    found = Estimate(rate.estimate, rate.low, rate.high, rate.pairs)
    status, needed = compare_threshold(
        found, policy.max_flip_rate, policy.flip_rate_bound, policy.detect
    )
    return Result(
        "flip_rate",
        status,
        f"{_with_interval(found)} of labels are wrong even on easy pairs",
        rate.estimate,
        rate.low,
        rate.high,
        policy.max_flip_rate,
        policy.flip_rate_bound,
        needed,
        subject.worst() if status != "pass" else (),
    )


def mislabelled(subject: Subject, policy: Policy) -> Result | None:
    """Check the low or the high end of the range of the mislabelled share.

    The range is from the flip rate to 1 - held-out accuracy, and more pairs do not close it; the
    chosen end is compared by its own sampling interval.
    """
    if policy.max_mislabelled is None:
        return None
    rate, agreed = subject.rate, subject.accuracy
    low, high = rate.low, max(1 - agreed.low, rate.low)
    found = Estimate(rate.estimate, low, rate.high, rate.pairs)
    if policy.mislabelled_bound == "upper":
        found = Estimate(1 - agreed.estimate, 1 - agreed.high, high, rate.pairs)
    status, needed = compare_threshold(
        found, policy.max_mislabelled, policy.mislabelled_bound, policy.detect
    )
    return Result(
        "mislabelled",
        status,
        f"between {low:.1%} and {high:.1%} of labels are not what most people would choose",
        None,
        low,
        high,
        policy.max_mislabelled,
        policy.mislabelled_bound,
        needed,
        subject.worst() if status != "pass" else (),
    )


def wrong_share(subject: Subject, policy: Policy) -> Result | None:
    """Check the share of wrong labels by its lower bound.

    It rests on people's answers to a random sample, or on the audit's bracket (see `mislabelled`),
    which hardly ever decides.
    """
    threshold = policy.max_wrong_share
    if threshold is None:
        return None
    if policy.evidence == "audit":
        if subject.in_sample or subject.chance:
            raise EvidenceError("the replicas cannot say how many labels are wrong")
        low, high = subject.rate.low, max(1 - subject.accuracy.low, subject.rate.low)
        found = Estimate((low + high) / 2, low, high, subject.rate.pairs)
        status, _ = compare_threshold(found, threshold, "lower", policy.detect)
        message = f"between {low:.1%} and {high:.1%} of labels are wrong; a review narrows that"
        bracket = (None, low, high, threshold, "lower")
        return Result("wrong_share", status, message, *bracket, rows=_worst(subject, status))
    people = subject.reviews
    share = people.share() if people is not None else None
    if people is None or share is None:
        raise EvidenceError(
            f"no random sample of these pairs was reviewed: noisescope review "
            f"{shlex.quote(str(subject.run.directory))}"
        )
    found = Estimate(share.estimate, share.low, share.high, people.sampled)
    status, needed = compare_threshold(found, threshold, "lower", policy.detect)
    measured = (share.estimate, share.low, share.high, threshold, "lower", needed)
    return Result("wrong_share", status, people.sentence(), *measured, rows=_worst(subject, status))


def _worst(subject: Subject, status: str) -> tuple[Row, ...]:
    return subject.worst() if status != "pass" else ()


def suspects(subject: Subject, policy: Policy) -> Result | None:
    """Check the share of pairs with p_wrong above `suspect_p`."""
    if policy.max_suspects is None:
        return None
    above = subject.columns["p_wrong"] > policy.suspect_p
    message = f"of pairs have p_wrong above {policy.suspect_p:g}"
    return _of_pairs("suspects", subject, above, policy.max_suspects, policy.detect, message)


def contested(subject: Subject, policy: Policy) -> Result | None:
    """Check the share of pairs that the replicas cannot decide (contested >= 0.8)."""
    if policy.max_contested is None:
        return None
    split = subject.columns["contested"] >= CONTESTED
    message = "of pairs are contested"
    return _of_pairs("contested", subject, split, policy.max_contested, policy.detect, message)


def _of_pairs(
    name: str,
    subject: Subject,
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    threshold: float,
    detect: float,
    message: str,
) -> Result:
    """Check a share of pairs by the lower bound of Wilson's interval."""
    interval = share(int(mask.sum()), len(mask))
    found = Estimate(interval.estimate, interval.low, interval.high, len(mask))
    status, needed = compare_threshold(found, threshold, "lower", detect)
    return Result(
        name,
        status,
        f"{_with_interval(found)} {message}",
        found.value,
        found.low,
        found.high,
        threshold,
        "lower",
        needed,
        subject.worst(mask) if status != "pass" else (),
    )


def accuracy(subject: Subject, policy: Policy) -> Result | None:
    """Check held-out accuracy: fails if even its upper bound is below the minimum."""
    if policy.min_accuracy is None:
        return None
    interval: Interval = subject.accuracy
    error = Estimate(1 - interval.estimate, 1 - interval.high, 1 - interval.low, len(subject))
    status, needed = compare_threshold(error, 1 - policy.min_accuracy, "lower", policy.detect)
    found = Estimate(interval.estimate, interval.low, interval.high, len(subject))
    return Result(
        "accuracy",
        status,
        f"replicas agree with {_with_interval(found)} of labels they did not train on",
        interval.estimate,
        interval.low,
        interval.high,
        policy.min_accuracy,
        "upper",
        needed,
    )


def reliability(subject: Subject, policy: Policy) -> Result | None:
    """Check that no annotator's reliability is certainly below the minimum.

    With A annotators one fails if P(reliability < minimum) >= 1 - 0.05 / A (Bonferroni), under
    the empirical-Bayes posterior of `annotators`, which shrinks few labels toward the crowd.
    """
    from scipy.special import expit

    from noisescope.scoring.annotators import RATES, fit_crowd

    if policy.min_reliability is None:
        return None
    names, every = subject.annotators
    known = every >= 0
    if not known.any():
        return Result("reliability", "skipped", "no pair names its annotator")
    codes = every[known]
    gaps = subject.rate.gap(subject.columns["margin"][known])
    posterior = fit_crowd(codes, expit(gaps)).posterior
    below = posterior[:, 1 - policy.min_reliability < RATES].sum(axis=1)
    wrong = np.flatnonzero(below >= 1 - 0.05 / len(names))
    reliable = 1 - posterior @ RATES
    worst = int(np.argmin(reliable))
    message = f"{len(wrong)} of {plural(len(names), 'annotator')} are below"
    message += f"; the least reliable, {names[worst]}, is at {reliable[worst]:.0%}"
    mask = np.zeros(len(subject), bool)
    mask[np.flatnonzero(known)[np.isin(codes, wrong)]] = True
    return Result(
        "reliability",
        "fail" if len(wrong) else "pass",
        message,
        float(reliable[worst]),
        threshold=policy.min_reliability,
        bound="upper",
        rows=subject.worst(mask) if len(wrong) else (),
    )


def labels(subject: Subject, policy: Policy) -> Result | None:
    """Check the smallest number of labels of any annotator."""
    if policy.min_labels is None:
        return None
    names, codes = subject.annotators
    if not names:
        return Result("labels", "skipped", "no pair names its annotator")
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    few = counts < policy.min_labels
    least = int(np.argmin(counts))
    return Result(
        "labels",
        "fail" if few.any() else "pass",
        f"{int(few.sum()):,} of {plural(len(names), 'annotator')} gave fewer; "
        f"{names[least]} gave {counts[least]:,}",
        float(counts[least]),
        threshold=float(policy.min_labels),
    )


def _with_interval(found: Estimate) -> str:
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


#: Name of each check -> its function; also the order of results.
CHECKS: dict[str, Check] = {
    "flip_rate": flip_rate,
    "mislabelled": mislabelled,
    "wrong_share": wrong_share,
    "suspects": suspects,
    "contested": contested,
    "accuracy": accuracy,
    "growth": growth,
    "reliability": reliability,
    "labels": labels,
    "length_bias": length_bias,
    "giveaways": giveaways,
    "side_order": side_order,
    "ties": ties,
    "duplicates": duplicates,
    "contradictions": contradictions,
    "near_duplicates": near_duplicates,
    "score_conflicts": score_conflicts,
    "faults": faults,
    "encoding": encoding_faults,
}
#: Checks that use the replicas: inconclusive if those are no better than chance.
USE_REPLICAS = ("flip_rate", "mislabelled", "suspects", "contested", "growth", "reliability")
#: Checks that need held-out margins.
USE_HELD_OUT = (*USE_REPLICAS, "accuracy")
