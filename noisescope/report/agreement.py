"""Draw the agreement of annotators (the paper's Fig. 2): accuracies, and majorities of pairs.

picture = agreement_figure(found)
picture.encode("svg")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from noisescope.report.style import BLUE, FAINT, INK, PAPER, VERMILLION, Picture, canvas, legend
from noisescope.report.style import percent as percent_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from noisescope.scoring.agreement import Agreement

#: Intervals of 5 % in [0, 1]; the last one includes 100 %.
BINS = 20
#: Judged votes an annotator needs to be drawn: a single vote would be 0 or 100 %.
LEAST_VOTES = 10


def binned(right: NDArray[np.int64], of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the interval of each share right / of, by integers to avoid rounding at edges."""
    return np.asarray(np.minimum(right * BINS // of, BINS - 1), dtype=np.int64)


def expected(judged: NDArray[np.int64], rate: float) -> NDArray[np.float64]:
    """Compute the annotators expected in each interval if all were equally accurate."""
    counts = np.zeros(BINS)
    for votes, annotators in zip(*np.unique(judged, return_counts=True), strict=True):
        right = np.arange(votes + 1)
        chance = binom.pmf(right, votes, rate)
        counts += annotators * np.bincount(binned(right, np.full_like(right, votes)), chance, BINS)
    return counts


def agreement_figure(found: Agreement) -> Picture:
    """Draw annotators by accuracy against the others, and pairs by the majority's share."""
    title = "How often annotators agree with each other"
    figure, (above, below) = canvas(title, rows=2, height=5.0, ratios=(1, 1))
    annotators = _annotators(above, found)
    split = 1 - found.not_unanimous.estimate
    _pairs(below, found)
    below.set(xlim=(0, 1.005), xlabel="share that agrees")
    percent_axis(below, x=True)
    caption = (
        f"Above, annotators with {LEAST_VOTES} judged votes or more; the line is what chance alone "
        "would spread if all were equally accurate. Below, pairs by the share of their annotators "
        "on the majority's side; hatched where not unanimous."
    )
    alt = f"Two histograms. {annotators} {split:.0%} of {found.shared:,} pairs are unanimous."
    return Picture("agreement", title, caption, alt, figure)


def _annotators(axes: Axes, found: Agreement) -> str:
    rows = [row for row in found.by_annotator if row.judged >= LEAST_VOTES]
    axes.set_ylabel("annotators")
    if not rows or found.accuracy is None:
        axes.text(
            0.5, 0.5, f"no annotator has {LEAST_VOTES} judged votes", color=FAINT,
            ha="center", transform=axes.transAxes,
        )  # fmt: skip
        return f"No annotator has {LEAST_VOTES} judged votes."
    right = np.array([row.right for row in rows])
    judged = np.array([row.judged for row in rows])
    counts = np.bincount(binned(right, judged), minlength=BINS)
    rate = float(right.sum() / judged.sum())
    for index, count in enumerate(counts):
        low = index < BINS // 2
        _bar(axes, index, count, low)
    axes.stairs(
        expected(judged, rate), np.arange(BINS + 1) / BINS, color=INK, linewidth=1.1,
        linestyle=(0, (5, 3)), label=f"if all were right {rate:.0%} of the time", zorder=3,
    )  # fmt: skip
    legend(axes, loc="upper left")
    axes.set_xlabel(f"{len(rows):,} annotators, by votes that agree with the others' majority")
    below = int((2 * right < judged).sum())
    return (
        f"{len(rows):,} annotators with {LEAST_VOTES} judged votes or more agree with the others' "
        f"majority {rate:.0%} of the time; {below:,} below half."
    )


def _pairs(axes: Axes, found: Agreement) -> None:
    n, k, count = found.patterns.T
    most = np.maximum(k, n - k)
    split = np.bincount(binned(most, n)[most < n], count[most < n], BINS)
    unanimous = int(count[most == n].sum())
    for index in range(BINS):
        _bar(axes, index, float(split[index]), True)
    axes.bar(
        1 - 0.5 / BINS, unanimous, bottom=float(split[-1]), width=0.9 / BINS, color=BLUE,
        edgecolor=PAPER, linewidth=0,
    )  # fmt: skip
    axes.annotate(
        f"unanimous: {unanimous / max(found.shared, 1):.0%} ", (1 - 1 / BINS, unanimous),
        ha="right", va="top", fontsize=8, color=INK,
    )  # fmt: skip
    axes.set_ylabel(f"pairs (of {found.shared:,})")


def _bar(axes: Axes, index: int, height: float, marked: bool) -> None:
    axes.bar(
        (index + 0.5) / BINS, height, width=0.9 / BINS, color=VERMILLION if marked else BLUE,
        hatch="//" if marked else "", edgecolor=PAPER, linewidth=0,
    )  # fmt: skip
