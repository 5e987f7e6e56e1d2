"""Does it work on this dataset? Plant errors, audit again, and compare the claims with the truth.

    result = validate(run, Planned(rates=(0.2,), kinds=("uniform", "prompt"), seeds=3))
    result["detectors"]["p_flip"]["auroc"], result["by_rate"][1]["claims"]["flip_rate"]["covers"]

For log-linear replicas a flip is a change of sign of a pair's feature difference, so planting
needs no forward pass: features come from the cache, and heads are fitted and pairs scored again.
The search for their regularisation is done in full for the first planting of each kind and rate,
and goes on from there for the others. With `gold`, the labels are corrected by a truth file before
errors are planted. `validate_truth` plants nothing; it holds the run's own scores against a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.datasets.flip.ground_truth import own_ids, read_truth
from noisescope.datasets.flip.kinds import KINDS, WORDS
from noisescope.datasets.flip.plan import FlipPlan, chance_of, decide, margin_gaps, table_chunks
from noisescope.errors import UsageError
from noisescope.replicas.refit import refitter
from noisescope.scoring.claims import Own
from noisescope.scoring.detection import Judged, scorecard
from noisescope.scoring.detectors import RHO, Evidence
from noisescope.scoring.margins import RunMargins, read_margins
from noisescope.scoring.opinions import read_opinions
from noisescope.scoring.pair_facts import facts_of_table
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
#: --kind all: every kind that the dataset can have.
ALL = "all"


@final
@dataclass(frozen=True)
class Planned:
    """Which errors are planted: each kind at each rate with seeds 0 .. seeds - 1.

    Kinds ("all",) are those that the dataset can have. Raises UsageError.
    """

    rates: tuple[float, ...] = (0.2,)
    kinds: tuple[str, ...] = ("uniform",)
    seeds: int = 3

    def __post_init__(self) -> None:
        if self.seeds < 1 or not self.rates or not self.kinds:
            raise UsageError("validate needs at least one rate, one kind and one seed")
        if ALL in self.kinds and len(self.kinds) > 1:
            raise UsageError("--kind all includes the other kinds")
        for kind in self.named:
            for rate in self.rates:
                FlipPlan(rate, kind)

    @property
    def named(self) -> tuple[str, ...]:
        """The kinds by name, each once."""
        return tuple(KINDS) if ALL in self.kinds else tuple(dict.fromkeys(self.kinds))


@final
@dataclass(frozen=True)
class Labels:
    """A run's pairs [N] with the labels that errors are planted in.

    `reversed` marks labels that differ from the run's own; `own` are errors already there.
    """

    run: Run
    table: pa.Table
    reversed: Bool
    own: Own

    @classmethod
    def of(cls, run: Run, gold: Path | None) -> Labels:
        """The run's own labels, or those corrected by the truth file `gold`.

        Raises UsageError if that file does not know all pairs.
        """
        table = _pairs(run)
        if gold is None:
            return cls(run, table, np.zeros(table.num_rows, bool), _own(run))
        wrong, known = read_truth(gold, table, own_ids(run))
        if not known.all():
            raise UsageError(
                f"{gold} knows {int(known.sum()):,} of {len(known):,} pairs, and --gold needs all",
                hint=f"Compare with what it knows instead: --truth {gold}",
            )
        return cls(run, _corrected(table, wrong), wrong, Own())

    def flips(self, plan: FlipPlan) -> Bool:
        """Which labels the plan flips, [N]. Raises UsageError if they cannot have its errors."""
        measure = margin_gaps(self.run) if plan.kind in ("hard", "easy", "response") else None
        plan.check(self.run.plan().get("modality", "text"))
        chance = chance_of(plan, lambda: table_chunks(self.table, measure))
        chunks = table_chunks(self.table, measure)
        return np.concatenate([decide(chunk, plan, chance) for chunk in chunks])


@final
@dataclass(frozen=True)
class Planting:
    """One kind at one rate: the flips [N] of each seed."""

    kind: str
    rate: float
    flips: Sequence[Bool]


def validate(
    run: Run, planned: Planned, *, gold: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Plant errors in `run`'s labels, find them, and write validation.json and validation.parquet.

    Raises RunError if the run is not of head replicas or its features are gone, UsageError if the
    dataset cannot have errors of a named kind.
    """
    labels = Labels.of(run, gold)
    refit = refitter(run, _pairs(run))
    plantings, impossible = plan_all(labels, planned)
    judged: list[Judged] = []
    cards = []
    for planting in plantings:
        start, group = None, []
        for seed, flipped in enumerate(planting.flips):
            swapped = labels.reversed ^ flipped
            found = refit(swapped, start)
            start = start or found.variance
            facts = {"rate": planting.rate, "seed": seed, "kind": planting.kind}
            group.append(
                _judge(labels, found.margins, flipped, swapped, facts, training=found.training)
            )
            if progress is not None:
                progress(len(judged) + len(group), len(plantings) * planned.seeds, None)
        judged += group
        card = scorecard(group, _described(planting, gold))
        cards.append({"kind": planting.kind, "rate": planting.rate} | card)
    result = cards[0] | {
        "by_rate": cards,
        "impossible": impossible,
        "gold": None if gold is None else str(gold),
    }
    return _write(run, labels.table, result, judged)


