"""Figures of how well wrong labels are found, where the truth is known: data in, a Picture out.

    picture = flips_by_decile(p_flip, flipped)
    picture.encode("svg")

Scores are higher = more suspicious; `flipped` [N] is the truth. No file is read or written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noisescope.report.style import (
    BLUE,
    FAINT,
    INK,
    PAPER,
    RULE,
    SERIES,
    SKY,
    VERMILLION,
    Picture,
    canvas,
    legend,
    percent,
    thin,
)
from noisescope.statistics import Interval, calibration, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: How to read each figure, in a sentence or two.
CAPTIONS = {
    "flips-by-u": "The paper’s Figure 3 on this dataset. Bars that rise to the right mean that u "
    "finds wrong labels; the dashed line is what a random pick would find.",
    "flips-by-decile": "The same for p_flip, in ten groups of equal size. Hatched bars hold more "
    "wrong labels than a random pick.",
    "roc": "Flag pairs from the most suspicious on: how many wrong labels are found (upward) for "
    "how many right ones disturbed (rightward). Nothing can reach into the shaded corner.",
    "precision-recall": "What share of the flagged pairs is truly wrong, as more of the wrong ones "
    "are found. The dashed line is a random pick.",
    "reliability": "On the diagonal, a p_flip of 60% is right six times in ten. Below: how many "
    "pairs stand where.",
    "detectors": "90% intervals; 0.5 is a coin. “stability”, “std” and “variability” measure "
    "contested pairs rather than wrong labels.",
}

#: Intervals of u drawn, the last one open.
U_INTERVALS = 8
#: Points of a curve: more than a screen shows would only make the file larger.
CURVE = 400


def flips_by_u(u: Float, flipped: Bool) -> Picture:
    """Share of flipped pairs per interval of u: the paper's Fig. 3 (arXiv 2503.16921).

    Intervals are equally wide up to a round number near the 97 % quantile; the last is open.
    """
    edges = u_edges(u)
    labels = [f"{a:.3g}–{b:.3g}" for a, b in pairwise(edges[:-1])]
    where = np.clip(np.searchsorted(edges[:-1], u, side="right") - 1, 0, U_INTERVALS - 1)
    groups = [flipped[where == index] for index in range(U_INTERVALS)]
    return _shares(
        "flips-by-u",
        "Share of flipped pairs by Adaptive-DPO's u",
        "u = stability × confidence, per pair",
        [*labels, f"≥ {edges[-2]:.3g}"],
        groups,
        float(flipped.mean()),
    )


def u_edges(u: Float) -> Float:
    """Edges [U_INTERVALS + 1] of equally wide intervals with a round width; the last is open."""
    top = float(np.quantile(u, 0.97)) or float(u.max()) or 1.0
    width = top / (U_INTERVALS - 1)
    scale = 10.0 ** np.floor(np.log10(width))
    step = next(
        unit * scale for unit in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if unit * scale >= width
    )
    return np.append(np.arange(U_INTERVALS) * step, np.inf)


def flips_by_decile(p_flip: Float, flipped: Bool) -> Picture:
    """Share of flipped pairs per tenth of the ranking by p_flip: Fig. 3's twin."""
    groups = deciles(p_flip, flipped)
    labels = ["lowest", *(str(index) for index in range(2, 10)), "highest"]
    return _shares(
        "flips-by-decile",
        "Share of flipped pairs by tenth of p_flip",
        "tenth of the pairs, in the order of p_flip",
        labels,
        groups,
        float(flipped.mean()),
    )


def deciles(score: Float, flipped: Bool) -> list[Bool]:
    """`flipped` of each tenth of the pairs in ascending order of `score`."""
    return list(np.array_split(flipped[np.argsort(score, kind="stable")], 10))


