"""Compare scores with a known truth: ranking, calibration and flip-rate metrics per detector.

card = scorecard(judged, "Planted: ...")
card["detectors"]["p_flip"]["auroc"], card["deciles"]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import EvidenceError
from noisescope.scoring.claims import Own, compare, mean_of, verdict
from noisescope.scoring.clusters import auroc_interval
from noisescope.scoring.detectors import Evidence, available
from noisescope.scoring.metrics import (
    average_precision,
    calibration,
    efficiency,
    precision_at,
    share,
)

if TYPE_CHECKING:
    from noisescope.scoring.noise_models import Noise
    from noisescope.scoring.summary import Summary

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: Pairs of known truth below which no tenth would hold one.
FEWEST = 10
#: Simulated truths behind the chance of rising tenths.
SIMULATED = 500
#: Intervals of u, the last one open.
U_INTERVALS = 8
#: Numbers of which several plantings of a rate give the mean.
MEANS = (
    "base_rate",
    "ece",
    "ece_mislabelled",
    "ece_wrong",
    "brier",
    "expected_auroc",
    "bayes_auroc",
    "deciles_rise",
    "deciles_rise_expected",
)


@final
@dataclass(frozen=True)
class Judged:
    """One set of labels with known truth, judged: `columns` as in scores.parquet, [N].

    `noise` are the fitted noise models, `own` errors in the data that the truth does not name.
    `groupings` are the clusters of its intervals (`PairFacts.groupings`).
    """

    wrong: Bool
    columns: Mapping[str, Float]
    summary: Summary
    evidence: Evidence
    facts: Mapping[str, Any]
    noise: Noise
    own: Own
    groupings: Sequence[NDArray[np.int64]] = ()


def deciles(score: Float, flipped: Bool) -> list[Bool]:
    """`flipped` of each tenth of the pairs in ascending order of `score`."""
    return list(np.array_split(flipped[np.argsort(score, kind="stable")], 10))


def rise_chance(p_flip: Float, *, seed: int = 0) -> float:
    """How often the flipped share would rise from every tenth of `p_flip` [N] to the next, were
    each pair flipped with exactly its own p_flip: what sampling noise leaves of a strict order.
    """
    rng = np.random.default_rng(seed)
    tenths = [
        (rng.random((SIMULATED, len(group))) < group).mean(axis=1)
        for group in np.array_split(np.sort(p_flip), 10)
    ]
    return float((np.diff(np.stack(tenths), axis=0) > 0).all(axis=0).mean())


def u_edges(u: Float) -> Float:
    """Edges [U_INTERVALS + 1] of equally wide intervals with a round width; the last is open."""
    top = float(np.quantile(u, 0.97)) or float(u.max()) or 1.0
    width = top / (U_INTERVALS - 1)
    scale = 10.0 ** np.floor(np.log10(width))
    step = next(
        unit * scale for unit in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if unit * scale >= width
    )
    return np.append(np.arange(U_INTERVALS) * step, np.inf)


def scorecard(group: Sequence[Judged], description: str) -> dict[str, Any]:
    """Numbers of several plantings of one rate: means over them, and each by itself."""
    each = [_numbers(judged) for judged in group]
    first = each[0]
    names = [name for name in first["detectors"] if all(name in one["detectors"] for one in each)]
    merged: dict[str, Any] = {
        "said": description,
        "pairs": first["pairs"],
        "detectors": {name: _mean([one["detectors"][name] for one in each]) for name in names},
    }
    for key in MEANS:
        merged[key] = float(np.mean([one[key] for one in each]))
    merged["efficiency"] = efficiency(merged["detectors"]["p_flip"]["auroc"], merged["bayes_auroc"])
    merged["deciles"] = np.mean([one["deciles"] for one in each], axis=0).tolist()
    for key in ("flip_rate", "mislabelled_share", "u_intervals", "reliability"):
        merged[key] = first[key]
    claims = mean_of([one["claims"] for one in each])
    planted = "seed" in group[0].facts
    merged["claims"] = claims
    merged["verdict"] = verdict(claims, "planted errors" if planted else "wrong labels")
    return merged | {"plantings": each}


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    numbers = {
        key: float(np.mean([row[key] for row in rows]))
        for key in ("auroc", "ap", "precision_at_rate")
    }
    return numbers | {"interval": np.mean([row["interval"] for row in rows], axis=0).tolist()}


def _numbers(judged: Judged) -> dict[str, Any]:
    """Compute every metric of one planting."""
    wrong, columns, summary = judged.wrong, judged.columns, judged.summary
    if len(wrong) < FEWEST:
        raise EvidenceError(
            f"the truth of {len(wrong)} pairs is known: too few to compare anything",
            hint=f"At least {FEWEST} pairs of the run, wrong ones among them.",
        )
    if not 0 < wrong.sum() < len(wrong):
        raise EvidenceError(
            f"{int(wrong.sum())} of {len(wrong):,} labels are wrong: there is nothing to compare",
            hint="Use a larger --rate.",
        )
    found = calibration(columns["p_flip"], wrong)
    tenths = [float(group.mean()) for group in deciles(columns["p_flip"], wrong)]
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
        "ece_wrong": calibration(columns["p_wrong"], wrong).ece,
        "reliability": {
            "predicted": found.predicted.tolist(),
            "observed": found.observed.tolist(),
            "count": found.count.tolist(),
        },
        "claims": compare(wrong, columns, summary, judged.noise, judged.own),
        "flip_rate": summary.flip_rate.to_json(),
        "mislabelled_share": summary.mislabelled.to_json(),
        "expected_auroc": summary.expected.estimate,
        "bayes_auroc": summary.bayes_auroc,
        "u_intervals": intervals,
        "deciles": tenths,
        "deciles_rise": bool((np.diff(tenths) > 0).all()),
        "deciles_rise_expected": rise_chance(columns["p_flip"]),
    }


def _detectors(judged: Judged) -> Iterator[tuple[str, dict[str, Any]]]:
    """AUROC with its cluster interval, average precision and precision at the base rate of each."""
    wrong = judged.wrong
    for name, detector in available(judged.evidence).items():
        score = detector.score(judged.evidence)
        interval = auroc_interval(score, wrong, judged.groupings)
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
