"""Table 2: Adaptive-DPO on flipped labels against DPO on the same labels and DPO without flips.

    python -m benchmarks.paper.table2 --scale tiny|full [--task ukp] [--out DIR] [--json FILE]

Flips are added to the labels as collected, as in the paper. Images: LoRA through the training
loop, weights computed while training as the released code does (`--online ema`), because an audit
of images gives every pair the weight 1 (docs/train.md). Text: log-linear policies, weights from an
audit of the noisy training pairs. Not in the paper: the same weights shuffled (the control), DPO
on the pairs with right labels (the oracle), and weights made of p_flip (noisescope's own).
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.paper.cells import (
    ADAPTIVE,
    ONLINE,
    RATES,
    RIGHT_TEXT,
    WHISKERS,
    better,
    dpo,
    image_cells,
    image_dpo,
    online,
    rows,
    series,
    text_cells,
    win_rates,
)
from benchmarks.paper.figures import lines
from benchmarks.paper.full import PICK, Step, copies, copy_path, evaluate, source, train
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Direction, Resampled, Result
from benchmarks.paper.script import Script, Small, main
from benchmarks.paper.text_task import TextTask

TITLE = "Table 2: Adaptive-DPO on flipped labels"
FLIPS = RATES[1:]
IMAGE_METHODS = {"dpo": image_dpo, ONLINE: online()}
CONTROL, P_FLIP = "control: adaptive-dpo, weights shuffled", "dpo, weights 1 - 2 p_flip"
TEXT_METHODS = {
    "dpo": dpo,
    ADAPTIVE: TextTask.adaptive,
    CONTROL: TextTask.shuffled,
    P_FLIP: TextTask.trusted,
    RIGHT_TEXT: TextTask.clean,
}


def published(found: Resampled, where: str, method: str) -> list[Direction]:
    """Compare as the paper does: against DPO on the same labels, and against DPO without flips."""
    questions = []
    for baseline in ("DPO*", "DPO"):
        for rate in FLIPS:
            cells = win_rates("table2", against=baseline, flips=f"{100 * rate:.0f} %")
            than = (rate if baseline == "DPO*" else 0.0, "dpo")
            questions.append(better(found, where, (rate, method), than, f"SD1.5: yes, {cells}"))
    return questions


def tiny(small: Small) -> Result:
    """Train both modalities at every rate."""
    result = Result()
    if small.task == "sample":
        images = image_cells(small, RATES, IMAGE_METHODS)
        result.trained += images.seconds
        result.tables["Images: LoRA, accuracy"] = rows(images, RATES)
        result.directions += published(images, "images, LoRA", ONLINE)
    text = text_cells(small, RATES, TEXT_METHODS)
    for regime, found in text.items():
        where = f"text, {regime}"
        result.trained += found.seconds
        result.tables[f"Text: log-linear, {regime}, accuracy"] = rows(found, RATES)
        result.directions += published(found, where, ADAPTIVE)
        for method, than in ((ADAPTIVE, CONTROL), (P_FLIP, "dpo"), (P_FLIP, ADAPTIVE)):
            result.directions += [
                better(found, where, (rate, method), (rate, than)) for rate in RATES
            ]
    caption = f"Text without regularisation. Above dpo: the method helps. {WHISKERS}"
    result.pictures.append(lines("table2", TITLE, series(text["memorising"], RATES), caption))
    return result


def full() -> Iterator[Step]:
    """Train SD1.5 at 10, 20 and 30 %, Adaptive-DPO with the released code's online weights."""
    yield from copies(PICK, "pick-a-pic")
    clean = "trained/sd15-dpo-0"
    yield train(source(PICK, "pick-a-pic", 0.0), "sd15", "dpo", clean)
    for rate in FLIPS:
        copy = copy_path("pick-a-pic", rate)
        same, adaptive = f"trained/sd15-dpo-{rate:g}", f"trained/sd15-adaptive-{rate:g}"
        yield train(copy, "sd15", "dpo", same)
        yield train(copy, "sd15", "adaptive-dpo", adaptive, "--online ema", extra=2)
        yield evaluate(adaptive, "sd15", same)
        yield evaluate(adaptive, "sd15", clean)


SCRIPT = Script("table2", __doc__ or "", TITLE, PUBLISHED["table2"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