def _shares(
    name: str, title: str, axis: str, labels: Sequence[str], groups: Sequence[Bool], base: float
) -> Picture:
    """Bars of the share that is flipped in each group, with 90% intervals and the base rate."""
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
        _whisker(axes, index, found)
        axes.text(
            index,
            found.high + top * 0.02,
            f"{found.estimate:.0%}",
            ha="center",
            fontsize=8,
            color=INK,
        )
    _base_line(axes, base)
    counted = [f"{label}\n{len(group):,}" for label, group in zip(labels, groups, strict=True)]
    axes.set_xticks(range(len(labels)), counted)
    axes.set(xlabel=f"{axis} (below: pairs)", ylabel="flipped share", ylim=(0, top * 1.16 or 1.0))
    percent(axes)
    told = "; ".join(
        f"{' '.join(label.split())}: {found.estimate:.0%} of {len(group):,}"
        for label, found, group in zip(labels, shares, groups, strict=True)
        if found
    )
    return Picture(
        name, title, CAPTIONS[name], f"Bar chart. {title}; base rate {base:.0%}. {told}.", figure
    )


def _whisker(axes: Axes, at: float, interval: Interval) -> None:
    below, above = interval.estimate - interval.low, interval.high - interval.estimate
    axes.errorbar(
        at, interval.estimate, [[below], [above]], color=INK, capsize=2.5, linewidth=1, capthick=1
    )


def _base_line(axes: Axes, base: float) -> None:
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


def roc(scores: Mapping[str, Float], flipped: Bool, ceiling: float | None = None) -> Picture:
    """ROC curves of several detectors under the Bayes ceiling (binormal curve of that AUROC)."""
    title = "Flipped pairs found against sound pairs disturbed (ROC)"
    figure, (axes,) = canvas(title, height=4.6)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (1, 2)), label="chance 0.500")
    told = []
    for (name, score), (colour, dashes, _) in zip(scores.items(), SERIES, strict=False):
        false, true = _operating_points(score, flipped)
        area = float(np.trapezoid(true, false))
        every = thin(len(false), CURVE)
        axes.plot(
            np.append(false[every], 1), np.append(true[every], 1),
            color=colour, linestyle=dashes, label=f"{name} {area:.3f}",
        )  # fmt: skip
        told.append(f"{name} {area:.3f}")
    if ceiling is not None:
        false, true = _ceiling_curve(ceiling)
        axes.plot(false, true, color=INK, linewidth=1.2, label=f"Bayes ceiling {ceiling:.3f}")
        axes.fill_between(false, true, 1, color=RULE, zorder=0, linewidth=0)
        told.append(f"Bayes ceiling {ceiling:.3f}")
    axes.set(
        xlabel="sound pairs flagged", ylabel="flipped pairs flagged", xlim=(0, 1), ylim=(0, 1.005)
    )
    axes.set_aspect("equal")
    percent(axes)
    percent(axes, x=True)
    legend(axes, title="AUROC", loc="lower right")
    return Picture(
        "roc", title, CAPTIONS["roc"], f"ROC curves; area under each: {', '.join(told)}.", figure
    )


