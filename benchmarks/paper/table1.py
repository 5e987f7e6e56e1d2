"""Table 1: what flipped labels cost DPO, at 0, 10, 20 and 30 %.

    python -m benchmarks.paper.table1 --scale tiny|full [--task ukp] [--out DIR] [--json FILE]

Images: LoRA on the tiny pipeline through the training loop. Text: log-linear policies, once with
a tuned penalty and once without any. Judged: share of clean pairs of prompts never trained on
whose better side the implicit reward prefers.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.paper.cells import RATES, costs, image_cells, plain, rows, series, text_cells
from benchmarks.paper.classroom import Lesson
from benchmarks.paper.figures import lines
from benchmarks.paper.full import PICK, Step, copies, evaluate, source, train
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Result
from benchmarks.paper.script import Script, Small, main

TITLE = "Table 1: DPO under flipped labels"


def tiny(small: Small) -> Result:
    """Both modalities at every rate."""
    result, drawn = Result(), {}
    if small.task == "sample":
        images = image_cells(small, RATES, {"dpo": lambda room, flipped: Lesson("dpo")})
        result.trained += images.seconds
        result.tables["Images: LoRA, accuracy on clean pairs"] = rows(images, RATES)
        drawn |= series(images, RATES, "images, LoRA: ")
        result.directions += costs(images, "images, LoRA", RATES)
    for regime, found in text_cells(small, RATES, {"dpo": plain}).items():
        result.trained += found.seconds
        result.tables[f"Text: log-linear, {regime}"] = rows(found, RATES)
        result.directions += costs(found, f"text, {regime}", RATES)
        drawn |= series(found, RATES, f"text, {regime}: ")
    caption = "Lines that fall mean that noise hurts. Whiskers: 90 % over seeds and prompts."
    result.pictures.append(lines("table1", TITLE, drawn, caption))
    return result


def full() -> Iterator[Step]:
    """SD1.5 and SDXL at every rate."""
    yield from copies(PICK, "pick-a-pic")
    for preset in ("sd15", "sdxl"):
        for rate in RATES:
            out = f"trained/{preset}-dpo-{rate:g}"
            yield train(source(PICK, "pick-a-pic", rate), preset, "dpo", out)
            yield evaluate(out, preset)


SCRIPT = Script("table1", __doc__ or "", TITLE, PUBLISHED["table1"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
