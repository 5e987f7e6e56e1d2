"""Marks that several figures share: an interval's whisker, the base rate's line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noisescope.report.style import INK, PAPER
from noisescope.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def whisker(axes: Axes, at: float, interval: Interval) -> None:
    """A 90% interval, upright at x = `at`."""
    below, above = interval.estimate - interval.low, interval.high - interval.estimate
    axes.errorbar(
        at, interval.estimate, [[below], [above]], color=INK, capsize=2.5, linewidth=1, capthick=1
    )


def base_line(axes: Axes, base: float) -> None:
    """What a random pick would find, across the figure and named."""
    axes.axhline(base, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=3)
    axes.annotate(
        f"base rate {base:.0%}",
        (0, base),
        (2, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="left",
        fontsize=8,
        color=INK,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
        zorder=4,
    )