def _operating_points(score: Float, flipped: Bool) -> tuple[Float, Float]:
    """(false, true) positive rates at every distinct threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    true = np.cumsum(flipped[order])[last]
    false = 1 + last - true
    return (
        np.append(0.0, false / max(int(false[-1]), 1)),
        np.append(0.0, true / max(int(true[-1]), 1)),
    )


def _ceiling_curve(auroc: float) -> tuple[Float, Float]:
    """Equal-variance binormal ROC curve: TPR = Phi(Phi^-1(FPR) + sqrt 2 Phi^-1(AUROC))."""
    from scipy.special import ndtr, ndtri

    false = np.linspace(0, 1, 301) ** 3  # dense where the curve is steep
    return false, np.asarray(ndtr(ndtri(false) + np.sqrt(2) * ndtri(auroc)))


def precision_recall(
    scores: Mapping[str, Float], flipped: Bool, ceiling: float | None = None
) -> Picture:
    """Precision against recall of several detectors, with the base rate and the Bayes ceiling."""
    title = "How many flagged pairs are flipped, as more are flagged"
    figure, (axes,) = canvas(title)
    base = float(flipped.mean())
    told = []
    for (name, score), (colour, dashes, _) in zip(scores.items(), SERIES, strict=False):
        false, true = _operating_points(score, flipped)
        precision = _precision(false, true, base)[1:]
        area = float((np.diff(true) * precision).sum())
        keep = true[1:] >= 0.01
        every = thin(int(keep.sum()), CURVE)
        axes.plot(
            true[1:][keep][every], precision[keep][every],
            color=colour, linestyle=dashes, label=f"{name} {area:.3f}",
        )  # fmt: skip
        told.append(f"{name} {area:.3f}")
    if ceiling is not None:
        false, true = _ceiling_curve(ceiling)
        axes.plot(
            true[1:], _precision(false, true, base)[1:],
            color=INK, linewidth=1.2, label="Bayes ceiling",
        )  # fmt: skip
    _base_line(axes, base)
    axes.set(xlabel="share of all flipped pairs found", ylabel="share flipped among flagged")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    percent(axes)
    percent(axes, x=True)
    legend(axes, title="average precision", loc="upper right")
    alt = f"Precision-recall curves over a base rate of {base:.0%}; average precision: "
    return Picture(
        "precision-recall", title, CAPTIONS["precision-recall"], alt + ", ".join(told) + ".", figure
    )


def _precision(false: Float, true: Float, base: float) -> Float:
    found, disturbed = base * true, (1 - base) * false
    return np.where(found + disturbed > 0, found / np.maximum(found + disturbed, 1e-300), 1.0)


def reliability(p_flip: Float, flipped: Bool) -> Picture:
    """What came true against what was predicted, in 15 bins of equal mass, counts below."""
    found = calibration(p_flip, flipped)
    title = f"Does p_flip mean what it says? (ECE {found.ece:.3f}, Brier {found.brier:.3f})"
    figure, (axes, below) = canvas(title, rows=2, height=4.8, ratios=(4, 1))
    bins = [share(o * n, int(n)) for o, n in zip(found.observed, found.count, strict=True)]
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (5, 3)), label="honest")
    axes.plot(found.predicted, found.observed, color=BLUE, marker="o", label="measured")
    for predicted, interval in zip(found.predicted, bins, strict=True):
        _whisker(axes, float(predicted), interval)
    top = min(1.0, 1.1 * max(float(found.predicted.max()), max(b.high for b in bins)))
    axes.set(ylabel="flipped in truth", ylim=(0, top))
    legend(axes, loc="upper left")
    below.hist(
        p_flip, bins=np.linspace(0, 1, 51).tolist(), color=SKY, edgecolor=PAPER, linewidth=0.4
    )
    below.set(xlabel="p_flip", ylabel="pairs", xlim=(0, top), yscale="log")
    percent(axes)
    told = "; ".join(
        f"{p:.0%} predicted, {o:.0%} true"
        for p, o in zip(found.predicted, found.observed, strict=True)
    )
    return Picture(
        "reliability", title, CAPTIONS["reliability"], f"Reliability curve. {title} {told}.", figure
    )


def detectors(found: Mapping[str, Interval], ceiling: float | None, height: float = 0) -> Picture:
    """AUROC of every detector with 90% intervals, best first, against the Bayes ceiling."""
    title = "How well each detector finds the flipped pairs"
    rows = sorted(found.items(), key=lambda item: -item[1].estimate)
    figure, (axes,) = canvas(title, height=height or 1.3 + 0.26 * len(rows))
    axes.axvline(0.5, color=FAINT, linewidth=1, linestyle=(0, (1, 2)))
    for index, (name, interval) in enumerate(rows):
        bold = name == "p_flip"
        axes.plot([interval.low, interval.high], [index, index], color=FAINT, linewidth=1.8)
        axes.plot(
            interval.estimate, index, marker="D" if bold else "o", markersize=6.5,
            color=VERMILLION if bold else BLUE,
        )  # fmt: skip
        axes.annotate(
            f"{interval.estimate:.3f}", (interval.high, index), (6, 0), va="center", fontsize=7.5,
            textcoords="offset points", bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
    if ceiling is not None:
        axes.axvline(ceiling, color=INK, linewidth=1.2)
        axes.annotate(
            f"Bayes ceiling {ceiling:.3f} ", (ceiling, len(rows) - 0.55), ha="right", fontsize=7.5
        )
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    low = min([interval.low for _, interval in rows] + [0.5])
    right = max([interval.high for _, interval in rows] + [ceiling or 0])
    axes.set(ylim=(len(rows) - 0.3, -0.6), xlabel="AUROC (dotted: chance)")
    axes.set_xlim(low - 0.02, min(1.06, right + 0.07))
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    told = ", ".join(f"{name} {interval.estimate:.3f}" for name, interval in rows)
    return Picture("detectors", title, CAPTIONS["detectors"], f"Dot plot of AUROC: {told}.", figure)
