"""Table 5: k1 (Eq. 14) at 4, 10 and 12, rho (Eq. 11) at 10 and 15, on real data.

    python -m benchmarks.paper.table5 --scale tiny|full [--task ukp] [--out DIR] [--json FILE]

Images, as in the paper: LoRA through the training loop on the labels as collected, weights
computed while training. Text (not in the paper): the same constants, and rho 1, the paper's for
text. One audit a seed gives u at every rho and W at every k1, so a cell costs one log-linear
training and no replica.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.detect import BETA, Bool
from benchmarks.downstream.topics import Recipe
from benchmarks.paper.cells import (
    WHISKERS,
    better,
    dpo,
    image_cells,
    image_dpo,
    online,
    text_cells,
    win_rates,
)
from benchmarks.paper.figures import bars
from benchmarks.paper.full import PICK, Step, evaluate, train
from benchmarks.paper.published import METRICS, PUBLISHED
from benchmarks.paper.results import Direction, Resampled, Result, shown
from benchmarks.paper.script import Script, Small, main
from benchmarks.paper.text_task import TextTask, text_task
from noisescope.scoring.detectors import u
from noisescope.scoring.metrics import auroc
from noisescope.scoring.weights import WeightConfig

TITLE = "Table 5: k1 and rho, real data"
#: (rho, k1) of the paper's rows, the chosen one first.
CHOSEN = (15.0, 10.0)
CELLS = (CHOSEN, (15.0, 4.0), (15.0, 12.0), (10.0, 10.0))
#: The paper's rho for text, with the k1 it ablated for images.
TEXT_CELLS = ((1.0, 10.0), *CELLS)


def named(rho: float, k1: float) -> str:
    """Return the name of a cell."""
    return f"rho {rho:g}, k1 {k1:g}"


def weighted(task: TextTask, wrong: Bool, rho: float, k1: float) -> Recipe:
    """Return Adaptive-DPO on text with these constants."""
    return task.adaptive(wrong, WeightConfig(k1=k1), rho)


IMAGE_METHODS = {"dpo": image_dpo} | {named(rho, k1): online(rho=rho, k1=k1) for rho, k1 in CELLS}
TEXT_METHODS = {"dpo": dpo} | {
    named(rho, k1): lambda task, wrong, rho=rho, k1=k1: weighted(task, wrong, rho, k1)
    for rho, k1 in TEXT_CELLS
}


def where_of(rho: float, k1: float) -> dict[str, str]:
    """Return the columns that select a cell in the paper's table."""
    name, value = ("k1", k1) if rho == CHOSEN[0] else ("rho", rho)
    return {"hyper-parameter": name, "value": f"{value:g}"}


def row(rho: float, k1: float) -> list[float]:
    """Return the paper's win rates of a cell against DPO."""
    return PUBLISHED["table5"].select(**where_of(rho, k1))


def metrics_won(rho: float, k1: float) -> str:
    """Return on how many of the paper's metrics a cell has a higher win rate than the chosen."""
    won = sum(mine > chosen for mine, chosen in zip(row(rho, k1), row(*CHOSEN), strict=True))
    return f"SD1.5: better on {won} of {len(METRICS)} metrics"


def questions(found: Resampled, where: str) -> list[Direction]:
    """Compare each choice with DPO, and with the chosen one."""
    against_dpo = [
        better(
            found,
            where,
            (0.0, named(*cell)),
            (0.0, "dpo"),
            f"SD1.5: yes, {win_rates('table5', **where_of(*cell))}",
        )
        for cell in CELLS
    ]
    return against_dpo + [
        better(
            found,
            where,
            (0.0, named(*cell)),
            (0.0, named(*CHOSEN)),
            metrics_won(*cell),
        )
        for cell in CELLS[1:]
    ]


def facts(small: Small) -> dict[str, tuple[float, float]]:
    """Return the AUROC of u and the mean W of each cell on text, means of the seeds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in small.seeds:
        task = text_task(small, seed)
        wrong = task.plant(0.0)
        for rho, k1 in TEXT_CELLS:
            area = auroc(u(task.audit(wrong) / BETA, rho), wrong[task.split.train])
            weight = task.weights(wrong, WeightConfig(k1=k1), rho)["weight"]
            found.setdefault(named(rho, k1), []).append((area, float(weight.mean())))
    return {name: tuple(np.mean(values, axis=0).tolist()) for name, values in found.items()}


def tiny(small: Small) -> Result:
    """Train every cell on the labels as collected."""
    result, drawn = Result(), {}
    if small.task == "sample":
        images = image_cells(small, (0.0,), IMAGE_METHODS)
        result.trained += images.seconds
        values = {name: images.value((0.0, name)) for name in IMAGE_METHODS}
        result.tables["Images: LoRA, accuracy"] = [
            {"method": name, "labels as collected": shown(value)} for name, value in values.items()
        ]
        result.directions += questions(images, "images, LoRA")
        drawn |= {f"images, {name}": value for name, value in values.items()}
    text = text_cells(small, (0.0,), TEXT_METHODS)
    about, table = facts(small), []
    for name in TEXT_METHODS:
        area, mean = about.get(name, (None, 1.0))
        line = {"method": name, "AUROC of u": area, "mean W": mean}
        table.append(
            line | {regime: shown(cell.value((0.0, name))) for regime, cell in text.items()}
        )
    result.tables["Text: log-linear, accuracy"] = table
    for regime, found in text.items():
        result.trained += found.seconds
        result.directions += questions(found, f"text, {regime}")
    drawn |= {
        f"text, memorising, {name}": text["memorising"].value((0.0, name)) for name in TEXT_METHODS
    }
    result.pictures.append(bars("table5", TITLE, drawn, WHISKERS))
    return result


def full() -> Iterator[Step]:
    """Train SD1.5 on Pick-a-Pic v2 as it is, once for each choice, against DPO."""
    dataset, baseline = f"{PICK} --split train", "trained/sd15-dpo"
    yield train(dataset, "sd15", "dpo", baseline)
    for rho, k1 in CELLS:
        out = f"trained/sd15-rho{rho:g}-k1-{k1:g}"
        constants = f"--online ema --rho {rho:g} --k1 {k1:g}"
        yield train(dataset, "sd15", "adaptive-dpo", out, constants, extra=2)
        yield evaluate(out, "sd15", baseline)


SCRIPT = Script("table5", __doc__ or "", TITLE, PUBLISHED["table5"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
