"""Summarise a run in numbers and in words: the object behind `noisescope score`'s one screen.

Usage: `summarise(run, replicas, margins, Totals.of(columns), noise, facts).to_json()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.scoring.clusters import (
    CHANCE_LEVEL,
    no_better_than_chance,
    share_interval,
    widest,
)
from noisescope.scoring.contrasts import (
    HELD_OUT,
    POOLED,
    Contrast,
    agreement,
    differ,
    explain,
    widened,
)
from noisescope.scoring.find import Find
from noisescope.scoring.flip_rate import FlipRate
from noisescope.scoring.giveaways import length_decides
from noisescope.scoring.margins import connect
from noisescope.scoring.metrics import (
    Interval,
    bayes_auroc,
    expected_auroc_interval,
    signed_rank_influence,
)
from noisescope.scoring.noise_models import Noise, NoiseModel
from noisescope.scoring.pair_facts import PairFacts
from noisescope.scoring.scores import CONTESTED
from noisescope.scoring.sources import SourceReport, source_notes
from noisescope.scoring.standouts import Standouts, notes_on_sources
from noisescope.scoring.triads import Triads
from noisescope.scoring.trust import Trust, TrustFacts, judge_trust, too_few
from noisescope.storage.run import Run

if TYPE_CHECKING:
    from noisescope.scoring.reviews import RunReviews

Float = NDArray[np.float64]

TENTHS = np.linspace(0, 1, 11)


@final
@dataclass(frozen=True)
class Suspect:
    """One of the most suspicious pairs, as the summary shows it; `u` None with one replica.

    `source` and `row` (from 0) are its place in the dataset, as in pairs.parquet.
    """

    pair_id: str
    prompt: str
    chosen: str
    rejected: str
    annotator: str | None
    p_wrong: float
    p_flip: float
    p_mislabelled: float
    margin: float
    u: float | None
    source: str
    row: int


@final
@dataclass(frozen=True)
class Summary:
    """The summary of a run, in numbers and in words. Every interval is a 90 % one.

    `flip_rate` covers every noise model that fits (`noise`). `mislabelled` is the bracket low ..
    high with the mean of p_wrong_audit; `expected` is the self-measured AUROC of planted uniform
    flips, its interval that of the single flip rate and of the ranks together; `chance`: the
    replicas do no better than a coin, so the scores carry no verdict (`chance_p`: p value of the
    sign-flip test, None where the replicas were not fitted by us). `contrasts` are other cross-fits
    of the same labels, `sources` what each source of evidence added, if there were any beside the
    model. `recalibration` has the parameters of p_wrong on people's judgements, None without them;
    only p_wrong, its histogram and the suspects depend on it. `trust` is what these numbers amount
    to, `find` the wrong labels among the most suspicious pairs, `annotators` (or sources) those who
    stand out.
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
    trust: Trust
    find: tuple[Find, ...] = ()
    annotators: Standouts | None = None
    chance_p: float | None = None
    noise_model: str = "one rate"
    noise: tuple[NoiseModel, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    triads: Triads | None = None
    sources: tuple[SourceReport, ...] = ()
    recalibration: Mapping[str, Any] | None = None
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
            "trust": self.trust.to_json(),
            "find": [found.to_json() for found in self.find],
            "annotators": self.annotators and self.annotators.to_json(),
            "chance": self.chance,
            "chance_p": self.chance_p,
            "noise_model": self.noise_model,
            "noise_models": [model.to_json() for model in self.noise],
            "contrasts": [contrast.to_json() for contrast in self.contrasts],
            "triads": self.triads and vars(self.triads),
            "sources": [source.to_json() for source in self.sources],
            "recalibration": self.recalibration,
            "histogram": {"edges": TENTHS.round(1).tolist(), "counts": list(self.histogram)},
            "suspects": [vars(suspect) for suspect in self.suspects],
            "notes": list(self.notes),
        }


