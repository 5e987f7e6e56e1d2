"""Draw curves: precision and recall, calibration, held-out loss.

    picture = precision_recall({"p_wrong": p_wrong, "u": u}, wrong, "wrong")
    picture.encode("svg")

Scores are higher = more suspicious; `flipped` [N] is the truth, `what` its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from noisescope.report.style import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    PAPER,
    SERIES,
    SKY,
    Picture,
    base_line,
    canvas,
    legend,
    percent,
    thin,
    whisker,
)
from noisescope.scoring.metrics import calibration, share

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: How to read each figure.
CAPTIONS = {
    "finds": "The range of wrong labels to expect among the pairs checked, the most suspicious "
    "first.",
    "precision-recall": "The share of flagged pairs that are really wrong, as more of the wrong "
    "ones are found. The dashed line is a random selection.",
    "reliability": "On the diagonal, a value of 60% is right six times in ten. Below: the number "
    "of pairs.",
    "learning-curves": "Loss on pairs that a replica did not train on. If it rises, the replica "
    "memorises its training pairs.",
}

#: Points of a curve; more would only make the file larger.
CURVE = 400


def finds(rows: Sequence[Mapping[str, int]]) -> Picture:
    """Draw the range of wrong labels expected among the most suspicious pairs of a summary."""
    title = "Wrong labels found as the most suspicious pairs are checked"
    figure, (axes,) = canvas(title)
    pairs, low, high = ([0, *(row[name] for row in rows)] for name in ("pairs", "low", "high"))
    axes.fill_between(pairs, low, high, color=SKY, alpha=0.5, linewidth=0)
    for end in (low, high):
        axes.plot(pairs, end, color=BLUE)
    axes.plot(pairs, pairs, color=FAINT, linestyle="--", linewidth=1, label="every label wrong")
    axes.set_xlim(0, pairs[-1])
    axes.set_ylim(0, 1.15 * max(max(high), 1))
    axes.set_xlabel("pairs checked, most suspicious first")
    axes.set_ylabel("wrong labels, 90 % range")
    legend(axes, loc="upper left")
    alt = f"Of {pairs[-1]:,} pairs checked, {low[-1]:,} to {high[-1]:,} labels should be wrong."
    return Picture("finds", title, CAPTIONS["finds"], alt, figure)


def _operating_points(score: Float, flipped: Bool) -> tuple[Float, Float]:
    """Return (false, true) positive rates at every distinct threshold, from (0, 0) to (1, 1)."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    true = np.cumsum(flipped[order])[last]
    false = 1 + last - true
    return (
        np.append(0.0, false / max(int(false[-1]), 1)),
        np.append(0.0, true / max(int(true[-1]), 1)),
    )


def precision_recall(scores: Mapping[str, Float], flipped: Bool, what: str = "flipped") -> Picture:
    """Draw precision against recall of several detectors, and the base rate."""
    title = f"Share of flagged labels that are {what}, as more are found"
    figure, (axes,) = canvas(title)
    base = float(flipped.mean())
    areas = []
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
        areas.append(f"{name} {area:.3f}")
    base_line(axes, base)
    axes.set(xlabel=f"share of all {what} labels found", ylabel=f"share {what} among flagged")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    percent(axes)
    percent(axes, x=True)
    legend(axes, title="average precision", loc="upper right")
    alt = f"Precision-recall curves over a base rate of {base:.0%}; average precision: "
    return Picture(
        "precision-recall",
        title,
        CAPTIONS["precision-recall"],
        alt + ", ".join(areas) + ".",
        figure,
    )


def _precision(false: Float, true: Float, base: float) -> Float:
    found, alarms = base * true, (1 - base) * false
    return np.where(found + alarms > 0, found / np.maximum(found + alarms, 1e-300), 1.0)


def reliability(p: Float, flipped: Bool, name: str = "p_flip", what: str = "flipped") -> Picture:
    """Draw observed against predicted shares in 15 bins of equal mass, with counts below."""
    found = calibration(p, flipped)
    title = f"Calibration of {name} (ECE {found.ece:.3f}, Brier {found.brier:.3f})"
    figure, (axes, below) = canvas(title, rows=2, height=4.8, ratios=(4, 1))
    bins = [share(o * n, int(n)) for o, n in zip(found.observed, found.count, strict=True)]
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (5, 3)), label="calibrated")
    axes.plot(found.predicted, found.observed, color=BLUE, marker="o", label="measured")
    for predicted, interval in zip(found.predicted, bins, strict=True):
        whisker(axes, float(predicted), interval)
    top = min(1.0, 1.1 * max(float(found.predicted.max()), max(b.high for b in bins)))
    axes.set(ylabel=f"really {what}", ylim=(0, top))
    legend(axes, loc="upper left")
    below.hist(p, bins=np.linspace(0, 1, 51).tolist(), color=SKY, edgecolor=PAPER, linewidth=0.4)
    below.set(xlabel=name, ylabel="pairs", xlim=(0, top), yscale="log")
    percent(axes)
    bins_text = "; ".join(
        f"{p:.0%} predicted, {o:.0%} true"
        for p, o in zip(found.predicted, found.observed, strict=True)
    )
    return Picture(
        "reliability",
        title,
        CAPTIONS["reliability"],
        f"Reliability curve. {title} {bins_text}.",
        figure,
    )


def learning_curves(steps: Sequence[int], losses: Float) -> Picture:
    """Draw the held-out loss [M, T] of each replica by optimiser step [T]."""
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
