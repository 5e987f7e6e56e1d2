"""Draw bar charts: the share of wrong labels in groups of pairs, and the spread of p_wrong.

    picture = flips_by_decile(p_wrong, wrong, "p_wrong", "wrong")
    picture.encode("svg")

Scores are higher = more suspicious; `flipped` [N] is the truth, `what` its name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from noisescope.report.style import (
    BLUE,
    FAINT,
    HEIGHT,
    INK,
    PAPER,
    VERMILLION,
    Picture,
    base_line,
    canvas,
    percent,
    whisker,
)
from noisescope.scoring.detection import deciles
from noisescope.scoring.metrics import share

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: How to read each figure.
CAPTIONS = {
    "flips-by-decile": "Ten groups of equal size, from the least to the most suspicious. Hatched "
    "bars have more wrong labels than a random selection.",
    "p-wrong": "Most pairs should be on the left. Hatched bars are pairs whose label is more "
    "likely wrong than right.",
}


def flips_by_decile(
    score: Float, flipped: Bool, name: str = "p_flip", what: str = "flipped"
) -> Picture:
    """Draw the share of wrong labels per tenth of the ranking by a score: Fig. 3's twin."""
    groups = deciles(score, flipped)
    labels = ["lowest", *(str(index) for index in range(2, 10)), "highest"]
    return share_bars(
        "flips-by-decile",
        f"Share of {what} labels by tenth of {name}",
        f"tenth of the pairs, in the order of {name}",
        labels,
        groups,
        float(flipped.mean()),
        what,
        CAPTIONS["flips-by-decile"],
    )


def share_bars(
    name: str,
    title: str,
    axis: str,
    labels: Sequence[str],
    groups: Sequence[Bool],
    base: float,
    what: str,
    caption: str,
) -> Picture:
    """Draw the share that is wrong in each group, with 90% intervals and the base rate."""
    figure, (axes,) = canvas(title)
    shares = [share(float(group.sum()), len(group)) if len(group) else None for group in groups]
    top = max((s.high for s in shares if s), default=1.0)
    for index, found in enumerate(shares):
        if found is None:
            axes.text(index, 0, "no pairs\n", ha="center", va="bottom", color=FAINT, fontsize=7)
            continue
        above = found.estimate > base
        axes.bar(
            index,
            found.estimate,
            width=0.72,
            color=VERMILLION if above else BLUE,
            hatch="//" if above else "",
            edgecolor=PAPER,
            linewidth=0,
        )
        whisker(axes, index, found)
        axes.text(
            index,
            found.high + top * 0.02,
            f"{found.estimate:.0%}",
            ha="center",
            fontsize=8,
            color=INK,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8},
            zorder=4,
        )
    base_line(axes, base)
    counted = [f"{label}\n{len(group):,}" for label, group in zip(labels, groups, strict=True)]
    axes.set_xticks(range(len(labels)), counted)
    axes.set(xlabel=f"{axis} (below: pairs)", ylabel=f"{what} share", ylim=(0, top * 1.16 or 1.0))
    percent(axes)
    listed = "; ".join(
        f"{' '.join(label.split())}: {found.estimate:.0%} of {len(group):,}"
        for label, found, group in zip(labels, shares, groups, strict=True)
        if found
    )
    return Picture(
        name,
        title,
        caption,
        f"Bar chart. {title}; {axis}; base rate {base:.0%}. {listed}.",
        figure,
    )


def p_wrong_histogram(p_wrong: Float) -> Picture:
    """Draw the number of pairs by p_wrong, on a logarithmic scale."""
    title = "How the pairs spread over p_wrong"
    figure, (axes,) = canvas(title, height=HEIGHT * 0.85)
    counts, edges = np.histogram(p_wrong, np.linspace(0, 1, 21))
    for count, left in zip(counts, edges[:-1], strict=True):
        bad = left >= 0.5 - 1e-9
        axes.bar(
            left + 0.025, count, width=0.045, color=VERMILLION if bad else BLUE,
            hatch="//" if bad else "", edgecolor=PAPER, linewidth=0,
        )  # fmt: skip
    axes.set(xlabel="p_wrong", ylabel="pairs (log scale)", xlim=(0, 1), yscale="log")
    axes.set_ylim(0.7, max(10, counts.max() * 1.6))
    axes.axvline(0.5, color=INK, linewidth=1, linestyle=(0, (5, 3)))
    above = int((p_wrong >= 0.5).sum())
    axes.text(
        0.51, 0.95, f"{above:,} pairs more likely\nwrong than right", fontsize=8, va="top",
        transform=axes.get_xaxis_transform(), bbox={"facecolor": PAPER, "edgecolor": "none"},
    )  # fmt: skip
    alt = f"Histogram of p_wrong for {len(p_wrong):,} pairs; {above:,} are at or above one half."
    return Picture("p-wrong", title, CAPTIONS["p-wrong"], alt, figure)
