"""Fig. 6: what the margin Gamma adds to the weight W.

    python -m benchmarks.paper.figure6 --scale tiny|full [--task ukp] [--out DIR] [--json FILE]

Log-linear policies; one audit a seed and rate, its stored margins give every cell. Gamma = k2 u²
+ c2: k2 0 is the weight alone, -1 noisescope's default, -1/beta the released code's; "Gamma alone"
has W = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.detect import BETA, Bool
from benchmarks.downstream.topics import Lesson
from benchmarks.paper.cells import helps, plain, rows, series, text_cells
from benchmarks.paper.figures import lines
from benchmarks.paper.full import PICK, Step, copies, evaluate, place, train
from benchmarks.paper.loglinear import Course
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Result
from benchmarks.paper.script import Script, Small, main
from noisescope.scoring.weights import WeightConfig
from noisescope.training.objectives import AdaptiveDPO

TITLE = "Fig. 6: the margin Gamma"
RATES = (0.1, 0.2, 0.3)


def weighed(k2: float) -> Callable[[Course, Bool], Lesson]:
    """Adaptive-DPO with another k2."""
    return lambda one, flipped: one.adaptive(flipped, WeightConfig(k2=k2))


def margin_alone(one: Course, flipped: Bool) -> Lesson:
    """W = 1, Gamma = -u²."""
    gamma = one.weights(flipped)["gamma"]
    return Lesson(AdaptiveDPO(BETA), weight=np.ones(len(gamma)), gamma=gamma)


METHODS = {
    "dpo": plain,
    "W alone (k2 0)": weighed(0.0),
    "W and Gamma, k2 -1": weighed(-1.0),
    "W and Gamma, k2 -1/beta": weighed(-1 / BETA),
    "Gamma alone, k2 -1": margin_alone,
}


def tiny(small: Small) -> Result:
    """Every rate, both regimes."""
    result = Result()
    text = text_cells(small, RATES, METHODS)
    for regime, found in text.items():
        result.trained += found.seconds
        result.tables[f"Text: log-linear, {regime}"] = rows(found, RATES)
        where = f"text, {regime}"
        result.directions += helps(found, where, RATES, "W and Gamma, k2 -1", than="W alone (k2 0)")
    caption = "Text without regularisation. Whiskers: 90 % over seeds and prompts."
    result.pictures.append(lines("figure6", TITLE, series(text["memorising"], RATES), caption))
    return result


def full() -> Iterator[Step]:
    """SD1.5 with and without the margin, weights made online."""
    yield from copies(PICK, "pick-a-pic", (0.2,))
    copy = place("pick-a-pic", 0.2)
    for name, k2 in (("weight", "0"), ("default", "-1"), ("released", "-0.001")):
        out = f"trained/sd15-k2-{name}"
        yield train(copy, "sd15", "adaptive-dpo", out, f"--online ema --k2 {k2}", extra=2)
        yield evaluate(out, "sd15")


SCRIPT = Script("figure6", __doc__ or "", TITLE, PUBLISHED["figure6"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
