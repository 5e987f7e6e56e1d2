"""Write the tables and the figure of the training benchmarks from their JSON results.

    python -m benchmarks.downstream.pages RESULT.json ... [--tables FILE.md] [--figure FILE.png]

RESULT.json come from `benchmarks.downstream`, `.downstream.images` and `.downstream.lora`. Prints
two summaries in Markdown: shares of the loss recovered, and points of accuracy lost and won.
--tables writes every table, --figure draws accuracy against the share of wrong labels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detect import Float
from benchmarks.downstream.methods import HEADS, ORACLE, OURS
from benchmarks.downstream.tables import (
    NOTHING,
    PAPER,
    Cells,
    Int,
    Key,
    best_rival,
    difference,
    recovered,
    resamples,
)
from noisescope.storage.files import write_atomic

#: Methods with a column of their own in the summary.
SHOWN = (OURS, "p_flip: weight 1-2p", *PAPER)
WITHOUT, WITHOUT_BEST = "losses without an audit", "best without an audit"
RATES = (0.2, 0.3)
Draws = list[tuple[Int, Int]]
Row = Callable[[Cells, float, str, Draws], dict[str, str]]
HEAD = """# Every number of the training benchmarks

What they mean: [docs/evidence.md](../../docs/evidence.md). Written by
`python -m benchmarks.downstream.pages` from the results of the three benchmarks. Shares and
differences have 90 % intervals, from resampled seeds and groups of test pairs. A dash: noise cost
dpo nothing beyond chance, so there is nothing to recover. The best rival of a cell is chosen after
the fact, ours is not.
"""


def main() -> None:
    """Read results, write tables and figure, print the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    results = [json.loads(path.read_text("utf-8")) for path in options.results]
    cells = {task: found for result in results for task, found in cells_of(result).items()}
    if options.tables:
        write_atomic(options.tables, HEAD + "".join(map(full, results)))
    if options.figure:
        from benchmarks.downstream.figure import draw

        draw(cells, options.figure)
    print(markdown(summary(cells, shares)), markdown(summary(cells, points)), sep="\n", end="")


def cells_of(result: Mapping[str, Any]) -> dict[str, Cells]:
    """Return accuracies [S, T] by (kind, rate, method, regime), by task, as tabulated."""
    begin = "accuracies: "
    found: dict[str, Cells] = {}
    for name, rows in result["facts"].items():
        if name.startswith(begin):
            cells = {key_of(text): np.array(values) for text, values in rows.items()}
            found[name.removeprefix(begin)] = cells
    return found


def key_of(text: str) -> Key:
    """Parse ("uniform", 0.3, "p_flip: weight 1-2p", "tuned") from its text."""
    kind, rate, rest = text.split(" ", 2)
    method, _, regime = rest.rpartition(" ")
    return kind, float(rate), method, regime


def summary(tasks: Mapping[str, Cells], row: Row) -> list[dict[str, str]]:
    """Return one row a task, regime and rate."""
    rows = []
    for task, cells in tasks.items():
        draws = resamples(*next(iter(cells.values())).shape)
        for regime in dict.fromkeys(key[3] for key in cells):
            where = {"task": f"{task}, {regime}" if regime else task}
            rows += [
                where | {"flips": f"{rate:.0%}"} | row(cells, rate, regime, draws)
                for rate in RATES
                if ("uniform", rate, OURS, regime) in cells
            ]
    return rows


def shares(cells: Cells, rate: float, regime: str, draws: Draws) -> dict[str, str]:
    """Return the share that each method recovers of the loss of dpo by uniform flips at `rate`."""
    where = "uniform", rate
    clean, noisy = cells["uniform", 0.0, "dpo", regime], cells[*where, "dpo", regime]
    rival = best_rival(cells, where, regime, WITHOUT)
    found = {
        name: recovered(cells[*where, name, regime], clean, noisy, draws)
        if (*where, name, regime) in cells
        else "not run"
        for name in (*SHOWN, rival, ORACLE)
    }
    best = found[rival]
    return {
        **{name.removeprefix("p_flip: "): found[name] for name in SHOWN},
        WITHOUT_BEST: best if best == NOTHING else f"{best} {rival}",
        "oracle": found[ORACLE],
    }


def points(cells: Cells, rate: float, regime: str, draws: Draws) -> dict[str, str]:
    """Return points of accuracy: the loss of dpo by noise, and gains over noisy dpo."""
    where = "uniform", rate
    clean, noisy = cells["uniform", 0.0, "dpo", regime], cells[*where, "dpo", regime]

    def points_of(one: Float, other: Float) -> str:
        found = difference(one, other, draws, "more").values()
        return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * value for value in found))

    rival = best_rival(cells, where, regime, WITHOUT)
    mine = cells[*where, OURS, regime]
    heads = cells.get((*where, HEADS, regime))
    return {
        "lost by dpo": points_of(clean, noisy),
        "heads less dpo": "not run" if heads is None else points_of(heads, noisy),
        "ours less dpo": points_of(mine, noisy),
        f"ours less the {WITHOUT_BEST}": f"{points_of(mine, cells[*where, rival, regime])} {rival}",
    }


def full(result: Mapping[str, Any]) -> str:
    """Return every table of one benchmark."""
    tables = {k: v for k, v in result["results"].items() if k != "feature pass"}
    tables[f"targets: {next(iter(cells_of(result)))}"] = result["targets"]
    return "".join(
        f"\n## {title[0].upper()}{title[1:]}\n\n{markdown(rows)}" for title, rows in tables.items()
    )


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table; numbers with three decimals."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines: Iterable[Sequence[str]] = [
        names,
        ["---"] * len(names),
        *([shown(row.get(name)) for name in names] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shown(value: Any) -> str:
    """Return one value as text."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
