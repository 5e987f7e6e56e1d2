"""Table 6: Adaptive-IPO (Eq. 19) on real data against the pretrained model and IPO.

    python -m benchmarks.paper.table6 --scale tiny|full [--task ukp] [--out DIR] [--json FILE]

Images, as in the paper: LoRA through the training loop on the labels as collected, weights
computed while training. Text (not in the paper): log-linear policies, weights from an audit.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.detect import BETA, Bool
from benchmarks.downstream.topics import Recipe
from benchmarks.paper.cells import (
    WHISKERS,
    above_pretrained,
    better,
    image_cells,
    online,
    text_cells,
    win_rates,
)
from benchmarks.paper.figures import bars
from benchmarks.paper.full import PICK, Step, evaluate, train
from benchmarks.paper.image_task import ImageTask, Training
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Direction, Resampled, Result, shown
from benchmarks.paper.script import Script, Small, main
from benchmarks.paper.text_task import TextTask
from noisescope.training.objectives import IPO

TITLE = "Table 6: Adaptive-IPO, real data"
ONLINE, AUDIT = "adaptive-ipo (online ema)", "adaptive-ipo (audit)"


def ipo(task: TextTask, wrong: Bool) -> Recipe:
    """Return IPO on text."""
    return Recipe(IPO(BETA))


def image_ipo(task: ImageTask, wrong: Bool) -> Training:
    """Return IPO on images."""
    return Training("ipo")


IMAGE_METHODS = {"ipo": image_ipo, ONLINE: online("adaptive-ipo")}
TEXT_METHODS = {"ipo": ipo, AUDIT: TextTask.adaptive_ipo}


def questions(found: Resampled, where: str, method: str) -> list[Direction]:
    """Compare as the paper does."""
    pretrain, rival = (
        f"SD1.5: yes, {win_rates('table6', against=name)}" for name in ("pretrain", "IPO")
    )
    return [
        above_pretrained(found, where, (0.0, method), pretrain),
        better(found, where, (0.0, method), (0.0, "ipo"), rival),
    ]


def tiny(small: Small) -> Result:
    """Train on the labels as collected."""
    result, drawn = Result(), {}
    if small.task == "sample":
        images = image_cells(small, (0.0,), IMAGE_METHODS)
        result.trained += images.seconds
        values = {name: images.value((0.0, name)) for name in IMAGE_METHODS}
        result.tables["Images: LoRA, accuracy"] = [
            {"method": name, "labels as collected": shown(value)} for name, value in values.items()
        ]
        result.directions += questions(images, "images, LoRA", ONLINE)
        drawn |= {f"images, {name}": value for name, value in values.items()}
    for regime, found in text_cells(small, (0.0,), TEXT_METHODS).items():
        result.trained += found.seconds
        values = {name: found.value((0.0, name)) for name in TEXT_METHODS}
        result.tables[f"Text: log-linear, {regime}, accuracy"] = [
            {"method": name, "labels as collected": shown(value)} for name, value in values.items()
        ]
        result.directions += questions(found, f"text, {regime}", AUDIT)
        drawn |= {f"text, {regime}, {name}": value for name, value in values.items()}
    result.pictures.append(bars("table6", TITLE, drawn, WHISKERS))
    return result


def full() -> Iterator[Step]:
    """Train SD1.5 with IPO and Adaptive-IPO on Pick-a-Pic v2 as it is."""
    dataset = f"{PICK} --split train"
    ipo, adaptive = "trained/sd15-ipo", "trained/sd15-adaptive-ipo"
    yield train(dataset, "sd15", "ipo", ipo)
    yield train(dataset, "sd15", "adaptive-ipo", adaptive, "--online ema", extra=2)
    yield evaluate(adaptive, "sd15")
    yield evaluate(adaptive, "sd15", ipo)


SCRIPT = Script("table6", __doc__ or "", TITLE, PUBLISHED["table6"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
