"""Checks whether length, a mark in the text, or the position of a side predicts the label."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noisescope.gate.input import Subject
from noisescope.gate.policy import Policy
from noisescope.gate.verdict import Estimate, Result, compare_threshold
from noisescope.scoring.giveaways import LOOKED_AT, SAMPLE, find_giveaways
from noisescope.scoring.metrics import share

Float = NDArray[np.float64]

#: Standard normal quantile of a one-sided 5 % test.
Z = 1.6449


def length_auroc(difference: Float) -> Estimate:
    """Compute the AUROC of length alone, from length(chosen) - length(rejected) [N].

    Each pair is one positive (d) and one negative (-d): AUROC = P(d_i + d_j > 0) + P(= 0) / 2,
    a U-statistic with first projection h(i) = P(d_i + d > 0) and standard error
    2 sd(h) / sqrt(N) (Hoeffding 1948). N pairs without a single contrary one show no more than
    N / (N + z^2), Wilson's bound: the standard error is 0 there.
    """
    ordered = np.sort(difference)
    count = len(ordered)
    above = count - np.searchsorted(ordered, -difference, side="right")
    equal = np.searchsorted(ordered, -difference, side="right") - np.searchsorted(
        ordered, -difference, side="left"
    )
    projection = (above + equal / 2) / count
    value = float(projection.mean())
    half = Z * 2 * float(projection.std()) / np.sqrt(count)
    most = count / (count + Z * Z)
    low, high = min(value - half, most), max(value + half, 1 - most)
    return Estimate(value, max(0.0, low), min(1.0, high), count)


def length_bias(subject: Subject, policy: Policy) -> Result | None:
    """Check how well length in characters predicts the label, in either direction."""
    if policy.max_length_auroc is None:
        return None
    if subject.modality == "image":
        return Result("length_bias", "skipped", "images have no length")
    columns = subject.columns
    difference = (columns["chosen_length"] - columns["rejected_length"]).astype(np.float64)
    found = length_auroc(difference)
    shorter = found.value < 0.5
    if shorter:
        found = Estimate(1 - found.value, 1 - found.high, 1 - found.low, found.pairs)
    status, needed = compare_threshold(found, policy.max_length_auroc, "lower", policy.detect)
    side = "shorter" if shorter else "longer"
    return Result(
        "length_bias",
        status,
        f"the {side} response guesses {found.value:.1%} of labels "
        f"({found.low:.1%} to {found.high:.1%}; AUROC)",
        found.value,
        found.low,
        found.high,
        policy.max_length_auroc,
        "lower",
        needed,
    )


def giveaways(subject: Subject, policy: Policy) -> Result | None:
    """Check how well the presence of one mark (`scoring.giveaways`) predicts the label."""
    if policy.max_giveaway_auroc is None:
        return None
    if subject.modality == "image":
        return Result("giveaways", "skipped", "images have no text")
    rows = subject.rows_of(SAMPLE, most=LOOKED_AT)
    chosen, rejected = zip(*rows, strict=True)
    marks = find_giveaways(chosen, rejected, least=0.5)
    if not marks:
        message = "no mark, beginning or end is on one side more often than on the other"
        return Result("giveaways", "pass", message, 0.5, threshold=policy.max_giveaway_auroc)
    mark, count = marks[0], len(rows)
    sides = (np.array([mark.marks(text) for text in side], float) for side in (chosen, rejected))
    only = np.subtract(*sides)
    half = Z * float(only.std()) / (2 * np.sqrt(count))
    most = count / (count + Z * Z)  # as for length_auroc
    found = Estimate(mark.auroc, min(mark.auroc - half, most), min(1.0, mark.auroc + half), count)
    status, needed = compare_threshold(found, policy.max_giveaway_auroc, "lower", policy.detect)
    return Result(
        "giveaways",
        status,
        f"{mark.text!r} {mark.place} {mark.chosen:,} chosen and {mark.rejected:,} rejected "
        f"responses of {count:,} pairs: AUROC {found.value:.3f} ({found.low:.3f} to "
        f"{found.high:.3f})",
        found.value,
        found.low,
        found.high,
        policy.max_giveaway_auroc,
        "lower",
        needed,
    )


def side_order(subject: Subject, policy: Policy) -> Result | None:
    """Check the share of labels for the source's first side against one half."""
    if policy.max_side_imbalance is None:
        return None
    first, known = (int(subject.facts.get(name, 0)) for name in ("first_chosen", "ordered"))
    if not known:
        return Result("side_order", "skipped", "the source has no order of sides")
    if first in (0, known):
        return Result(
            "side_order",
            "skipped",
            "all labels are for one position: the source has no order of sides",
        )
    interval = share(first, known)
    low, high = interval.low - 0.5, interval.high - 0.5
    ends = sorted((abs(low), abs(high)))
    distance = abs(interval.estimate - 0.5)
    found = Estimate(distance, 0.0 if low < 0 < high else ends[0], ends[1], known)
    status, needed = compare_threshold(found, policy.max_side_imbalance, "lower", policy.detect)
    return Result(
        "side_order",
        status,
        f"the first side is preferred in {interval.estimate:.1%} "
        f"({interval.low:.1%} to {interval.high:.1%}) of {known:,} pairs",
        found.value,
        found.low,
        found.high,
        policy.max_side_imbalance,
        "lower",
        needed,
    )