@final
@dataclass(frozen=True)
class Totals:
    """What a summary adds up over the pairs; parts of a dataset go together."""

    likely: float  # sum of p_wrong_audit
    histogram: NDArray[np.int64]  # pairs by tenths of p_wrong
    contested: int
    unspread: int  # pairs judged by one replica only

    @classmethod
    def of(cls, columns: Mapping[str, Float]) -> Totals:
        """Totals of some pairs' columns [n] of scores.parquet."""
        return cls(
            likely=float(columns["p_wrong_audit"].sum()),
            histogram=np.histogram(columns["p_wrong"], TENTHS)[0],
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
    run: Run,
    replicas: int,
    margins: Float,
    totals: Totals,
    noise: Noise,
    facts: PairFacts | None = None,
    *,
    training: Mapping[str, Any] | None = None,
    suspects: int = 0,
    people: RunReviews | None = None,
    find: tuple[Find, ...] = (),
    annotators: Standouts | None = None,
    in_sample: bool = False,
    giveaways: Sequence[str] = (),
) -> Summary:
    """Summary of mean margins [N] and the totals; the first `suspects` pairs of scores.parquet.

    `training` is the manifest's record of the fit: contrasts, triads, the test of chance; `people`
    are the reviews that p_wrong was recalibrated on, `giveaways` notes on marks in the texts.
    """
    facts, training = facts or PairFacts(), training or {}
    recalibration = people and people.recalibration_json()
    # Annotators with rates of their own are no sample of others: what is left of each sums to 0.
    judged = replace(facts, annotators=None) if "annotator" in noise.chosen else facts
    accuracy = share_interval(agreement(margins), judged.groupings)
    others = tuple(Contrast.of(found) for found in training.get("contrasts", ()))
    triads = Triads(**training["triads"]) if training.get("triads") else None
    own = Contrast(_name(run), accuracy, _interval(noise.single))
    rate, notes = noise.rate, []
    for other in others:
        if differ(own, other):
            held_out, pooled = (own, other) if other.name == POOLED else (other, own)
            notes.append(explain(held_out, pooled, triads))
            rate = widened(rate, other)
    sources = tuple(map(SourceReport.of, training.get("sources", ())))
    notes += source_notes(sources) + notes_on_sources(training.get("by_source"))
    notes += _recalibrated(recalibration)
    chance_p = training.get("chance_p")
    chance = _at_chance(run, margins, facts, chance_p)
    low, high = rate.low, max(1 - accuracy.low, rate.high)
    expected = _expected(margins, noise.single, judged)
    precision = people and people.precision(0.5)
    prompts = _held_out_prompts(run, facts)
    trust = judge_trust(
        TrustFacts(
            own,
            rate,
            expected,
            chance=chance,
            in_sample=in_sample,
            giveaway=bool(giveaways),
            length=length_decides(facts.longer),
            others=others,
            triads=triads,
            sources=sources,
            precision=precision and precision.share,
            judged=precision.judged if precision else 0,
            reviewed=people is not None and people.share() is not None,
            prompts=prompts,
        )
    )
    return Summary(
        run=str(run.directory),
        pairs=len(margins),
        replicas=replicas,
        accuracy=accuracy,
        flip_rate=rate,
        mislabelled=Interval(min(max(totals.likely / len(margins), low), high), low, high),
        expected=expected,
        bayes_auroc=bayes_auroc(rate.gap(margins)),
        histogram=tuple(totals.histogram.tolist()),
        contested_share=totals.contested / len(margins),
        chance=chance,
        trust=trust,
        find=find if trust.acts else (),
        annotators=annotators,
        chance_p=chance_p,
        noise_model=noise.chosen,
        noise=noise.models,
        contrasts=others,
        triads=triads,
        sources=sources,
        recalibration=recalibration,
        suspects=_suspects(run, suspects) if suspects else (),
        notes=tuple(
            [
                *_notes(accuracy, rate, noise, totals, chance, chance_p, giveaways, trust, prompts),
                *notes,
            ]
        ),
    )


def _interval(rate: FlipRate) -> Interval:
    return Interval(rate.estimate, rate.low, rate.high)


def _expected(margins: Float, rate: FlipRate, facts: PairFacts) -> Interval:
    """The self-measured AUROC of planted uniform flips, with its cluster interval."""
    known = np.isfinite(margins)
    groupings = [codes[known] for codes in facts.groupings]
    half = widest(signed_rank_influence(margins[known]), groupings)
    return expected_auroc_interval(margins[known], _interval(rate), half)


