"""Draw dots: an estimate with its 90% interval in each row, and the data map of all pairs.

picture = detectors({"p_flip": Interval(0.92, 0.91, 0.93)}, ceiling=0.95)
picture = data_map(margin, spread, flipped)
picture.encode("svg")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from noisescope.report.style import (
    BLUE,
    FAINT,
    INK,
    PAPER,
    SKY,
    VERMILLION,
    Picture,
    canvas,
    legend,
    percent,
    thin,
)
from noisescope.scoring.metrics import Interval
from noisescope.scoring.standouts import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from noisescope.scoring.annotators import Annotator
    from noisescope.scoring.history import History

#: How to read each figure.
CAPTIONS = {
    "detectors": "90% intervals; 0.5 is chance. Detectors with the same result share a row. "
    "The line is an estimate of the best that is possible for flips planted at random; labels "
    "that are wrong for other reasons may be easier to find, or harder. “stability”, “std” and "
    "“variability” measure contested pairs rather than wrong labels.",
    "annotators": "Estimates with 90% intervals, labels in brackets; annotators with few labels "
    "are shrunk toward the crowd. Diamonds are flagged.",
    "by-source": "Mean p_wrong of each file’s pairs.",
    "history": "Flip rate of each run with its 90% interval, oldest first. Hollow: an audit too "
    "weak to act on, no part of the trend (dashed).",
    "by-length": "Mean p_wrong of the pairs in each group, number of pairs in brackets.",
}

#: Most rows of a figure.
MOST_ROWS = 24


@final
@dataclass(frozen=True)
class Dot:
    """A row: name, estimate, remark, and whether it is highlighted."""

    name: str
    rate: Interval
    remark: str = ""
    marked: bool = False


def detectors(
    found: Mapping[str, Interval], ceiling: float | None, what: str = "flipped"
) -> Picture:
    """Draw the AUROC of every detector with 90% intervals, best first, and the ceiling."""
    title = f"How well each detector finds the {what} labels"
    alike: dict[tuple[float, float, float], list[str]] = {}
    for name, rate in sorted(found.items(), key=lambda item: (-item[1].estimate, item[0])):
        shown = round(rate.estimate, 3), round(rate.low, 2), round(rate.high, 2)
        alike.setdefault(shown, []).append(name)
    rows = [
        Dot(_together(names), found[names[0]], f"{shown[0]:.3f}", "p_wrong" in names)
        for shown, names in alike.items()
    ]
    figure, axes = _dots(title, rows)
    axes.axvline(0.5, color=FAINT, linewidth=1, linestyle=(0, (1, 2)))
    if ceiling is not None:
        axes.axvline(ceiling, color=INK, linewidth=1.2)
        axes.annotate(
            f"estimated best for planted flips {ceiling:.3f} ",
            (ceiling, len(rows) - 0.55),
            ha="right",
            fontsize=7.5,
        )
    low = min([row.rate.low for row in rows] + [0.5])
    right = max([row.rate.high for row in rows] + [ceiling or 0])
    axes.set(ylim=(len(rows) - 0.3, -0.6), xlabel="AUROC (dotted: chance)")
    axes.set_xlim(low - 0.02, min(1.06, right + 0.07))
    listed = ", ".join(f"{' = '.join(names)} {shown[0]:.3f}" for shown, names in alike.items())
    return Picture(
        "detectors", title, CAPTIONS["detectors"], f"Dot plot of AUROC: {listed}.", figure
    )


def _together(names: Sequence[str]) -> str:
    """One name for detectors with the same result."""
    first = next((name for name in ("p_wrong", "p_flip") if name in names), names[0])
    return first if len(names) == 1 else f"{first} and {len(names) - 1} alike"


def annotators(table: Sequence[Annotator]) -> Picture:
    """Draw the flip rates of the least reliable annotators, with 90% intervals."""
    rows = [
        Dot(
            f"{_name(row.name)} ({row.labels:,})",
            Interval(row.flip_rate, row.low, row.high),
            label(row) if row.contrarian or row.careless else "",
            row.contrarian or row.careless,
        )
        for row in table[:MOST_ROWS]
    ]
    more = f", the least reliable {len(rows)} of {len(table):,}" if len(table) > len(rows) else ""
    title = f"Flip rate of each annotator{more}"
    return _rates("annotators", title, rows, _mean_rate(table), "flip rate")


def _mean_rate(table: Sequence[Annotator]) -> float:
    labels = sum(row.labels for row in table)
    return sum(row.flip_rate * row.labels for row in table) / max(labels, 1)


def groups(name: str, title: str, rates: Mapping[str, Interval], base: float) -> Picture:
    """Draw the expected share of wrong labels in each group of pairs, with 90% intervals."""
    shown = list(rates.items())[:MOST_ROWS]
    rows = [Dot(_name(key), rate) for key, rate in shown]
    return _rates(name, title, rows, base, "expected share of wrong labels")


def history(found: History) -> Picture:
    """Draw the flip rates of runs in order, and the line of their trend."""
    figure, (axes,) = canvas("Flip rate by run")
    for at, point in enumerate(found.points):
        rate, full = point.flip_rate, point.acts
        axes.plot([at, at], [rate.low, rate.high], color=FAINT, linewidth=1.7, zorder=2)
        fill = BLUE if full else PAPER
        axes.plot(at, rate.estimate, "o", color=BLUE, markerfacecolor=fill, markersize=6, zorder=3)
    last = len(found.points) - 1
    if found.trend is not None and found.start is not None:
        ends = [found.start, found.start + last * found.trend.estimate]
        axes.plot([0, last], ends, color=VERMILLION, linestyle="--", zorder=1)
    top = max(point.flip_rate.high for point in found.points)
    axes.set(xlim=(-0.5, last + 0.5), ylim=(0, max(1.15 * top, 0.02)), ylabel="flip rate")
    names = [_name(f"{point.dataset} {point.finished[:10]}") for point in found.points]
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 3 else 0, ha="right"
                    if len(names) > 3 else "center")  # fmt: skip
    percent(axes)
    listed = "; ".join(
        f"{name}: {point.flip_rate.low:.1%} to {point.flip_rate.high:.1%}"
        for name, point in zip(names, found.points, strict=True)
    )
    alt = f"{found.sentence} {listed}."
    return Picture("history", "Flip rate by run", CAPTIONS["history"], alt, figure)


def _name(text: str) -> str:
    """Shorten a label, and escape what matplotlib reads as mathematics."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split()).replace(
        "$", r"\$"
    )
    return line if len(line) <= 28 else line[:27] + "…"


