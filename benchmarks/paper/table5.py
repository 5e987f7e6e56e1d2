"""Table 5: how much k1 (Eq. 14) and rho (Eq. 11) matter.

    python -m benchmarks.paper.table5 --scale tiny|full [--task ukp] [--out DIR] [--json FILE]

One audit a seed: its stored margins give u at every rho and W at every k1, so a cell costs a
log-linear training and no replica. 20 % of the labels are turned round.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.detect import BETA
from benchmarks.downstream.topics import Lesson
from benchmarks.paper.cells import plain, say
from benchmarks.paper.figures import bars
from benchmarks.paper.full import HH, Step, evaluate, flip, score, train
from benchmarks.paper.loglinear import REGIMES, course
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Direction, Outcomes, Result, told
from benchmarks.paper.script import Script, Small, main
from noisescope.scoring.detectors import u
from noisescope.scoring.metrics import auroc
from noisescope.scoring.weights import WeightConfig
from noisescope.training.objectives import AdaptiveDPO

TITLE = "Table 5: k1 and rho, 20 % flips"
RATE = 0.2
K1 = (4.0, 10.0, 12.0)
RHO = (1.0, 5.0, 15.0)


def named(rho: float, k1: float) -> str:
    """A cell's name."""
    return f"rho {rho:g}, k1 {k1:g}"


def tiny(small: Small) -> Result:
    """Nine cells and dpo, from one audit a seed."""
    import time

    courses, began = [course(small, seed) for seed in small.seeds], time.perf_counter()
    found = {regime: Outcomes([one.group for one in courses]) for regime in REGIMES}
    facts: dict[str, list[tuple[float, float]]] = {}
    for one in courses:
        flipped = one.plant(RATE)
        lessons = {"dpo": plain(one, flipped)}
        for rho in RHO:
            scores = u(one.audit(flipped) / BETA, rho)
            found_at = auroc(scores, flipped[one.split.train])
            for k1 in K1:
                told_by = one.weights(flipped, WeightConfig(k1=k1), rho)
                lessons[named(rho, k1)] = Lesson(AdaptiveDPO(BETA), **told_by)
                mean = float(told_by["weight"].mean())
                facts.setdefault(named(rho, k1), []).append((found_at, mean))
        for name, lesson in lessons.items():
            for regime, right in one.learn(flipped, lesson).items():
                found[regime].add(RATE, name, right)
        say(f"text, seed {one.seed}", began)
    return _told(found, facts)


def _told(found: dict[str, Outcomes], facts: dict[str, list[tuple[float, float]]]) -> Result:
    result = Result()
    cells = {regime: outcomes.resampled() for regime, outcomes in found.items()}
    names = ["dpo", *facts]
    rows = []
    for name in names:
        area, mean = np.mean(facts[name], axis=0).tolist() if name in facts else (None, 1.0)
        row = {"method": name, "AUROC of u": area, "mean W": mean}
        rows.append(row | {regime: told(one.value((RATE, name))) for regime, one in cells.items()})
    result.tables["Text: log-linear, accuracy on clean pairs"] = rows
    kept = named(1.0, 10.0)
    for regime, one in cells.items():
        for name in (named(1.0, 4.0), named(1.0, 12.0), named(15.0, 10.0)):
            result.directions.append(
                Direction(
                    f"Is {name} better than the published {kept}? (text, {regime})",
                    one.contrast((RATE, name), (RATE, kept)),
                )
            )
    values = {name: cells["memorising"].value((RATE, name)) for name in names}
    caption = "Text without regularisation. Whiskers: 90 % over seeds and prompts."
    result.pictures.append(bars("table5", TITLE, values, caption))
    return result


def full() -> Iterator[Step]:
    """GPT-2 on HH-RLHF with 20 % flips: one audit, then trainings that only differ in weights."""
    copy = "flipped/hh-0.2"
    yield flip(HH, RATE, copy)
    yield score(copy, "hh")
    for rho in RHO:
        for k1 in K1:
            out = f"trained/hh-rho{rho:g}-k1-{k1:g}"
            yield train(copy, "hh", "adaptive-dpo", out, f"--rho {rho:g} --k1 {k1:g}")
            yield evaluate(out, "hh")


SCRIPT = Script("table5", __doc__ or "", TITLE, PUBLISHED["table5"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
