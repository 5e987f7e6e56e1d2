"""Figures of a run that need no truth: where its pairs stand, by whom, from where.

picture = data_map(margin, spread)
picture.encode("svg")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noisescope.report.style import (
    BLUE,
    FAINT,
    HEIGHT,
    INK,
    ORANGE,
    PAPER,
    SERIES,
    SKY,
    VERMILLION,
    Picture,
    canvas,
    legend,
    percent,
    thin,
)
from noisescope.statistics import Interval

if TYPE_CHECKING:
    from noisescope.annotators import Annotator

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: How to read each figure.
CAPTIONS = {
    "data-map": "Left of the line the replicas side against the label; higher up they differ "
    "among themselves.",
    "annotators": "Estimates with 90% intervals, labels in brackets; few labels pull an annotator "
    "toward the crowd. Diamonds are flagged.",
    "by-source": "Mean p_flip of each file’s pairs.",
    "by-length": "Mean p_flip of the pairs in each group, number of pairs in brackets.",
    "learning-curves": "Loss on pairs that a replica did not train on. Where it turns upward, the "
    "replica has begun to memorise.",
    "p-flip": "Most pairs should stand at the left. Hatched bars are pairs whose label is more "
    "likely wrong than right.",
}

#: Points of a scatter plot: more are thinned evenly.
POINTS = 3000
MOST_ROWS = 24


def p_flip_histogram(p_flip: Float) -> Picture:
    """How many pairs stand at each p_flip, on a logarithmic scale."""
    title = "How the pairs spread over p_flip"
    figure, (axes,) = canvas(title, height=HEIGHT * 0.85)
    counts, edges = np.histogram(p_flip, np.linspace(0, 1, 21))
    for count, left in zip(counts, edges[:-1], strict=True):
        bad = left >= 0.5 - 1e-9
        axes.bar(
            left + 0.025, count, width=0.045, color=VERMILLION if bad else BLUE,
            hatch="//" if bad else "", edgecolor=PAPER, linewidth=0,
        )  # fmt: skip
    axes.set(xlabel="p_flip", ylabel="pairs (log scale)", xlim=(0, 1), yscale="log")
    axes.set_ylim(0.7, max(10, counts.max() * 1.6))
    axes.axvline(0.5, color=INK, linewidth=1, linestyle=(0, (5, 3)))
    above = int((p_flip >= 0.5).sum())
    axes.text(
        0.51, 0.95, f"{above:,} pairs more likely\nflipped than not", fontsize=8, va="top",
        transform=axes.get_xaxis_transform(), bbox={"facecolor": PAPER, "edgecolor": "none"},
    )  # fmt: skip
    alt = f"Histogram of p_flip for {len(p_flip):,} pairs; {above:,} are at or above one half."
    return Picture("p-flip", title, CAPTIONS["p-flip"], alt, figure)


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


def annotators(table: Sequence[Annotator]) -> Picture:
    """Flip rate of the least reliable annotators, with 90% intervals."""
    shown = list(table[:MOST_ROWS])
    names = [f"{_name(row.name)} ({row.labels:,})" for row in shown]
    flags = [
        "contrarian" if row.contrarian else "careless" if row.careless else "" for row in shown
    ]
    rates = [Interval(row.flip_rate, row.low, row.high) for row in shown]
    more = f", the least reliable {len(shown)} of {len(table):,}" if len(table) > len(shown) else ""
    title = f"Flip rate of each annotator{more}"
    return _dots("annotators", title, names, rates, flags, _mean_rate(table))


def _mean_rate(table: Sequence[Annotator]) -> float:
    labels = sum(row.labels for row in table)
    return sum(row.flip_rate * row.labels for row in table) / max(labels, 1)


def groups(name: str, title: str, rates: Mapping[str, Interval], base: float) -> Picture:
    """Expected share of flips in each group of pairs (source, length), with 90% intervals."""
    shown = dict(list(rates.items())[:MOST_ROWS])
    return _dots(name, title, [_name(key) for key in shown], list(shown.values()), [], base)


def _name(text: str) -> str:
    """A label that fits, with nothing matplotlib would read as mathematics."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split()).replace(
        "$", r"\$"
    )
    return line if len(line) <= 28 else line[:27] + "…"


def _dots(
    name: str,
    title: str,
    labels: Sequence[str],
    rates: Sequence[Interval],
    flags: Sequence[str],
    base: float,
) -> Picture:
    figure, (axes,) = canvas(title, height=max(2.2, 1.3 + 0.24 * len(labels)))
    axes.axvline(base, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
    for index, rate in enumerate(rates):
        flag = flags[index] if flags else ""
        bad = bool(flag)
        axes.plot([rate.low, rate.high], [index, index], color=FAINT, linewidth=1.6, zorder=2)
        axes.plot(
            rate.estimate, index, zorder=3, markersize=6, linestyle="",
            marker="D" if bad else "o", color=VERMILLION if bad else BLUE,
        )  # fmt: skip
        if flag:
            axes.annotate(
                flag, (rate.high, index), (6, 0), textcoords="offset points", va="center",
                fontsize=7.5, color=INK,
            )  # fmt: skip
    axes.set_yticks(range(len(labels)), labels)
    axes.set(ylim=(len(labels) - 0.4, -0.6), xlabel=f"flip rate (dashed: all together {base:.1%})")
    right = max([r.high for r in rates] + [base])
    axes.set_xlim(0, min(1.12, right * 1.22 + 0.02))
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    percent(axes, x=True)
    told = "; ".join(
        f"{label}: {rate.estimate:.1%} ({rate.low:.1%} to {rate.high:.1%})"
        for label, rate in zip(labels, rates, strict=True)
    )
    return Picture(
        name, title, CAPTIONS[name], f"Dot plot with 90% intervals. {title}. {told}.", figure
    )


def learning_curves(steps: Sequence[int], losses: Float) -> Picture:
    """Held-out loss [M, T] of each replica by optimiser step [T]: where memorising begins."""
    title = "Held-out loss of each replica while it trains"
    figure, (axes,) = canvas(title)
    for index, curve in enumerate(losses):
        colour, dashes, marker = SERIES[index % len(SERIES)]
        axes.plot(
            steps, curve, color=colour, linestyle=dashes, linewidth=1.1, marker=marker,
            markersize=3.5, label=f"replica {index}" if len(losses) <= 8 else None,
        )  # fmt: skip
    mean = losses.mean(axis=0)
    axes.plot(steps, mean, color=INK, linewidth=2.2, label="mean")
    best = int(np.argmin(mean))
    axes.axhline(np.log(2), color=FAINT, linewidth=1, linestyle=(0, (1, 2)), label="chance, ln 2")
    axes.plot(steps[best], mean[best], marker="*", markersize=12, color=ORANGE, markeredgecolor=INK)
    axes.set(xlabel="optimiser step", ylabel="mean −log σ(margin)")
    legend(axes, ncols=2)
    alt = f"{title}: lowest mean {mean[best]:.3f} at step {steps[best]:,}, last {mean[-1]:.3f}."
    return Picture("learning-curves", title, CAPTIONS["learning-curves"], alt, figure)
