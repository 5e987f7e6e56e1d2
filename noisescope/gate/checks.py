"""Checks on estimated quantities, and CHECKS: name -> function of (subject, policy).

A function returns None if its check is off, else one Result. Shares are shares of pairs unless
stated otherwise. A new check is a setting in `policy`, a function and a line in CHECKS.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

import numpy as np

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
from noisescope.gate.growth import growth
from noisescope.gate.input import Subject
from noisescope.gate.label_bias import giveaways, length_bias, side_order
from noisescope.gate.policy import Policy
from noisescope.gate.verdict import Estimate, Result, Row, Status, compare_threshold, plural
from noisescope.scoring.clusters import share_interval
from noisescope.scoring.flip_rate import FlipRate
from noisescope.scoring.metrics import Interval
from noisescope.scoring.scores import CONTESTED

Check = Callable[[Subject, Policy], Result | None]


def flip_rate(subject: Subject, policy: Policy) -> Result | None:
    """Check the summary's flip rate by the chosen bound of its interval.

    Where it is not identifiable there is no point estimate, and no number of pairs decides.
    """
    threshold, bound = policy.max_flip_rate, policy.flip_rate_bound
    if threshold is None:
        return None
    rate = subject.rate
    status, needed = compare_threshold(_estimate(rate), threshold, bound, policy.detect)
    message = f"{_with_interval(_estimate(rate))} of labels are wrong even on easy pairs"
    if not rate.identifiable:
        message = f"between {rate.low:.1%} and {rate.high:.1%} of labels are wrong even on easy "
        message += "pairs; the audit cannot tell how many"
    estimate = rate.estimate if rate.identifiable else None
    measured = (estimate, rate.low, rate.high, threshold, bound)
    return _of_rate("flip_rate", subject, status, message, measured, needed)


def mislabelled(subject: Subject, policy: Policy) -> Result | None:
    """Check the low or the high end of the range of the mislabelled share.

    The range is from the flip rate to 1 - held-out accuracy, and more pairs do not close it; the
    chosen end is compared by its own interval.
    """
    threshold, bound = policy.max_mislabelled, policy.mislabelled_bound
    if threshold is None:
        return None
    low, high = subject.wrong
    found = _estimate(subject.rate)
    if bound == "upper":
        agreed = subject.accuracy
        found = Estimate(1 - agreed.estimate, 1 - agreed.high, high, len(subject))
    status, needed = compare_threshold(found, threshold, bound, policy.detect)
    message = f"between {low:.1%} and {high:.1%} of labels are not what most people would choose"
    if bound == "lower" and not subject.rate.identifiable:
        message += "; the audit cannot tell how many"
    return _of_rate(
        "mislabelled", subject, status, message, (None, low, high, threshold, bound), needed
    )


def _estimate(rate: FlipRate) -> Estimate:
    return Estimate(rate.estimate, rate.low, rate.high, rate.pairs)


def _of_rate(
    name: str,
    subject: Subject,
    status: Status,
    message: str,
    measured: tuple[float | None, float, float, float, str],
    needed: int | None,
) -> Result:
    """Result of a check on the flip rate's interval: more pairs do not narrow one that is not
    identifiable, a review does.
    """
    of_rate = name == "flip_rate" or measured[-1] == "lower"
    if status == "inconclusive" and of_rate and not subject.rate.identifiable:
        needed = None
        message += f": noisescope review {shlex.quote(str(subject.run.directory))}"
    return Result(name, status, message, *measured, needed, _worst(subject, status))


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
        low, high = subject.wrong
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
    """Check a share of pairs by the lower bound of its cluster interval."""
    interval = share_interval(mask.astype(np.float64), subject.pair_facts.groupings)
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