def plan_all(labels: Labels, planned: Planned) -> tuple[list[Planting], list[dict[str, str]]]:
    """All plantings, and the kinds among "all" that these pairs cannot have, with the reason."""
    plantings: list[Planting] = []
    impossible: list[dict[str, str]] = []
    for kind in planned.named:
        try:
            plantings += [
                Planting(
                    kind,
                    rate,
                    [labels.flips(FlipPlan(rate, kind, seed)) for seed in range(planned.seeds)],
                )
                for rate in planned.rates
            ]
        except UsageError as error:
            if ALL not in planned.kinds:
                raise
            plantings = [one for one in plantings if one.kind != kind]
            impossible.append({"kind": kind, "reason": error.message})
    return plantings, impossible


def _described(planting: Planting, gold: Path | None) -> str:
    """What was planted, in words."""
    base = "the dataset's own labels" if gold is None else f"labels corrected by {gold.name}"
    return (
        f"Planted: {planting.rate:.0%} of {base} were flipped ({planting.kind}: "
        f"{WORDS[planting.kind]}), then looked for without knowing which."
    )


def validate_truth(run: Run, truth: Path) -> dict[str, Any]:
    """Hold `run`'s scores against a truth file (pair_id, mislabelled); result as `validate`'s."""
    table = _pairs(run)
    wrong, known = read_truth(truth, table, own_ids(run))
    found = read_margins(run.directory, last=False)  # some detectors look at all checkpoints
    labels = Labels(run, table, np.zeros(len(wrong), bool), Own(flip_rate=None))
    training = run.manifest().get("training", {})
    facts = {"truth": str(truth)}
    judged = _judge(labels, found, wrong, labels.reversed, facts, known, training=training)
    description = f"Truth known for {int(known.sum()):,} pairs ({truth.name})."
    return _write(run, table.filter(known), scorecard([judged], description), [judged])


def _pairs(run: Run) -> pa.Table:
    import pyarrow.parquet as pq

    run.manifest()
    return pq.read_table(run.pairs_path)


def _own(run: Run) -> Own:
    """What the run claims about errors in its own labels."""
    summary = run.manifest()["summary"]
    rate, wrong = summary["flip_rate"], summary["mislabelled_share"]
    return Own((rate["low"], rate["high"]), (wrong["low"], wrong["high"]))


def _corrected(table: pa.Table, wrong: Bool) -> pa.Table:
    """The pairs with the labels in `wrong` [N] reversed."""
    import pyarrow as pa
    import pyarrow.compute as pc

    swap = pa.array(wrong)
    sides = table.column("chosen"), table.column("rejected")
    fresh = {"chosen": pc.if_else(swap, *sides[::-1]), "rejected": pc.if_else(swap, *sides)}
    if "first" in table.schema.names:
        fresh["first"] = pc.xor(table.column("first"), swap)
    for name, column in fresh.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(at), column)
    return table


def _judge(
    labels: Labels,
    found: RunMargins,
    wrong: Bool,
    swapped: Bool,
    facts: Mapping[str, Any],
    known: Bool | None = None,
    *,
    training: Mapping[str, Any],
) -> Judged:
    """Verdicts on `found`, of replicas that saw the run's labels with `swapped` [N] reversed.

    Kept for the pairs whose truth `wrong` is known. Texts are the run's own.
    """
    run = labels.run
    plan = run.plan()
    beta, rho = float(plan["evidence"]["beta"]), RHO[plan.get("modality", "text")]
    averages = None if known is None else read_averages(run)
    modality = plan.get("modality", "text")
    seen = _corrected(_pairs(run), swapped)
    facts_of_pairs = facts_of_table(seen, modality)
    columns, noise = judge(
        found,
        beta=beta,
        rho=rho,
        config=ScoreConfig(),
        averages=averages,
        facts=facts_of_pairs,
        modality=modality,
    )
    totals = Totals.of(columns)
    margins = columns["margin"]
    summary = summarise(
        run, len(found.replicas), margins, totals, noise, facts_of_pairs, training=training
    )
    keep = np.ones(len(wrong), bool) if known is None else known
    lengths = None
    if modality != "image":
        lengths = _lengths(seen)[:, keep]
    opinions = read_opinions(run, labels.table.column("pair_id").to_pylist())
    evidence = Evidence(
        found.margins[:, :, keep].astype(np.float64),
        found.counted[:, keep],
        beta=beta,
        rho=rho,
        lengths=lengths,
        annotators=_codes(labels.table)[keep],
        flip_rate=noise.single,
        released=columns["u_released"][keep],
        wrong=columns["p_wrong"][keep],
        opinions={k: np.where(swapped, -v, v)[keep] for k, v in opinions.items()},
    )
    kept = {name: values[keep] for name, values in columns.items()}
    groupings = [codes[keep] for codes in facts_of_pairs.groupings]
    here = replace(noise, this=noise.this[keep], other=noise.other[keep])
    return Judged(wrong[keep], kept, summary, evidence, facts, here, labels.own, groupings)


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

    def tables() -> Iterator[pa.Table]:
        for index, one in enumerate(judged):
            rows = {
                "planting": pa.array(np.full(len(one.wrong), index, np.int32)),
                "pair_id": table.column("pair_id"),
                "mislabelled": pa.array(one.wrong),
            }
            yield pa.table(
                rows | {name: pa.array(one.columns[name], from_pandas=True) for name in COLUMNS}
            )

    def write(path: Path) -> None:
        writer: pq.ParquetWriter | None = None
        for rows in tables():
            writer = writer or pq.ParquetWriter(path, rows.schema, compression="zstd")
            writer.write_table(rows)
        if writer is not None:
            writer.close()

    result = {"run": str(run.directory)} | result
    write_atomic(run.directory / "validation.parquet", write)
    write_atomic(run.directory / "validation.json", json.dumps(result, indent=1) + "\n")
    return result
