"""Fig. 6: SD1.5 with and without the margin Gamma.

    python -m benchmarks.paper.figure6 --scale tiny|full [--task ukp] [--out DIR] [--json FILE]

The paper shows generated pictures and no number; `full` makes the policies that draw them. `tiny`
is an ablation of our own on text: log-linear policies, one audit for each seed and rate. Gamma =
k2 u² + c2: k2 0 is the weight W alone, -1 the default of noisescope, -1/beta the released code's;
"Gamma alone" has W = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.detect import BETA, Bool
from benchmarks.downstream.topics import Recipe
from benchmarks.paper.cells import WHISKERS, better, dpo, rows, series, text_cells
from benchmarks.paper.figures import lines
from benchmarks.paper.full import PICK, Step, evaluate, train
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Result
from benchmarks.paper.script import Script, Small, main
from benchmarks.paper.text_task import TextTask
from noisescope.scoring.weights import WeightConfig
from noisescope.training.objectives import AdaptiveDPO

TITLE = "Fig. 6: the margin Gamma"
RATES = (0.1, 0.2, 0.3)
WEIGHT, BOTH, RELEASED = "W alone (k2 0)", "W and Gamma, k2 -1", "W and Gamma, k2 -1/beta"


def weighted(k2: float) -> Callable[[TextTask, Bool], Recipe]:
    """Return Adaptive-DPO with another k2."""
    return lambda task, wrong: task.adaptive(wrong, WeightConfig(k2=k2))


def margin_alone(task: TextTask, wrong: Bool) -> Recipe:
    """Return Adaptive-DPO with W = 1 and Gamma = -u²."""
    gamma = task.weights(wrong)["gamma"]
    return Recipe(AdaptiveDPO(BETA), weight=np.ones(len(gamma)), gamma=gamma)


METHODS = {
    "dpo": dpo,
    WEIGHT: weighted(0.0),
    BOTH: weighted(-1.0),
    RELEASED: weighted(-1 / BETA),
    "Gamma alone, k2 -1": margin_alone,
}


def tiny(small: Small) -> Result:
    """Train at every rate, in both regimes."""
    result = Result()
    text = text_cells(small, RATES, METHODS)
    for regime, found in text.items():
        result.trained += found.seconds
        result.tables[f"Text: log-linear, {regime}, accuracy"] = rows(found, RATES)
        result.directions += [
            better(found, f"text, {regime}", (rate, BOTH), (rate, WEIGHT)) for rate in RATES
        ]
    caption = f"Text without regularisation. {WHISKERS}"
    result.pictures.append(lines("figure6", TITLE, series(text["memorising"], RATES), caption))
    return result


def full() -> Iterator[Step]:
    """Train SD1.5 without and with the margin; `evaluate` writes pictures of both side by side."""
    dataset, without, margin = f"{PICK} --split train", "trained/sd15-k2-0", "trained/sd15-k2"
    yield train(dataset, "sd15", "adaptive-dpo", without, "--online ema --k2 0", extra=2)
    yield train(dataset, "sd15", "adaptive-dpo", margin, "--online ema", extra=2)
    yield evaluate(margin, "sd15", without)


SCRIPT = Script("figure6", __doc__ or "", TITLE, PUBLISHED["figure6"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
