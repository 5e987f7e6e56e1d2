"""What a run says, in numbers and in words: the object behind `noisescope score`'s one screen.

Usage: `summarise(run, replicas, margins, Totals.of(columns), rate).to_json()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.scoring.flip_rate import FlipRate
from noisescope.scoring.margins import connect
from noisescope.scoring.metrics import (
    Interval,
    at_chance,
    bayes_auroc,
    expected_auroc_interval,
    held_out_accuracy,
)
from noisescope.storage.run import Run

Float = NDArray[np.float64]

#: A pair counts as contested where p is between 0.4 and 0.6: 2 min(p, 1 - p) >= 0.8.
CONTESTED = 0.8
TENTHS = np.linspace(0, 1, 11)


@final
@dataclass(frozen=True)
class Suspect:
    """One of the most suspicious pairs, as the summary shows it; `u` None with one replica."""

    pair_id: str
    prompt: str
    chosen: str
    rejected: str
    annotator: str | None
    p_flip: float
    p_mislabelled: float
    margin: float
    u: float | None


@final
@dataclass(frozen=True)
class Summary:
    """What a run says, in numbers and in words. Every interval is a 90 % one.

    `mislabelled` is the bracket low .. high with the estimate under `FlipRate.p_mislabelled`'s
    assumption; `expected_auroc` is the self-measured one, its interval that of the flip rate and
    of the ranks together; `chance` says that the replicas do no better than a coin, so there is
    no verdict.
    """

    run: str
    pairs: int
    replicas: int
    accuracy: Interval
    flip_rate: FlipRate
    mislabelled: Interval
    expected: Interval
    bayes_auroc: float
    histogram: tuple[int, ...]
    contested_share: float
    chance: bool
    suspects: tuple[Suspect, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The stable JSON object of `score --json`."""
        return {
            "run": self.run,
            "pairs": self.pairs,
            "replicas": self.replicas,
            "held_out_accuracy": self.accuracy.estimate,
            "held_out_accuracy_interval": [self.accuracy.low, self.accuracy.high],
            "flip_rate": self.flip_rate.to_json(),
            "mislabelled_share": self.mislabelled.to_json(),
            "expected_auroc": self.expected.estimate,
            "expected_auroc_interval": [self.expected.low, self.expected.high],
            "bayes_auroc": self.bayes_auroc,
            "contested_share": self.contested_share,
            "chance": self.chance,
            "histogram": {"edges": TENTHS.round(1).tolist(), "counts": list(self.histogram)},
            "suspects": [vars(suspect) for suspect in self.suspects],
            "notes": list(self.notes),
        }


@final
@dataclass(frozen=True)
class Totals:
    """What a summary adds up over the pairs; parts of a dataset go together."""

    likely: float  # sum of p_mislabelled
    histogram: NDArray[np.int64]  # pairs by tenths of p_flip
    contested: int
    unspread: int  # pairs judged by one replica only

    @classmethod
    def of(cls, columns: Mapping[str, Float]) -> Totals:
        """Totals of some pairs' columns [n] of scores.parquet."""
        return cls(
            likely=float(columns["p_mislabelled"].sum()),
            histogram=np.histogram(columns["p_flip"], TENTHS)[0],
            contested=int((columns["contested"] >= CONTESTED).sum()),
            unspread=int(np.isnan(columns["stability"]).sum()),
        )

    @classmethod
    def together(cls, parts: Sequence[Totals]) -> Totals:
        """Totals of all parts."""
        return cls(
            likely=sum(part.likely for part in parts),
            histogram=np.sum([part.histogram for part in parts], axis=0),
            contested=sum(part.contested for part in parts),
            unspread=sum(part.unspread for part in parts),
        )


def summarise(
    run: Run, replicas: int, margins: Float, totals: Totals, rate: FlipRate, suspects: int = 0
) -> Summary:
    """Summary of mean margins [N] and the totals; the first `suspects` pairs of scores.parquet."""
    accuracy = held_out_accuracy(margins)
    low, high = rate.low, max(1 - accuracy.low, rate.low)
    rates = Interval(rate.estimate, rate.low, rate.high)
    return Summary(
        run=str(run.directory),
        pairs=len(margins),
        replicas=replicas,
        accuracy=accuracy,
        flip_rate=rate,
        mislabelled=Interval(min(max(totals.likely / len(margins), low), high), low, high),
        expected=expected_auroc_interval(margins, rates),
        bayes_auroc=bayes_auroc(rate.gap(margins)),
        histogram=tuple(totals.histogram.tolist()),
        contested_share=totals.contested / len(margins),
        chance=at_chance(accuracy),
        suspects=_suspects(run, suspects) if suspects else (),
        notes=tuple(_notes(accuracy, rate, totals)),
    )


def _suspects(run: Run, count: int) -> tuple[Suspect, ...]:
    """Text and scores of the first pairs of scores.parquet, in that order."""
    with connect() as connection:
        rows = connection.execute(
            "WITH s AS (SELECT * FROM read_parquet($scores) WHERE rank <= $count) "
            "SELECT pair_id, prompt, chosen, rejected, annotator, p_flip, p_mislabelled, "
            "margin, u FROM s JOIN read_parquet($pairs) USING (pair_id) ORDER BY rank",
            {"scores": str(run.scores_path), "pairs": str(run.pairs_path), "count": count},
        ).fetchall()
    return tuple(Suspect(*row) for row in rows)


def _notes(accuracy: Interval, rate: FlipRate, totals: Totals) -> Sequence[str]:
    """What a reader must know, in plain words, gravest first."""
    notes = []
    if at_chance(accuracy):
        notes.append(
            f"The replicas are no better than chance on pairs they did not train on "
            f"({accuracy.estimate:.1%}, 90 % interval {accuracy.low:.1%} to {accuracy.high:.1%}): "
            "these scores carry no verdict. A larger model, more pairs, or a look at the labels' "
            "direction may help."
        )
    if not rate.identifiable:
        notes.append(
            f"The flip rate is not identifiable at this size: {rate.low:.0%} to {rate.high:.0%} "
            f"all fit these {rate.pairs:,} pairs. The ranking stands; the absolute values of "
            "p_flip do not."
        )
    if totals.unspread:
        notes.append(
            f"{totals.unspread:,} pairs were judged by one replica only: their stability, u, W and "
            "gamma are empty."
        )
    return notes
