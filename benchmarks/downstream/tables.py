"""Tabulate the training benchmarks from accuracies by seed and test group, and check targets.

cells[kind, rate, method, regime] is [S, T]: mean accuracy of every seed on each of its T groups of
test pairs (topics). Share of the loss recovered = (method - noisy dpo) / (clean dpo - noisy dpo),
seeds pooled; its interval resamples seeds and groups together for all methods. A dash: the interval
of the cost reaches 0, so there is nothing to recover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.detect import Float
from benchmarks.harness import Report

Int = NDArray[np.int64]
Key = tuple[str, float, str, str]
Cells = Mapping[Key, Float]
BOOTSTRAPS = 1000
NOTHING = "–"
RIVALS = ("dpo", "cdpo", "rdpo", "ipo", "ropo", "dr-dpo", "holder-dpo", "re-po")
PAPER = ("adaptive-dpo (paper)", "adaptive-ipo (paper)")
#: Whom ours has to beat: losses that need no audit, and the paper's, given the audit's u.
GROUPS = {"losses without an audit": RIVALS, "the paper's": PAPER}


def tabulate(cells: Cells, ours: str, regimes: Sequence[str], report: Report, task: str) -> None:
    """Add accuracies, shares recovered with intervals, the cost of noise, and the targets."""
    names = list(dict.fromkeys(key[2] for key in cells))
    groups = next(iter(cells.values())).shape
    draws = resamples(*groups)
    for regime in regimes:
        plant = sorted(
            (key[:2] for key in cells if key[2:] == ("dpo", regime)),
            key=lambda where: (where[0] != "uniform", where),
        )
        title = f"{task}, {regime}" if regime else task
        report.tables[f"accuracy on clean pairs: {title}"] = [
            {"method": name}
            | {
                label(*where): float(cells[*where, name, regime].mean())
                for where in plant
                if (*where, name, regime) in cells
            }
            for name in names
        ]
        clean = cells["uniform", 0.0, "dpo", regime]
        report.tables[f"share of the loss recovered [90 %]: {title}"] = [
            {"method": name}
            | {
                label(*where): recovered(
                    cells[*where, name, regime], clean, cells[*where, "dpo", regime], draws
                )
                for where in plant
                if where[1] > 0
            }
            for name in names
        ]
        report.tables[f"what noise costs dpo: {title}"] = [
            cost_row(cells[*where, "dpo", regime], clean, draws, label(*where)) for where in plant
        ]
        report.tables[f"ours ({ours}) less the best rival: {title}"] = [
            ahead_row(cells, ours, where, regime, group, draws)
            for where in plant
            for group in GROUPS
            if (*where, ours, regime) in cells and present(cells, where, regime, group)
        ]
        targets(cells, ours, regime, report, title)
    report.facts[f"accuracies: {task}"] = {
        f"{kind} {rate:g} {name} {regime}": cell.tolist()
        for (kind, rate, name, regime), cell in cells.items()
    }


def label(kind: str, rate: float) -> str:
    """Return the column of a kind and rate of flips."""
    return f"{rate:.0%}" if kind == "uniform" else f"{kind} {rate:.0%}"


def group_means(right: Float, group: Int) -> Float:
    """Return the mean of `right` [n] within each group, [T]."""
    return np.array([right[group == one].mean() for one in np.unique(group)])


def resamples(seeds: int, groups: int) -> list[tuple[Int, Int]]:
    """Return bootstrap draws of seeds [S] and of groups within each [S, T], for all methods."""
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, seeds, seeds), rng.integers(0, groups, (seeds, groups)))
        for _ in range(BOOTSTRAPS)
    ]


def drawn(cell: Float, draw: tuple[Int, Int]) -> float:
    """Return the mean of a resample of seeds and groups."""
    seeds, groups = draw
    return float(cell[seeds[:, None], groups].mean())


def share(method: float, clean: float, noisy: float) -> float:
    """Return (method - noisy) / (clean - noisy); NaN where noise cost nothing."""
    return (method - noisy) / (clean - noisy) if clean > noisy else float("nan")


def is_lost(clean: Float, noisy: Float, draws: list[tuple[Int, Int]]) -> bool:
    """Return whether noise cost accuracy beyond chance: the interval is above 0."""
    return difference(clean, noisy, draws, "cost")["low"] > 0


def recovered(method: Float, clean: Float, noisy: Float, draws: list[tuple[Int, Int]]) -> str:
    """Return the share of the loss recovered with its interval, as text; a dash if none was lost.

    At most one draw in twenty then has no cost; the quantiles are those of the others.
    """
    if not is_lost(clean, noisy, draws):
        return NOTHING
    found = [share(*(drawn(cell, draw) for cell in (method, clean, noisy))) for draw in draws]
    low, high = np.nanquantile(found, [0.05, 0.95])
    middle = share(method.mean(), clean.mean(), noisy.mean())
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def cost_row(noisy: Float, clean: Float, draws: list[tuple[Int, Int]], name: str) -> dict[str, Any]:
    """Return the accuracy that noise cost, and whether that is beyond chance."""
    return {"flips": name} | difference(clean, noisy, draws, "cost")


def ahead_row(
    cells: Cells,
    ours: str,
    where: tuple[str, float],
    regime: str,
    group: str,
    draws: list[tuple[Int, Int]],
) -> dict[str, Any]:
    """Return ours minus the best rival of this cell (chosen after the fact)."""
    rival = best_rival(cells, where, regime, group)
    mine, theirs = cells[*where, ours, regime], cells[*where, rival, regime]
    row = {"flips": label(*where), "among": group, "best": rival}
    return row | difference(mine, theirs, draws, "ours less it")


def difference(
    one: Float, other: Float, draws: list[tuple[Int, Int]], name: str
) -> dict[str, float]:
    """Return the mean of `one` minus that of `other`, with the 90 % interval."""
    found = [drawn(one, draw) - drawn(other, draw) for draw in draws]
    low, high = np.quantile(found, [0.05, 0.95])
    return {name: float(one.mean() - other.mean()), "low": float(low), "high": float(high)}


def present(cells: Cells, where: tuple[str, float], regime: str, group: str) -> list[str]:
    """Return the rivals of a group that were run in a cell."""
    return [name for name in GROUPS[group] if (*where, name, regime) in cells]


def best_rival(cells: Cells, where: tuple[str, float], regime: str, group: str) -> str:
    """Return the rival of a group with the best accuracy in a cell."""
    names = present(cells, where, regime, group)
    return max(names, key=lambda name: cells[*where, name, regime].mean())


def targets(cells: Cells, ours: str, regime: str, report: Report, title: str) -> None:
    """Record the targets: ours recovers 80 % at 20 and 30 % flips and beats every rival.

    The first is not measured (None) where noise cost dpo nothing beyond chance.
    """
    clean = cells["uniform", 0.0, "dpo", regime]
    draws = resamples(*clean.shape)
    for rate in (0.2, 0.3):
        where = ("uniform", rate)
        if (*where, ours, regime) not in cells:
            continue
        mine, noisy = cells[*where, ours, regime], cells[*where, "dpo", regime]
        lost = is_lost(clean, noisy, draws)
        got = share(float(mine.mean()), float(clean.mean()), float(noisy.mean()))
        name = f"{title}, {rate:.0%}: share recovered by {ours}"
        report.at_least(name, got if lost else None, 0.8)
        for group in GROUPS:
            if present(cells, where, regime, group):
                rival = best_rival(cells, where, regime, group)
                ahead = float(mine.mean() - cells[*where, rival, regime].mean())
                report.at_least(f"{title}, {rate:.0%}: {ours} less {rival}", ahead, 0.0)
