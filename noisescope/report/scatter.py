"""The data map: where each pair stands, by its mean margin and the replicas' disagreement.

picture = data_map(margin, spread, flipped)
picture.encode("svg")
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from noisescope.report.style import FAINT, INK, SKY, VERMILLION, Picture, canvas, legend, thin

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: How to read each figure.
CAPTIONS = {
    "data-map": "Left of the line the replicas side against the label; higher up they differ "
    "among themselves.",
}

#: Points of a scatter plot: more are thinned evenly.
POINTS = 3000


def data_map(margin: Float, spread: Float, flipped: Bool | None = None) -> Picture:
    """Mean held-out margin against the replicas' disagreement; planted flips are marked."""
    title = "Data map: where each pair stands"
    figure, (axes,) = canvas(title, height=4.4)
    every = thin(len(margin), POINTS)
    x, y = margin[every], spread[every]
    bad = np.zeros(len(x), bool) if flipped is None else flipped[every]
    axes.scatter(
        x[~bad], y[~bad], s=7, color=SKY, alpha=0.6, linewidths=0, rasterized=True,
        label="label kept" if flipped is not None else None,
    )  # fmt: skip
    if flipped is not None:
        axes.scatter(
            x[bad], y[bad], s=15, marker="x", color=VERMILLION, alpha=0.8, linewidths=0.9,
            rasterized=True, label="label flipped",
        )  # fmt: skip
        for handle in legend(axes, loc="lower left", markerscale=1.6).legend_handles:
            if handle is not None:
                handle.set_alpha(1)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set(xlabel="mean held-out margin", ylabel="standard deviation over replicas")
    axes.set(xlim=_robust(x), ylim=(0, _robust(y)[1]))
    axes.grid(visible=False)
    for at, side, words in (
        (0.01, "left", "← against the label"),
        (0.99, "right", "with the label →"),
    ):
        axes.text(at, 1.005, words, transform=axes.transAxes, ha=side, fontsize=8, color=FAINT)
    axes.set_title(title, loc="left", pad=20, fontsize=10.5, fontweight="bold")
    against = float((margin < 0).mean())
    alt = (
        f"Scatter plot of {len(margin):,} pairs; on {against:.0%} the margin is against the label."
    )
    if flipped is not None and flipped.any():
        share_against = float((margin[flipped] < 0).mean())
        alt += f" Of the flipped pairs {share_against:.0%} are against their label."
    return Picture("data-map", title, CAPTIONS["data-map"], alt, figure)


def _robust(values: Float) -> tuple[float, float]:
    low, high = np.quantile(values, [0.002, 0.998])
    room = 0.06 * (high - low) or 1.0
    return float(low - room), float(high + room)
