"""Fig. 2: how accurate three annotators are, and how much they differ.

    python -m benchmarks.paper.figure2 --scale tiny|full [--task ukp] [--data DIR] [--out DIR]

In the paper three people judged 1,000 pairs; they could also answer that neither is better. The
same counts here for people: the three annotators of PandaLM's test set (999 pairs of answers), in
the folder pandalm of --data. No outside label comes with those pairs, so each annotator is held
against the other two where these agree on a winner.

Not in the paper: replicas as annotators. Four heads vote on the training pairs they did not see,
and are held against the labels, flipped ones included, and against the truth.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.detect import Bool, Float
from benchmarks.paper.cells import RATES, progress
from benchmarks.paper.figures import lines
from benchmarks.paper.full import Step
from benchmarks.paper.published import PUBLISHED
from benchmarks.paper.results import Direction, Result, shown
from benchmarks.paper.script import Script, Small, main
from benchmarks.paper.text_task import TextTask, text_task
from noisescope.report.agreement import agreement_figure
from noisescope.scoring.agreement import Agreement, agreement
from noisescope.scoring.metrics import Interval, share

TITLE = "Fig. 2: accuracy of annotators, and deviation among them"
MEASURES = ("accuracy against the labels", "accuracy against the truth", "not unanimous")
#: An answer as a number: the first side is better, neither is, the second one is.
FIRST, NEITHER, SECOND = 1.0, 0.5, 0.0
#: PandaLM's codes: 0 a tie, 1 the first answer, 2 the second.
ANSWERS = {"0": NEITHER, "1": FIRST, "2": SECOND}


def people(path: Path) -> Float:
    """Read the answers of PandaLM's three annotators, codes as text or numbers, [3, N]."""
    items = json.loads(path.read_text(encoding="utf-8"))
    names = ("annotator1", "annotator2", "annotator3")
    return np.array([[ANSWERS[str(item[name])] for item in items] for name in names])


def crowd(answers: Float) -> list[dict[str, Any]]:
    """Return a row for each annotator.

    An annotator is right if they choose the side that both others choose; "neither" is wrong.
    """
    rows = []
    for index, mine in enumerate(answers):
        one, other = np.delete(answers, index, axis=0)
        judged = (one == other) & (one != NEITHER)
        right = share(float((mine == one)[judged].sum()), int(judged.sum()))
        rows.append(
            {
                "annotator": index + 1,
                "judged pairs": int(judged.sum()),
                "accuracy": shown(right),
                "answers neither": float((mine == NEITHER).mean()),
            }
        )
    return rows


def deviation(answers: Float) -> dict[str, Any]:
    """Return the mean over pairs of the standard deviation among answers, with two yardsticks."""
    patterns = np.array([[FIRST, FIRST, FIRST], [FIRST, FIRST, SECOND]]).std(axis=1)
    return {
        "pairs": answers.shape[1],
        "mean standard deviation": float(answers.std(axis=0).mean()),
        "if always two against one": float(patterns[1]),
        "if all tossed coins": float(0.25 * patterns[0] + 0.75 * patterns[1]),
        "all three agree": float((answers == answers[0]).all(axis=0).mean()),
    }


def votes(task: TextTask, wrong: Bool, margins: Float) -> pa.Table:
    """Return one row for each replica and pair, as `noisescope agreement` reads votes."""
    ids = [task.ids[i] for i in task.split.train]
    flipped = wrong[task.split.train]
    rows: dict[str, list[str]] = {"content_id": [], "annotator": [], "chosen": [], "rejected": []}
    for replica, margin in enumerate(margins):
        first = (margin > 0) ^ flipped  # prefers the truly better side
        rows["content_id"] += ids
        rows["annotator"] += [f"replica {replica}"] * len(ids)
        rows["chosen"] += ["a" if yes else "b" for yes in first]
        rows["rejected"] += ["b" if yes else "a" for yes in first]
    return pa.table(rows)


def measured(task: TextTask, wrong: Bool, margins: Float) -> tuple[dict[str, float], Agreement]:
    """Return the three numbers of one audit, and the agreement of its replicas."""
    flipped = wrong[task.split.train]
    found = agreement(votes(task, wrong, margins))
    right = margins > 0
    values = (right.mean(), (right ^ flipped).mean(), found.not_unanimous.estimate)
    return dict(zip(MEASURES, map(float, values), strict=True)), found


def tiny(small: Small) -> Result:
    """Count people once, and replicas at every rate and seed."""
    result, began = Result(), time.perf_counter()
    path = small.data / "pandalm" / "testset-v1.json"
    if path.is_file():
        answers = people(path)
        result.tables["People: three annotators of PandaLM against the other two"] = crowd(answers)
        result.tables["People: deviation among the three"] = [deviation(answers)]
    else:
        print(f"no people: {path} is missing; name its folder with --data", file=sys.stderr)
        result.tables["People"] = [{"not measured": "no folder pandalm in --data"}]
    tasks = [text_task(small, seed) for seed in small.seeds]
    found: dict[float, list[dict[str, float]]] = {rate: [] for rate in RATES}
    last: Agreement | None = None
    for task in tasks:
        for rate in RATES:
            wrong = task.plant(rate)
            numbers, last = measured(task, wrong, task.audit(wrong))
            found[rate].append(numbers)
        progress(f"audits, seed {task.seed}", began)
    cells = {
        measure: [(rate, spread([one[measure] for one in found[rate]])) for rate in RATES]
        for measure in MEASURES
    }
    result.tables["Replicas as annotators: mean of the seeds [least, most]"] = [
        {"measure": measure} | {f"{rate:.0%}": shown(value) for rate, value in points}
        for measure, points in cells.items()
    ]
    first, worst = tasks[0], tasks[0].plant(RATES[-1])
    result.directions += gaps(first.audit(worst), worst[first.split.train])
    caption = "Replicas as annotators. Whiskers: least and most of the seeds."
    result.pictures.append(lines("figure2", TITLE, cells, caption, "share"))
    if last is not None:
        result.pictures.append(replace(agreement_figure(last), name="figure2-agreement"))
    return result


def spread(values: list[float]) -> Interval:
    """Return mean, least and most."""
    return Interval(float(np.mean(values)), min(values), max(values))


def gaps(margins: Float, wrong: Bool) -> list[Direction]:
    """Test whether replicas disagree more on wrong labels: difference of shares (Newcombe)."""
    split = (np.sign(margins).max(0) != np.sign(margins).min(0)).astype(float)
    bad, good = (share(float(split[part].sum()), int(part.sum())) for part in (wrong, ~wrong))
    gap = bad.estimate - good.estimate
    low = gap - float(np.hypot(bad.estimate - bad.low, good.high - good.estimate))
    high = gap + float(np.hypot(bad.high - bad.estimate, good.estimate - good.low))
    question = "Do replicas disagree more on wrong labels? (share not unanimous, 30 % flips)"
    return [Direction(question, Interval(gap, low, high))]


def full() -> Iterator[Step]:
    """Count the votes of three annotators of your own, and of a public crowd on images (HPDv2)."""
    yield Step("noisescope agreement three-annotators.parquet --figure agreement.png")
    yield Step("noisescope agreement ymhao/HPDv2 --split test --figure agreement-hpdv2.png")


SCRIPT = Script("figure2", __doc__ or "", TITLE, PUBLISHED["figure2"], tiny, full)

if __name__ == "__main__":
    main(SCRIPT)
