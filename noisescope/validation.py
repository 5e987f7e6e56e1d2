"""Does it work on this dataset? Plant flips, audit again, and count how many were found.

    result = validate(run, Planned(rates=(0.2,), seeds=3))
    result["detectors"]["p_flip"]["auroc"]

For log-linear replicas a flip is a change of sign of a pair's feature difference, so planting
needs no forward pass: features come from the cache, heads are fitted anew, verdicts made again.
With a truth file nothing is planted; the run's own scores are held against it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.detectors import RHO, Evidence, available
from noisescope.errors import DataError, EvidenceError, RunError, UsageError
from noisescope.evidence import RunMargins, read_margins
from noisescope.flips import FlipPlan, chance_of, decide, margin_gaps, table_chunks
from noisescope.gathering import cache_directory, distinct_items, fold_keys
from noisescope.policies import Item, ModelIdentity
from noisescope.ranking import auroc, average_precision, bootstrap, efficiency, precision_at
from noisescope.statistics import calibration, share
from noisescope.storage import write_atomic
from noisescope.summary import summarise
from noisescope.verdicts import COLUMNS, ScoreConfig, judge

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from noisescope.features import Progress
    from noisescope.pairs import Modality
    from noisescope.run import Run
    from noisescope.summary import Summary

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: Bootstrap resamples of each interval.
DRAWS = 200


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


@final
@dataclass(frozen=True)
class Judged:
    """One set of labels with known truth, judged: `columns` as in scores.parquet, [N]."""

    wrong: Bool
    columns: Mapping[str, Float]
    summary: Summary
    evidence: Evidence
    facts: Mapping[str, Any]


@final
@dataclass(frozen=True)
class Remembered:
    """The policy of a run whose features are all cached: it never computes any."""

    modality: Modality
    identity: ModelIdentity

    @property
    def device(self) -> torch.device:
        """Where nothing is computed."""
        import torch

        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """In what nothing is computed."""
        import torch

        return torch.float32

    def sizes(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """[0]. Raises RunError when anything is missing."""
        if items:
            raise RunError(
                f"features of {len(items):,} responses are no longer cached",
                hint="Type the command that made the run again; it fills the cache.",
            )
        return np.zeros(0, np.int64)

    def flops(self, items: Sequence[Item]) -> float:
        """Nothing is computed."""
        return 0.0

    def features(self, items: Sequence[Item]) -> dict[str, NDArray[np.float32]]:
        """Never asked for: `sizes` has refused."""
        return {}

    def remarks(self, items: Sequence[Item]) -> list[str]:
        """None."""
        return []


def validate(run: Run, planned: Planned, *, progress: Progress | None = None) -> dict[str, Any]:
    """Plant flips in `run`'s labels, find them, and write validation.json and validation.parquet.

    Raises RunError where the run is not of head replicas or its features are gone.
    """
    table = _pairs(run)
    refit = _refitter(run, table)
    gaps = margin_gaps(run) if planned.kind == "hard" else None
    judged: list[Judged] = []
    plans = [
        FlipPlan(rate, planned.kind, seed)
        for rate in planned.rates
        for seed in range(planned.seeds)
    ]
    for plan in plans:
        chance = chance_of(plan, lambda: table_chunks(table), gaps)
        flipped = np.concatenate([decide(chunk, plan, chance) for chunk in table_chunks(table)])
        facts = {"rate": plan.rate, "seed": plan.seed, "kind": plan.kind}
        judged.append(_judge(run, table, refit(flipped), flipped, facts))
        if progress is not None:
            progress(len(judged), len(plans), None)
    said = (
        f"Planted: {planned.rates[0]:.0%} of the labels were turned round ({planned.kind}), "
        "then looked for without knowing which."
    )
    base = run.manifest()["summary"]["flip_rate"]["estimate"]
    result = _result(judged[: planned.seeds], said, base)
    by_rate = [judged[i : i + planned.seeds] for i in range(0, len(judged), planned.seeds)]
    result["by_rate"] = [
        {"rate": group[0].facts["rate"]} | _result(group, said, base) for group in by_rate
    ]
    return _write(run, table, result, judged)


def validate_truth(run: Run, truth: Path) -> dict[str, Any]:
    """Hold `run`'s scores against a truth file (pair_id, mislabelled); result as `validate`'s."""
    table = _pairs(run)
    wrong, known = read_truth(truth, table)
    found = read_margins(run.directory)
    judged = _judge(run, table, found, wrong, {"truth": str(truth)}, known)
    said = f"Truth known for {int(known.sum()):,} pairs ({truth.name})."
    return _write(run, table.filter(known), _result([judged], said, None), [judged])


def read_truth(path: Path, table: pa.Table) -> tuple[Bool, Bool]:
    """(mislabelled, known) [N] of the pairs from a Parquet, CSV or JSON-lines file.

    Raises DataError where the file cannot be read, lacks a column, or names no pair of the run.
    """
    import pyarrow as pa

    try:
        stated = _truth_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as truth ({error})") from error
    label = next((name for name in ("mislabelled", "flipped") if name in stated.schema.names), None)
    if label is None or "pair_id" not in stated.schema.names:
        raise DataError(
            f"{path}: a truth file needs pair_id and mislabelled, and has "
            f"{', '.join(stated.schema.names)}",
            hint="flips.parquet, which noisescope flip writes, is one.",
        )
    names = (str(name) for name in stated.column("pair_id").to_pylist())
    values = dict(zip(names, stated.column(label).to_pylist(), strict=True))
    told = [values.get(name) for name in table.column("pair_id").to_pylist()]
    known = np.array([value is not None for value in told])
    if not known.any():
        raise DataError(f"{path}: names none of the run's pairs", hint="Is it another dataset's?")
    return np.array([str(v).strip().lower() in ("true", "1", "1.0") for v in told]), known


def _truth_table(path: Path) -> pa.Table:
    name = path.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        import pyarrow.csv

        return pyarrow.csv.read_csv(path)
    if name.endswith((".jsonl", ".jsonl.gz", ".ndjson")):
        import pyarrow.json

        return pyarrow.json.read_json(path)
    import pyarrow.parquet as pq

    return pq.read_table(path)


def _pairs(run: Run) -> pa.Table:
    import pyarrow.parquet as pq

    run.manifest()
    return pq.read_table(run.pairs_path)


def _refitter(run: Run, table: pa.Table) -> Callable[[Bool], RunMargins]:
    """A function: which labels are flipped [N] -> the margins that replicas then give."""
    from noisescope.features import compute_features
    from noisescope.replicas.head import HeadConfig, fit_heads

    plan = run.plan()
    evidence = plan["evidence"]
    if evidence.get("kind") != "head":
        raise RunError(
            f"{run.directory} has {evidence.get('kind')} replicas, which planting would retrain",
            hint="Audit with --kind head, or flip the dataset and score the copy.",
        )
    identity = ModelIdentity(plan["model"], None, plan["model_fingerprint"])
    policy = Remembered(plan.get("modality", "text"), identity)
    items, chosen, rejected = distinct_items(table)
    features = compute_features(policy, items, cache_directory(run), lambda *_: None)
    config = HeadConfig(
        replicas=evidence["replicas"],
        folds=evidence["folds"],
        seed=evidence["seed"],
        identity=evidence["pool"],
    )

    def refit(flipped: Bool) -> RunMargins:
        one, other = np.where(flipped, rejected, chosen), np.where(flipped, chosen, rejected)
        margins = fit_heads(features, one, other, fold_keys(table), config).margins
        return RunMargins(
            table.column("pair_id"),
            list(range(len(margins))),
            [1],
            margins[:, None, :].astype(np.float32),
            np.ones(margins.shape, bool),
        )

    return refit


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
    columns, rate = judge(found, beta=beta, rho=rho, config=ScoreConfig())
    summary = summarise(run, len(found.replicas), columns, rate, np.zeros(0, np.int64))
    keep = np.ones(len(wrong), bool) if known is None else known
    lengths = None
    if plan.get("modality", "text") == "text":
        lengths = _lengths(table)
        if known is None:
            lengths = np.where(wrong, lengths[::-1], lengths)
        lengths = lengths[:, keep]
    evidence = Evidence(
        found.margins[:, :, keep].astype(np.float64),
        found.held_out[:, keep],
        beta=beta,
        rho=rho,
        lengths=lengths,
        annotators=_codes(table)[keep],
        flip_rate=rate,
    )
    kept = {name: values[keep] for name, values in columns.items()}
    return Judged(wrong[keep], kept, summary, evidence, facts)


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


def _result(group: Sequence[Judged], said: str, base: float | None) -> dict[str, Any]:
    """Numbers of several plantings of one rate: means over them, and each by itself."""
    each = [_numbers(judged, base) for judged in group]
    first = each[0]
    names = [name for name in first["detectors"] if all(name in one["detectors"] for one in each)]
    merged: dict[str, Any] = {
        "said": said,
        "pairs": first["pairs"],
        "detectors": {name: _mean([one["detectors"][name] for one in each]) for name in names},
    }
    for key in ("base_rate", "ece", "ece_mislabelled", "brier", "expected_auroc", "bayes_auroc"):
        merged[key] = float(np.mean([one[key] for one in each]))
    merged["efficiency"] = efficiency(merged["detectors"]["p_flip"]["auroc"], merged["bayes_auroc"])
    merged["deciles"] = np.mean([one["deciles"] for one in each], axis=0).tolist()
    for key in ("flip_rate", "mislabelled_share", "u_intervals", "reliability"):
        merged[key] = first[key]
    covered = [one["flip_rate"]["covers"] for one in each if "covers" in one["flip_rate"]]
    if covered:
        merged["flip_rate"] = merged["flip_rate"] | {"coverage": float(np.mean(covered))}
    return merged | {"plantings": each}


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    numbers = {
        key: float(np.mean([row[key] for row in rows]))
        for key in ("auroc", "ap", "precision_at_rate")
    }
    return numbers | {"interval": np.mean([row["interval"] for row in rows], axis=0).tolist()}


def _numbers(judged: Judged, base: float | None) -> dict[str, Any]:
    """Everything of method.md section 6 for one planting."""
    from noisescope.report.figures import deciles, u_edges

    wrong, columns, summary = judged.wrong, judged.columns, judged.summary
    if not 0 < wrong.sum() < len(wrong):
        raise EvidenceError(
            f"{int(wrong.sum())} of {len(wrong):,} labels are wrong: there is nothing to compare",
            hint="Use a larger --rate.",
        )
    found = calibration(columns["p_flip"], wrong)
    rate = summary.flip_rate.to_json()
    if base is not None and judged.facts.get("kind") == "uniform":
        planted = float(wrong.mean())
        total = planted + base * (1 - 2 * planted)
        covers = summary.flip_rate.low <= total <= summary.flip_rate.high
        rate |= {"planted": planted, "expected": total, "covers": covers}
    groups = {"deciles": [float(g.mean()) for g in deciles(columns["p_flip"], wrong)]}
    metric = columns["u"]
    intervals = []
    if np.isfinite(metric).all():
        edges = u_edges(metric)
        for low, high in pairwise(edges):
            inside = wrong[(metric >= low) & (metric < high)]
            intervals.append(
                {"from": float(low), "pairs": len(inside)}
                | (share(float(inside.sum()), len(inside)).to_json() if len(inside) else {})
            )
    return {
        **judged.facts,
        "pairs": len(wrong),
        "base_rate": float(wrong.mean()),
        "detectors": dict(_detectors(judged)),
        "ece": found.ece,
        "brier": found.brier,
        "ece_mislabelled": calibration(columns["p_mislabelled"], wrong).ece,
        "reliability": {
            "predicted": found.predicted.tolist(),
            "observed": found.observed.tolist(),
            "count": found.count.tolist(),
        },
        "flip_rate": rate,
        "mislabelled_share": summary.mislabelled.to_json(),
        "expected_auroc": summary.expected.estimate,
        "bayes_auroc": summary.bayes_auroc,
        "u_intervals": intervals,
        **groups,
    }


def _detectors(judged: Judged) -> Iterator[tuple[str, dict[str, Any]]]:
    """AUROC with its interval, average precision and precision at the base rate of each."""
    wrong = judged.wrong
    for name, detector in available(judged.evidence).items():
        score = detector.score(judged.evidence)
        interval = bootstrap(auroc, score, wrong, draws=DRAWS)
        yield (
            name,
            {
                "auroc": interval.estimate,
                "ap": float(average_precision(score, wrong)),
                "precision_at_rate": float(precision_at(score, wrong, float(wrong.mean()))),
                "interval": [interval.low, interval.high],
                "axis": detector.axis,
            },
        )


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
