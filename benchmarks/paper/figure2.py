"""Fig. 2: how accurate annotators are against the labels, and how far they contradict each other.

    python -m benchmarks.paper.figure2 --scale tiny|full [--task ukp] [--out DIR] [--json FILE]

The paper's annotators are replicas: here four heads, each of which votes on every training pair it
did not see. `scoring.agreement` counts them as it counts people. Their votes are held against
the labels they were trained on (flipped ones included) and against the right ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from benchmarks.detect import Bool, Float
from benchmarks.paper.cells import RATES, say
from benchmarks.paper.figures import lines
from benchmarks.paper.full import PICK, Step, copies, score, source
from benchmarks.paper.loglinear import Course, course
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Direction, Result, told
from benchmarks.paper.script import Script, Small, main
from noisescope.report.agreement import agreement_figure
from noisescope.scoring.agreement import Agreement, agreement
from noisescope.scoring.metrics import Interval, share

TITLE = "Fig. 2: accuracy of and inconsistency among replicas"
MEASURES = ("accuracy against the labels", "accuracy against the truth", "not unanimous")


def votes(one: Course, flipped: Bool, margins: Float) -> pa.Table:
    """One row a replica and pair: the side it prefers, as `scoring.agreement` reads votes."""
    ids = [one.ids[i] for i in one.split.train]
    turned = flipped[one.split.train]
    rows: dict[str, list[str]] = {"content_id": [], "annotator": [], "chosen": [], "rejected": []}
    for replica, margin in enumerate(margins):
        first = (margin > 0) ^ turned  # prefers the truly better side
        rows["content_id"] += ids
        rows["annotator"] += [f"replica {replica}"] * len(ids)
        rows["chosen"] += ["a" if yes else "b" for yes in first]
        rows["rejected"] += ["b" if yes else "a" for yes in first]
    return pa.table(rows)


def measured(one: Course, flipped: Bool, margins: Float) -> tuple[dict[str, float], Agreement]:
    """The three numbers of one audit, and the replicas' agreement."""
    turned = flipped[one.split.train]
    found = agreement(votes(one, flipped, margins))
    right = margins > 0
    values = (right.mean(), (right ^ turned).mean(), found.not_unanimous.estimate)
    return dict(zip(MEASURES, map(float, values), strict=True)), found


def tiny(small: Small) -> Result:
    """Every rate and seed."""
    import time

    result, began = Result(), time.perf_counter()
    courses = [course(small, seed) for seed in small.seeds]
    found: dict[float, list[dict[str, float]]] = {rate: [] for rate in RATES}
    last: Agreement | None = None
    for one in courses:
        for rate in RATES:
            flipped = one.plant(rate)
            numbers, last = measured(one, flipped, one.audit(flipped))
            found[rate].append(numbers)
        say(f"audits, seed {one.seed}", began)
    cells = {
        measure: [(rate, spread([one[measure] for one in found[rate]])) for rate in RATES]
        for measure in MEASURES
    }
    result.tables["Replicas as annotators: mean of the seeds [least, most]"] = [
        {"measure": measure} | {f"{rate:.0%}": told(value) for rate, value in points}
        for measure, points in cells.items()
    ]
    first, worst = courses[0], courses[0].plant(RATES[-1])
    result.directions += gaps(first.audit(worst), worst[first.split.train])
    caption = "Whiskers: least and most of the seeds."
    result.pictures.append(lines("figure2", TITLE, cells, caption, "share"))
    if last is not None:
        result.pictures.append(replace(agreement_figure(last), name="figure2-agreement"))
    return result


def spread(values: list[float]) -> Interval:
    """Mean, least and most."""
    return Interval(float(np.mean(values)), min(values), max(values))


def gaps(margins: Float, turned: Bool) -> list[Direction]:
    """Whether replicas disagree more on flipped labels: a difference of shares (Newcombe 1998)."""
    split = (np.sign(margins).max(0) != np.sign(margins).min(0)).astype(float)
    bad, good = (share(float(split[part].sum()), int(part.sum())) for part in (turned, ~turned))
    gap = bad.estimate - good.estimate
    low = gap - float(np.hypot(bad.estimate - bad.low, good.high - good.estimate))
    high = gap + float(np.hypot(bad.high - bad.estimate, good.estimate - good.low))
    question = "Do replicas disagree more on flipped labels? (share not unanimous, 30 % flips)"
    return [Direction(question, Interval(gap, low, high))]


def full() -> Iterator[Step]:
    """Audits of Pick-a-Pic v2 at every rate; a crowd of people: HPDv2's test votes."""
    yield Step("noisescope agreement ymhao/HPDv2 --split test --figure agreement.png")
    yield from copies(PICK, "pick-a-pic")
    for rate in RATES:
        yield score(source(PICK, "pick-a-pic", rate), "sd15")


SCRIPT = Script("figure2", __doc__ or "", TITLE, PUBLISHED["figure2"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
