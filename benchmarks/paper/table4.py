"""Table 4: Adaptive-DPO on real text preferences against the pretrained model and DPO.

    python -m benchmarks.paper.table4 --scale tiny|full [--task ukp] [--out DIR] [--json FILE]

Tiny: log-linear policies on the sample hh-rlhf as collected (simulated annotators of unequal care)
or, with --task ukp, on one random crowd vote a pair of ukp-convarg; tested with right labels on
unseen prompts (ukp: topics). Not in the paper: the oracle, which trains on the pairs with right
labels, and weights made of p_flip.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.paper.cells import (
    ADAPTIVE,
    RIGHT_TEXT,
    WHISKERS,
    above_pretrained,
    better,
    dpo,
    text_cells,
    win_rates,
)
from benchmarks.paper.figures import bars
from benchmarks.paper.full import HH, Step, evaluate, score, train
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Result, shown
from benchmarks.paper.script import Script, Small, main
from benchmarks.paper.text_task import TextTask

TITLE = "Table 4: text, real data"
P_FLIP = "dpo, weights 1 - 2 p_flip"
METHODS = {
    "dpo": dpo,
    ADAPTIVE: TextTask.adaptive,
    P_FLIP: TextTask.trusted,
    RIGHT_TEXT: TextTask.clean,
}


def tiny(small: Small) -> Result:
    """Train on the labels as collected, in both regimes."""
    result, drawn = Result(), {}
    pretrain, against = (f"yes, {win_rates('table4', against=x)}" for x in ("pretrain", "DPO"))
    for regime, found in text_cells(small, (0.0,), METHODS).items():
        values = {name: found.value((0.0, name)) for name in METHODS}
        drawn |= {f"{name}, {regime}": value for name, value in values.items()}
        result.trained += found.seconds
        result.tables[f"Text: log-linear, {regime}, accuracy"] = [
            {"method": name, "labels as collected": shown(value)} for name, value in values.items()
        ]
        where, cell = f"text, {regime}", (0.0, ADAPTIVE)
        result.directions += [
            above_pretrained(found, where, cell, pretrain),
            better(found, where, cell, (0.0, "dpo"), against),
            better(found, where, (0.0, P_FLIP), (0.0, "dpo")),
            better(found, where, (0.0, RIGHT_TEXT), (0.0, "dpo")),
        ]
    result.pictures.append(bars("table4", TITLE, drawn, WHISKERS))
    return result


def full() -> Iterator[Step]:
    """Audit HH-RLHF with GPT-2, then train DPO, and Adaptive-DPO with the audit's weights."""
    dataset = f"{HH} --split train"
    yield score(dataset, "hh")
    yield train(dataset, "hh", "dpo", "trained/hh-dpo")
    yield train(dataset, "hh", "adaptive-dpo", "trained/hh-adaptive")
    yield evaluate("trained/hh-adaptive", "hh")
    yield evaluate("trained/hh-adaptive", "hh", "trained/hh-dpo")


SCRIPT = Script("table4", __doc__ or "", TITLE, PUBLISHED["table4"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
