"""Table 4: real text preferences, labels as they were collected.

    python -m benchmarks.paper.table4 --scale tiny|full [--task ukp] [--out DIR] [--json FILE]

Tiny: log-linear policies on the sample hh-rlhf (simulated annotators of unequal care) or, with
--task ukp, on one random crowd vote a pair of ukp-convarg; judged by the truth on prompts (ukp:
topics) never trained on. The last row trains on the pairs whose label is right.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.detect import BETA
from benchmarks.downstream.topics import Lesson
from benchmarks.paper.cells import NATURAL, helps, plain, text_cells
from benchmarks.paper.figures import bars
from benchmarks.paper.full import HH, Step, evaluate, score, train
from benchmarks.paper.loglinear import Course
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Direction, Result, told
from benchmarks.paper.script import Script, Small, main
from noisescope.training.objectives import RDPO

TITLE = "Table 4: text, labels as collected"
METHODS = {
    "dpo": plain,
    "rdpo, told e = 0.1": lambda course, flipped: Lesson(RDPO(BETA, flip_rate=0.1)),
    "adaptive-dpo (audit)": Course.adaptive,
    "dpo, weights 1 - 2 p_flip": Course.trusted,
    "oracle: right labels only": Course.clean,
}


def tiny(small: Small) -> Result:
    """Natural labels only, both regimes."""
    result, drawn = Result(), {}
    for regime, found in text_cells(small, (NATURAL,), METHODS).items():
        values = {name: found.value((NATURAL, name)) for name in METHODS}
        drawn |= {f"{name}, {regime}": value for name, value in values.items()}
        result.trained += found.seconds
        result.tables[f"Text: log-linear, {regime}"] = [
            {"method": name, "labels as collected": told(value)} for name, value in values.items()
        ]
        where = f"text, {regime}"
        result.directions.append(
            Direction(
                f"Do the wrong labels hurt DPO? ({where})",
                found.contrast((NATURAL, "oracle: right labels only"), (NATURAL, "dpo")),
            )
        )
        for method in list(METHODS)[1:4]:
            result.directions += helps(found, where, (NATURAL,), method)
    caption = "Whiskers: 90 % over seeds and prompts."
    result.pictures.append(bars("table4", TITLE, drawn, caption))
    return result


def full() -> Iterator[Step]:
    """GPT-2 on HH-RLHF: audit, DPO, Adaptive-DPO from the audit."""
    dataset = f"{HH} --split train"
    yield score(dataset, "hh")
    yield train(dataset, "hh", "dpo", "trained/hh-dpo")
    yield train(dataset, "hh", "adaptive-dpo", "trained/hh-adaptive")
    yield evaluate("trained/hh-adaptive", "hh", "trained/hh-dpo")


SCRIPT = Script("table4", __doc__ or "", TITLE, PUBLISHED["table4"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
