"""Table 3: Adaptive-DPO on real image preferences against the pretrained model and DPO.

    python -m benchmarks.paper.table3 --scale tiny|full [--out DIR] [--json FILE]

Tiny: the sample pick-a-pic as collected, whose simulated users label about one pair in five
wrongly; LoRA through the training loop, tested with right labels on unseen captions. The oracle
trains on right labels (not in the paper): the most there is to win.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.paper.cells import (
    ONLINE,
    RIGHT_IMAGES,
    WHISKERS,
    above_pretrained,
    better,
    image_cells,
    image_dpo,
    image_oracle,
    online,
    win_rates,
)
from benchmarks.paper.figures import bars
from benchmarks.paper.full import PICK, Step, evaluate, train
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Result, shown
from benchmarks.paper.script import Script, Small, main

TITLE = "Table 3: images, real data"
METHODS = {"dpo": image_dpo, ONLINE: online(), RIGHT_IMAGES: image_oracle}


def tiny(small: Small) -> Result:
    """Train on the labels as collected."""
    found = image_cells(small, (0.0,), METHODS)
    values = {name: found.value((0.0, name)) for name in METHODS}
    result = Result(trained=found.seconds)
    result.tables["Images: LoRA, accuracy"] = [
        {"method": name, "labels as collected": shown(value)} for name, value in values.items()
    ]
    where, cell = "images, LoRA", (0.0, ONLINE)
    pretrain, dpo = (f"yes, {win_rates('table3', against=name)}" for name in ("pretrain", "DPO"))
    result.directions += [
        above_pretrained(found, where, cell, pretrain),
        better(found, where, cell, (0.0, "dpo"), dpo),
        better(found, where, (0.0, RIGHT_IMAGES), (0.0, "dpo")),
    ]
    result.pictures.append(bars("table3", TITLE, values, WHISKERS))
    return result


def full() -> Iterator[Step]:
    """Train SD1.5 and SDXL on Pick-a-Pic v2 as it is."""
    dataset = f"{PICK} --split train"
    for preset in ("sd15", "sdxl"):
        dpo, adaptive = f"trained/{preset}-dpo", f"trained/{preset}-adaptive"
        yield train(dataset, preset, "dpo", dpo)
        yield train(dataset, preset, "adaptive-dpo", adaptive, "--online ema", extra=2)
        yield evaluate(adaptive, preset)
        yield evaluate(adaptive, preset, dpo)


SCRIPT = Script("table3", __doc__ or "", TITLE, PUBLISHED["table3"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
