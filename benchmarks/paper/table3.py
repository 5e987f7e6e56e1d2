"""Table 3: real image preferences, labels as they were collected.

    python -m benchmarks.paper.table3 --scale tiny|full [--out DIR] [--json FILE]

Tiny: the sample pick-a-pic, whose simulated users label about one pair in five wrongly; LoRA
through the training loop on those labels, judged by the truth on captions never trained on. The
last row trains on right labels: what there is to win.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.paper.cells import NATURAL, helps, image_cells
from benchmarks.paper.classroom import Lesson
from benchmarks.paper.figures import bars
from benchmarks.paper.full import PICK, Step, evaluate, train
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Direction, Result, told
from benchmarks.paper.script import Script, Small, main
from noisescope.scoring.detectors import RHO
from noisescope.training.policy.adaptive import OnlineConfig

TITLE = "Table 3: images, labels as collected"
METHODS = {
    "dpo": lambda room, flipped: Lesson("dpo"),
    "rdpo, told e = 0.2": lambda room, flipped: Lesson("rdpo", parameters={"flip_rate": 0.2}),
    "adaptive-dpo (online ema)": lambda room, flipped: Lesson(
        "adaptive-dpo", online=OnlineConfig("ema", rho=RHO["image"])
    ),
    "dpo on right labels": lambda room, flipped: Lesson("dpo", corrected=True),
}


def tiny(small: Small) -> Result:
    """Natural labels only."""
    found = image_cells(small, (NATURAL,), METHODS)
    values = {name: found.value((NATURAL, name)) for name in METHODS}
    result = Result(trained=found.seconds)
    result.tables["Images: LoRA, accuracy on clean pairs"] = [
        {"method": name, "labels as collected": told(value)} for name, value in values.items()
    ]
    result.directions.append(
        Direction(
            "Do the wrong labels hurt DPO?",
            found.contrast((NATURAL, "dpo on right labels"), (NATURAL, "dpo")),
        )
    )
    for method in list(METHODS)[1:3]:
        result.directions += helps(found, "images, LoRA", (NATURAL,), method)
    caption = "Whiskers: 90 % over seeds and prompts."
    result.pictures.append(bars("table3", TITLE, values, caption))
    return result


def full() -> Iterator[Step]:
    """SD1.5 and SDXL on Pick-a-Pic v2 as it is."""
    for preset in ("sd15", "sdxl"):
        against = None
        for objective, more, extra in (
            ("dpo", (), 0),
            ("rdpo", ("--flip-rate 0.1",), 0),
            ("adaptive-dpo", ("--online ema",), 2),
        ):
            out = f"trained/{preset}-{objective}"
            yield train(f"{PICK} --split train", preset, objective, out, *more, extra=extra)
            yield evaluate(out, preset, against)
            against = against or out


SCRIPT = Script("table3", __doc__ or "", TITLE, PUBLISHED["table3"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
