"""Draw the tables: accuracies with intervals, and two histograms of u.

picture = lines("table1", "DPO under flipped labels", {"dpo": [(0.0, Interval(...)), ...]}, "...")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from noisescope.report.style import (
    BLUE,
    INK,
    PAPER,
    SERIES,
    VERMILLION,
    Picture,
    canvas,
    legend,
    percent,
)
from noisescope.scoring.metrics import Interval

Points = Sequence[tuple[float, Interval]]
Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
ACCURACY = "accuracy on right labels of unseen prompts"


def lines(
    name: str, title: str, series: Mapping[str, Points], caption: str, axis: str = ACCURACY
) -> Picture:
    """Draw accuracy over the flip rate, one line a method, with 90 % intervals."""
    figure, (axes,) = canvas(title)
    spread = 0.006
    for index, (label, points) in enumerate(series.items()):
        colour, style, marker = SERIES[index % len(SERIES)]
        shift = (index - (len(series) - 1) / 2) * spread
        x = [rate + shift for rate, _ in points]
        y = np.array([found.estimate for _, found in points])
        reach = [
            [found.estimate - found.low for _, found in points],
            [found.high - found.estimate for _, found in points],
        ]
        axes.errorbar(
            x, y, reach, color=colour, linestyle=style, marker=marker, capsize=2.5, linewidth=1.5,
            elinewidth=0.9, label=label,
        )  # fmt: skip
    axes.set(xlabel="training labels flipped", ylabel=axis)
    axes.set_xticks(sorted({rate for points in series.values() for rate, _ in points}))
    percent(axes, x=True)
    percent(axes)
    legend(axes, loc="best")
    summary = "; ".join(
        f"{label}: " + ", ".join(f"{found.estimate:.1%} at {rate:.0%}" for rate, found in points)
        for label, points in series.items()
    )
    return Picture(name, title, caption, f"Line chart. {summary}.", figure)


def bars(name: str, title: str, values: Mapping[str, Interval], caption: str) -> Picture:
    """Draw the accuracy of each method as a dot with its 90 % interval, from top to bottom."""
    figure, (axes,) = canvas(title, height=1.2 + 0.34 * len(values))
    for index, found in enumerate(reversed(values.values())):
        reach = [[found.estimate - found.low], [found.high - found.estimate]]
        axes.errorbar(
            found.estimate, index, xerr=reach, color=BLUE, marker="o", capsize=3, linewidth=1.2
        )
    axes.set_yticks(range(len(values)), list(reversed(values)))
    axes.set(xlabel=ACCURACY, ylim=(-0.6, len(values) - 0.4))
    axes.grid(axis="x")
    percent(axes, x=True, decimals=1)
    summary = "; ".join(f"{label}: {found.estimate:.1%}" for label, found in values.items())
    return Picture(name, title, caption, f"Dot chart. {summary}.", figure)


def histogram(name: str, title: str, scores: Float, flipped: Bool, caption: str) -> Picture:
    """Draw the density of log10 u of flipped and of kept labels; u = 0 is at the left end."""
    figure, (axes,) = canvas(title)
    positive = scores[scores > 0]
    floor = float(positive.min()) if len(positive) else 1e-12
    logs = np.log10(np.maximum(scores, floor))
    edges = np.linspace(*np.quantile(logs, [0.002, 0.998]), 31)
    for chosen, colour, hatch, label in (
        (~flipped, BLUE, "", "label kept"),
        (flipped, VERMILLION, "//", "label flipped"),
    ):
        axes.hist(
            np.clip(logs[chosen], edges[0], edges[-1]), edges, density=True, color=colour,
            alpha=0.55, hatch=hatch, edgecolor=PAPER, linewidth=0, label=label,
        )  # fmt: skip
    medians = [float(np.median(logs[chosen])) for chosen in (~flipped, flipped)]
    for median in medians:
        axes.axvline(median, color=INK, linewidth=1, linestyle=(0, (5, 3)))
    axes.set(xlabel="log10 u (dashed: medians)", ylabel="density")
    legend(axes, loc="best")
    alt = (
        f"Two histograms of log10 u: {int((~flipped).sum()):,} kept labels with median "
        f"{medians[0]:.2f}, {int(flipped.sum()):,} flipped ones with median {medians[1]:.2f}."
    )
    return Picture(name, title, caption, alt, figure)
