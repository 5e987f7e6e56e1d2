"""Table 1: the cost of flipped labels for DPO, at 0, 10, 20 and 30 %.

    python -m benchmarks.paper.table1 --scale tiny|full [--task ukp] [--out DIR] [--json FILE]

Images: LoRA on the tiny pipeline through the training loop. Text: log-linear policies, with a
tuned penalty and without any. Measured: share of pairs of unseen prompts, with right labels, whose
better side the implicit reward prefers.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.paper.cells import (
    RATES,
    WHISKERS,
    cost,
    dpo,
    image_cells,
    image_dpo,
    rows,
    series,
    text_cells,
)
from benchmarks.paper.figures import lines
from benchmarks.paper.full import PICK, Step, copies, evaluate, source, train
from benchmarks.paper.published import METRICS, PUBLISHED
from benchmarks.paper.results import Result
from benchmarks.paper.script import Script, Small, main

TITLE = "Table 1: DPO at different noise levels"


def worse(rate: float) -> str:
    """Return how many of the paper's metrics are lower at a rate than without flips."""
    counts = []
    for model in ("SD1.5", "SDXL"):
        clean, noisy = (
            PUBLISHED["table1"].select(model=model, flips=f"{share:.0%}".replace("%", " %"))
            for share in (0.0, rate)
        )
        lower = sum(after < before for before, after in zip(clean, noisy, strict=True))
        counts.append(f"{model}: lower on {lower} of {len(METRICS)} metrics")
    return "; ".join(counts)


def tiny(small: Small) -> Result:
    """Train both modalities at every rate."""
    result, drawn = Result(), {}
    if small.task == "sample":
        images = image_cells(small, RATES, {"dpo": image_dpo})
        result.trained += images.seconds
        result.tables["Images: LoRA, accuracy"] = rows(images, RATES)
        drawn |= series(images, RATES, "images, LoRA: ")
        for rate in RATES[1:]:
            result.directions.append(cost(images, "images, LoRA", rate, worse(rate)))
    for regime, found in text_cells(small, RATES, {"dpo": dpo}).items():
        result.trained += found.seconds
        result.tables[f"Text: log-linear, {regime}, accuracy"] = rows(found, RATES)
        for rate in RATES[1:]:
            result.directions.append(cost(found, f"text, {regime}", rate, worse(rate)))
        drawn |= series(found, RATES, f"text, {regime}: ")
    caption = f"Falling lines: noise hurts. {WHISKERS}"
    result.pictures.append(lines("table1", TITLE, drawn, caption))
    return result


def full() -> Iterator[Step]:
    """Train SD1.5 and SDXL at every rate."""
    yield from copies(PICK, "pick-a-pic")
    for preset in ("sd15", "sdxl"):
        for rate in RATES:
            out = f"trained/{preset}-dpo-{rate:g}"
            yield train(source(PICK, "pick-a-pic", rate), preset, "dpo", out)
            yield evaluate(out, preset)


SCRIPT = Script("table1", __doc__ or "", TITLE, PUBLISHED["table1"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
