"""Does it work on this dataset? Plant flips, audit again, and count how many were found.

    result = validate(run, Planned(rates=(0.2,), seeds=3))
    result["detectors"]["p_flip"]["auroc"]

For log-linear replicas a flip is a change of sign of a pair's feature difference, so planting
needs no forward pass: features come from the cache, and heads are fitted and pairs scored again.
The search for their regularisation is done in full for the first planting of each rate, and goes
on from there for the others.
With a truth file nothing is planted; the run's own scores are held against it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.flip.ground_truth import read_truth
from noisescope.datasets.flip.plan import FlipPlan, chance_of, decide, margin_gaps, table_chunks
from noisescope.errors import UsageError
from noisescope.replicas.refit import refitter
from noisescope.scoring.detection import Judged, scorecard
from noisescope.scoring.detectors import RHO, Evidence
from noisescope.scoring.margins import RunMargins, read_margins
from noisescope.scoring.pair_facts import read_facts
from noisescope.scoring.score import ScoreConfig, judge, read_averages
from noisescope.scoring.scores import COLUMNS
from noisescope.scoring.summary import Totals, summarise
from noisescope.storage.files import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

    from noisescope.progress import Progress
    from noisescope.storage.run import Run

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


@final
@dataclass(frozen=True)
class Planned:
    """Which flips are planted: each rate with seeds 0 .. seeds - 1. Raises UsageError."""

    rates: tuple[float, ...] = (0.2,)
    kind: str = "uniform"
    seeds: int = 3

    def __post_init__(self) -> None:
        if self.seeds < 1 or not self.rates:
            raise UsageError("validate needs at least one rate and one seed")
        for rate in self.rates:
            FlipPlan(rate, self.kind)


def validate(run: Run, planned: Planned, *, progress: Progress | None = None) -> dict[str, Any]:
    """Plant flips in `run`'s labels, find them, and write validation.json and validation.parquet.

    Raises RunError where the run is not of head replicas or its features are gone.
    """
    table = _pairs(run)
    refit = refitter(run, table)
    gaps = margin_gaps(run) if planned.kind == "hard" else None
    judged: list[Judged] = []
    for rate in planned.rates:
        start = None
        for seed in range(planned.seeds):
            plan = FlipPlan(rate, planned.kind, seed)
            chance = chance_of(plan, lambda: table_chunks(table), gaps)
            flipped = np.concatenate([decide(chunk, plan, chance) for chunk in table_chunks(table)])
            found = refit(flipped, start)
            start = start or found.variance
            facts = {"rate": rate, "seed": seed, "kind": plan.kind}
            judged.append(_judge(run, table, found.margins, flipped, facts))
            if progress is not None:
                progress(len(judged), len(planned.rates) * planned.seeds, None)
    description = (
        f"Planted: {planned.rates[0]:.0%} of the labels were flipped ({planned.kind}), "
        "then looked for without knowing which."
    )
    base = run.manifest()["summary"]["flip_rate"]["estimate"]
    cards = [
        scorecard(judged[i : i + planned.seeds], description, base)
        for i in range(0, len(judged), planned.seeds)
    ]
    by_rate = [{"rate": rate} | card for rate, card in zip(planned.rates, cards, strict=True)]
    result = cards[0] | {"by_rate": by_rate}
    return _write(run, table, result, judged)


def validate_truth(run: Run, truth: Path) -> dict[str, Any]:
    """Hold `run`'s scores against a truth file (pair_id, mislabelled); result as `validate`'s."""
    table = _pairs(run)
    wrong, known = read_truth(truth, table)
    found = read_margins(run.directory, last=False)  # some detectors look at all checkpoints
    judged = _judge(run, table, found, wrong, {"truth": str(truth)}, known)
    description = f"Truth known for {int(known.sum()):,} pairs ({truth.name})."
    return _write(run, table.filter(known), scorecard([judged], description, None), [judged])


def _pairs(run: Run) -> pa.Table:
    import pyarrow.parquet as pq

    run.manifest()
    return pq.read_table(run.pairs_path)


def _judge(
    run: Run,
    table: pa.Table,
    found: RunMargins,
    wrong: Bool,
    facts: Mapping[str, Any],
    known: Bool | None = None,
) -> Judged:
    """Verdicts on `found`, kept for the pairs whose truth is known. Texts are the run's own."""
    plan = run.plan()
    beta, rho = float(plan["evidence"]["beta"]), RHO[plan.get("modality", "text")]
    averages = None if known is None else read_averages(run)
    facts_of_pairs = read_facts(run.pairs_path, plan.get("modality", "text"))
    if known is None:
        facts_of_pairs = facts_of_pairs.flipped(wrong)
    columns, noise = judge(
        found,
        beta=beta,
        rho=rho,
        config=ScoreConfig(),
        averages=averages,
        facts=facts_of_pairs,
        modality=plan.get("modality", "text"),
    )
    totals = Totals.of(columns)
    summary = summarise(run, len(found.replicas), columns["margin"], totals, noise, facts_of_pairs)
    keep = np.ones(len(wrong), bool) if known is None else known
    lengths = None
    if plan.get("modality", "text") == "text":
        lengths = _lengths(table)
        if known is None:
            lengths = np.where(wrong, lengths[::-1], lengths)
        lengths = lengths[:, keep]
    evidence = Evidence(
        found.margins[:, :, keep].astype(np.float64),
        found.counted[:, keep],
        beta=beta,
        rho=rho,
        lengths=lengths,
        annotators=_codes(table)[keep],
        flip_rate=noise.single,
        released=columns["u_released"][keep],
        wrong=columns["p_wrong"][keep],
    )
    kept = {name: values[keep] for name, values in columns.items()}
    groupings = [codes[keep] for codes in facts_of_pairs.groupings]
    return Judged(wrong[keep], kept, summary, evidence, facts, groupings)


def _lengths(table: pa.Table) -> Float:
    """Characters of chosen and rejected, [2, N]."""
    import pyarrow.compute as pc

    return np.stack(
        [pc.utf8_length(table.column(side)).to_numpy() for side in ("chosen", "rejected")]
    ).astype(np.float64)


def _codes(table: pa.Table) -> NDArray[np.int64]:
    """Annotator codes 0 .. (-1 unknown), [N]."""
    codes = table.column("annotator").combine_chunks().dictionary_encode().indices
    return np.asarray(codes.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _write(
    run: Run, table: pa.Table, result: dict[str, Any], judged: Sequence[Judged]
) -> dict[str, Any]:
    """validation.parquet (every planting's scores), then validation.json."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(path: Path) -> None:
        writer: pq.ParquetWriter | None = None
        for index, one in enumerate(judged):
            rows = pa.table(
                {
                    "planting": pa.array(np.full(len(one.wrong), index, np.int32)),
                    "pair_id": table.column("pair_id"),
                    "mislabelled": pa.array(one.wrong),
                }
                | {name: pa.array(one.columns[name], from_pandas=True) for name in COLUMNS}
            )
            writer = writer or pq.ParquetWriter(path, rows.schema, compression="zstd")
            writer.write_table(rows)
        if writer is not None:
            writer.close()

    result = {"run": str(run.directory)} | result
    write_atomic(run.directory / "validation.parquet", write)
    write_atomic(run.directory / "validation.json", json.dumps(result, indent=1) + "\n")
    return result
