"""Table 6: the same with IPO: Adaptive-IPO (Eq. 19) against IPO under flipped labels.

    python -m benchmarks.paper.table6 --scale tiny|full [--task ukp] [--out DIR] [--json FILE]

Log-linear policies, weights from an audit of the noisy training pairs; dpo stands beside them.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.detect import BETA
from benchmarks.downstream.topics import Lesson
from benchmarks.paper.cells import RATES, helps, plain, rows, series, text_cells
from benchmarks.paper.figures import lines
from benchmarks.paper.full import PICK, Step, copies, evaluate, place, train
from benchmarks.paper.loglinear import Course
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Direction, Result
from benchmarks.paper.script import Script, Small, main
from noisescope.training.objectives import IPO

TITLE = "Table 6: IPO and Adaptive-IPO under flipped labels"
METHODS = {
    "ipo": lambda course, flipped: Lesson(IPO(BETA)),
    "adaptive-ipo (audit)": Course.adaptive_ipo,
    "dpo": plain,
}


def tiny(small: Small) -> Result:
    """Every rate, both regimes."""
    result = Result()
    text = text_cells(small, RATES, METHODS)
    for regime, found in text.items():
        where = f"text, {regime}"
        result.trained += found.seconds
        result.tables[f"Text: log-linear, {regime}"] = rows(found, RATES)
        result.directions += [
            Direction(
                f"Do {rate:.0%} flips hurt IPO? ({where})",
                found.contrast((0.0, "ipo"), (rate, "ipo")),
            )
            for rate in RATES[1:]
        ]
        result.directions += helps(found, where, RATES, "adaptive-ipo (audit)", "ipo")
    caption = "Text without regularisation. Whiskers: 90 % over seeds and prompts."
    result.pictures.append(lines("table6", TITLE, series(text["memorising"], RATES), caption))
    return result


def full() -> Iterator[Step]:
    """SD1.5, IPO and Adaptive-IPO at every rate."""
    yield from copies(PICK, "pick-a-pic")
    for rate in RATES[1:]:
        copy = place("pick-a-pic", rate)
        ipo, adaptive = f"trained/sd15-ipo-{rate:g}", f"trained/sd15-adaptive-ipo-{rate:g}"
        yield train(copy, "sd15", "ipo", ipo)
        yield train(copy, "sd15", "adaptive-ipo", adaptive, "--online ema", extra=2)
        yield evaluate(adaptive, "sd15", ipo)


SCRIPT = Script("table6", __doc__ or "", TITLE, PUBLISHED["table6"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
