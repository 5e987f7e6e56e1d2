"""Draw accuracy on clean pairs against the share of wrong labels, a panel a task and regime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.downstream.methods import HEADS, ORACLE, OURS
from benchmarks.downstream.tables import RIVALS, Cells
from noisescope.storage.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colour (Okabe and Ito's, distinct for the colour-blind), marker and name of each line.
LINES = {
    ORACLE: ("#009E73", "^", "oracle: dpo without the flipped pairs"),
    OURS: ("#D55E00", "o", "ours: distilled-dpo"),
    "p_flip: weight 1-2p": ("#0072B2", "s", "dpo weighted by 1 - 2 p_flip"),
    "adaptive-dpo (paper)": ("#CC79A7", "D", "adaptive-dpo as published"),
    "adaptive-ipo (paper)": ("#E69F00", "v", "adaptive-ipo as published"),
    "dpo": ("#000000", "x", "dpo"),
    HEADS: ("#56B4E9", "", "the audit's own heads (no policy)"),
}
BACKGROUND = ("#B8B8B8", "robust losses without an audit")
COLUMNS = 4


def draw(tasks: Mapping[str, Cells], path: Path) -> None:
    """Draw a row of panels a task with regimes; a task without regimes ends the first row."""
    from io import BytesIO

    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = [(task, regime) for task, cells in tasks.items() for regime in regimes(cells)]
    alone = [panel for panel in panels if not panel[1]]
    whole = [panel for panel in panels if panel[1]]
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    rows = max(1, -(-len(whole) // (COLUMNS - 1)))
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    for row in grid:  # regimes of a task on one scale
        for axis in row[1 : COLUMNS - 1]:
            axis.sharey(row[0])
            axis.tick_params(labelleft=False)
    for place, (task, regime) in enumerate(whole):
        panel(grid[divmod(place, COLUMNS - 1)], tasks[task], regime, f"{task}: {regime}")
    for row, (task, _) in zip(grid, alone, strict=False):
        panel(row[-1], tasks[task], "", task)
    for row in grid[len(alone) :]:
        row[-1].axis("off")
    for row in grid:
        row[0].set_ylabel("accuracy on clean pairs")
    handles = [
        Line2D([], [], linestyle=style(name), color=colour, marker=mark, label=caption)
        for name, (colour, mark, caption) in LINES.items()
    ]
    handles.append(Line2D([], [], color=BACKGROUND[0], label=BACKGROUND[1]))
    if len(alone) < rows:
        grid[-1][-1].legend(handles=handles, loc="center", frameon=False, fontsize=10)
    made = BytesIO()
    figure.savefig(made, format="png", dpi=110)
    write_atomic(path, made.getvalue())


def regimes(cells: Cells) -> list[str]:
    """Return regimes in the order they were tabulated."""
    return list(dict.fromkeys(key[3] for key in cells))


def panel(axis: Axes, cells: Cells, regime: str, title: str) -> None:
    """Draw a line for each method; rivals in the background share one colour."""
    for name in RIVALS[1:]:
        axis.plot(*line(cells, name, regime), color=BACKGROUND[0], linewidth=1, zorder=1)
    for order, (name, (colour, mark, _)) in enumerate(reversed(LINES.items()), start=2):
        points = line(cells, name, regime)
        axis.plot(*points, style(name), color=colour, marker=mark, markersize=5, zorder=order)
    axis.set_title(title, fontsize=11)
    axis.set_xlabel("wrong labels, %")
    axis.set_xticks([0, 10, 20, 30, 40])
    axis.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)


def style(name: str) -> str:
    """Return the line style: solid for policies, dashed otherwise."""
    return "--" if name == HEADS else "-"


def line(cells: Cells, name: str, regime: str) -> tuple[list[float], list[float]]:
    """Return flip rates in percent and mean accuracies of one method under uniform flips."""
    found = sorted(
        (rate, float(cell.mean()))
        for (kind, rate, method, where), cell in cells.items()
        if (kind, method, where) == ("uniform", name, regime)
    )
    return [100 * rate for rate, _ in found], [accuracy for _, accuracy in found]