def _name(run: Run) -> str:
    """Which of the two cross-fits the run's own margins are."""
    evidence = run.plan()["evidence"]
    by_pair = evidence.get("folds_by", "pair") == "pair"
    return POOLED if evidence.get("pool") and by_pair else HELD_OUT


def _held_out_prompts(run: Run, facts: PairFacts) -> int | None:
    """How many prompts were held out whole; None if something else was."""
    by_prompt = run.plan()["evidence"].get("folds_by") == "prompt"
    return len(np.unique(facts.prompts)) if by_prompt and facts.prompts is not None else None


def _at_chance(run: Run, margins: Float, facts: PairFacts, chance_p: float | None) -> bool:
    """Whether the replicas do no better than a coin, by the exact test where it was run."""
    if chance_p is not None:
        return chance_p > CHANCE_LEVEL
    cross_fitted = run.plan()["evidence"].get("kind") != "adapters"
    clusters = [codes for codes in facts.groupings if codes is facts.prompts]
    return no_better_than_chance(
        margins, clusters[0] if clusters else None, cross_fitted=cross_fitted
    )


def _suspects(run: Run, count: int) -> tuple[Suspect, ...]:
    """Text and scores of the first pairs of scores.parquet, in that order."""
    with connect() as connection:
        rows = connection.execute(
            "WITH s AS (SELECT * FROM read_parquet($scores) WHERE rank <= $count) "
            "SELECT pair_id, prompt, chosen, rejected, annotator, p_wrong, p_flip, p_mislabelled, "
            "margin, u, source, row FROM s JOIN read_parquet($pairs) USING (pair_id) ORDER BY rank",
            {"scores": str(run.scores_path), "pairs": str(run.pairs_path), "count": count},
        ).fetchall()
    return tuple(Suspect(*row) for row in rows)


def _recalibrated(recalibration: Mapping[str, Any] | None) -> list[str]:
    """The note on p_wrong if it rests on reviews."""
    if recalibration is None:
        return []
    count = recalibration["judgements"]
    return [
        f"p_wrong is recalibrated on {count:,} judgements of reviewers; p_wrong_audit has the "
        "values before. The ranks are the same under both."
    ]


def _notes(
    accuracy: Interval,
    rate: FlipRate,
    noise: Noise,
    totals: Totals,
    chance: bool,
    chance_p: float | None,
    giveaways: Sequence[str],
    trust: Trust,
    prompts: int | None,
) -> Sequence[str]:
    """What a reader must know, gravest first."""
    notes = []
    # Replicas that see each other's labels agree with coin tosses more than half of the time.
    test = "" if chance_p is None else f"; with coin tosses for labels as often: p = {chance_p:.2g}"
    if chance:
        fault = "The replicas are no better"
        helps = "A larger model, more pairs, or a look at the labels' direction"
        if too_few(prompts):
            fault = f"{prompts} prompts are too few to show that the replicas are better"
            helps = "Pairs of more prompts, or --pool,"
        notes.append(
            f"{fault} than chance on pairs they did not train on "
            f"({accuracy.estimate:.1%}, 90 % interval {accuracy.low:.1%} to {accuracy.high:.1%}"
            f"{test}): these scores carry no verdict. {helps} may help."
        )
    notes += giveaways
    if not rate.identifiable:
        order = "The ranking holds either way, but n" if trust.acts else "N"
        notes.append(
            f"The flip rate is not identifiable: {rate.low:.0%} to {rate.high:.0%} all fit these "
            f"{rate.pairs:,} pairs. At the lower end the model cannot judge some pairs; at the "
            "upper end every label it disagrees with is wrong. Under the chosen noise model "
            f"({noise.chosen}) the rate is {noise.rate.estimate:.1%}. {order}o value of p_wrong "
            "is to be taken as a probability."
        )
    if totals.unspread:
        notes.append(
            f"{totals.unspread:,} pairs were judged by one replica only: their stability, u, W and "
            "gamma are empty."
        )
    return notes
