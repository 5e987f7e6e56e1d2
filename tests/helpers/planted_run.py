"""A small finished run with planted flips, made in a second without any model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from noisescope.pairs import Pair, dataset_fingerprint, to_table
from noisescope.scoring.margins import write_margins
from noisescope.scoring.score import score_run
from noisescope.storage.run import Plan, Run, create_run

#: What a hostile dataset would try on a page or a terminal.
HOSTILE = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
    "</textarea>{{ 7 * 7 }} \x1b[31mred\u202eturned [bold]markup[/bold] $\\frac$"
)


def planted_run(directory: Path, *, pairs: int = 400, steps: int = 1, seed: int = 0) -> Run:
    """A run of `pairs` text pairs judged by 4 replicas; every fifth label is turned round.

    Pair 0 is certain to be the worst one; it carries the hostile text, and its annotator too.
    """
    rng = np.random.default_rng(seed)
    gap = rng.gamma(2.0, 1.0, pairs)
    wrong = np.arange(pairs) % 5 == 0
    gap[0] = 30.0
    noise = rng.normal(0, 0.5, (4, steps, pairs))
    margins = np.where(wrong, -gap, gap) + noise
    rows = [
        Pair(
            prompt=f"Question {index}\nin two lines",
            chosen=HOSTILE if index == 0 else f"answer {index} " + "word " * (index % 60),
            rejected=f"reply {index}",
            annotator=f"<b>ann-{index % 7}</b>",
            source=f"part-{index % 2}.jsonl",
            row=index,
        )
        for index in range(pairs)
    ]
    table = to_table(rows)
    plan = Plan("toy <i>set</i>", dataset_fingerprint(table), "tiny", "0" * 20, EVIDENCE)
    run = create_run(directory, plan)
    pq.write_table(table, run.pairs_path)
    write_margins(
        run.margins_directory / "part-0.parquet",
        table.column("pair_id"),
        margins.astype(np.float32),
        steps=list(range(10, 10 * steps + 1, 10)),
        held_out=np.ones((4, pairs), bool),
    )
    summary = score_run(run.directory)
    facts = {"rows": pairs + 2, "pairs": pairs, "rejected": {"tie": 2}, "annotators": 7}
    facts |= {"duplicates": 0, "contradictions": 0}
    run.write_manifest(
        plan.to_json()
        | {
            "resolved": "toy.jsonl",
            "adapter": "columnar",
            "facts": facts,
            "summary": summary.to_json(),
            "command": "noisescope score toy.jsonl",
            "versions": {"noisescope": "0"},
            "finished": "2026-01-01T00:00:00Z",
        }
    )
    return run


EVIDENCE = {"kind": "head", "replicas": 4, "folds": 2, "seed": 0, "beta": 0.1, "pool": True}