def _rates(name: str, title: str, rows: Sequence[Dot], base: float, axis: str) -> Picture:
    figure, axes = _dots(title, rows)
    axes.axvline(base, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"{axis} (dashed: all together {base:.1%})")
    right = max([row.rate.high for row in rows] + [base])
    axes.set_xlim(0, min(1.12, right * 1.22 + 0.02))
    percent(axes, x=True, decimals=0 if right > 0.06 else 1)
    listed = "; ".join(
        f"{row.name}: {row.rate.estimate:.1%} ({row.rate.low:.1%} to {row.rate.high:.1%})"
        for row in rows
    )
    return Picture(
        name, title, CAPTIONS[name], f"Dot plot with 90% intervals. {title}. {listed}.", figure
    )


def _dots(title: str, rows: Sequence[Dot]) -> tuple[Figure, Axes]:
    """Draw rows of dots with intervals and remarks; highlighted rows are coloured diamonds."""
    figure, (axes,) = canvas(title, height=max(2.2, 1.3 + 0.25 * len(rows)))
    for index, row in enumerate(rows):
        axes.plot(
            [row.rate.low, row.rate.high], [index, index], color=FAINT, linewidth=1.7, zorder=2
        )
        axes.plot(
            row.rate.estimate, index, zorder=3, markersize=6.2, linestyle="",
            marker="D" if row.marked else "o", color=VERMILLION if row.marked else BLUE,
        )  # fmt: skip
        if row.remark:
            axes.annotate(
                row.remark, (row.rate.high, index), (6, 0), textcoords="offset points", va="center",
                fontsize=7.5, color=INK, bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    return figure, axes


Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: How to read each figure.
MAP_CAPTIONS = {
    "data-map": "Left of the line the replicas prefer the other side; higher up they disagree "
    "with each other.",
}

#: Most points of a scatter plot; more are thinned evenly.
POINTS = 3000


def data_map(margin: Float, spread: Float, flipped: Bool | None = None) -> Picture:
    """Draw mean held-out margins against the replicas' disagreement; known flips are marked."""
    title = "Data map: margin and disagreement of each pair"
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
    return Picture("data-map", title, MAP_CAPTIONS["data-map"], alt, figure)


def _robust(values: Float) -> tuple[float, float]:
    low, high = np.quantile(values, [0.002, 0.998])
    room = 0.06 * (high - low) or 1.0
    return float(low - room), float(high + room)
