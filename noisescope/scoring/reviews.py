"""What people's judgements say about a run's labels: the log of storage/reviews.py joined to it.

    people = reviews_of(run)                       # None if nobody has judged these pairs
    people.share()                                 # share of wrong labels, with its interval
    people.p_wrong                                 # [N] recalibrated, judged pairs by Bayes' rule

Judged pairs that nobody drew at random (`--for fix`, imports) represent themselves alone; the
sample's represent the rest of their strata. Decisions made with the label in view, about pairs
that somebody picked (`noisescope apply`), enter no estimate: they only correct labels. Which
design a sample had is in the log, so estimates hold for every run of the same pairs, whatever its
scores, labels or order of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from noisescope.errors import RunError
from noisescope.pairs import keys_of, uniform
from noisescope.scoring.metrics import Interval
from noisescope.scoring.review_estimate import (
    CENSUS,
    Cells,
    ErrorRate,
    Estimate,
    Recalibration,
    Reviewed,
    Votes,
    checked_error,
    error_rate,
    queue,
    review,
    strata_for,
    stratify,
)
from noisescope.scoring.scores import require_scores
from noisescope.storage.printable import plural
from noisescope.storage.reviews import (
    DROP,
    Answer,
    Draw,
    Log,
    has_reviews,
    new_id,
    read_reviews,
    side_key,
)
from noisescope.storage.run import Run

Float = NDArray[np.float64]
Places = NDArray[np.int64]
U64 = NDArray[np.uint64]

#: Column of scores.parquet that decides what is drawn: p_wrong without any review.
P_WRONG = "p_wrong_audit"
#: Sampled answers below which no share is stated.
FEWEST_SAMPLED = 20
#: Thresholds on p_wrong whose precision is reported. At higher ones few answers of 100 fall, nearly
#: all "wrong", and the intervals are too narrow (at 0.9 on the sample they cover 33 % of the time).
THRESHOLDS = (0.5,)
#: Salts of the two numbers that order a sample's queue.
_COIN, _AGAIN = 31, 32
#: Verdict on a pair whose answers favour neither side.
UNDECIDED = "undecided"
_BATCH = 8192


@final
@dataclass(frozen=True)
class Population:
    """All pairs of a run: hashed ids [N], ascending, the hashed content of each [N], and at which
    place each row of pairs.parquet is [N]. `digest` names this set of pairs in any order.
    """

    keys: U64
    contents: U64
    place: Places
    digest: str

    def __len__(self) -> int:
        return len(self.keys)

    def places(self, ids: Sequence[str]) -> Places:
        """Places of these pair ids; those of no pair here are passed by."""
        wanted = keys_of(ids)
        at = np.minimum(np.searchsorted(self.keys, wanted), max(len(self) - 1, 0))
        return np.asarray(at[self.keys[at] == wanted]) if len(self) else np.empty(0, np.int64)


def read_population(run: Run) -> Population:
    """The pairs of a run. Raises RunError if pairs.parquet cannot be read."""
    keys: list[U64] = [np.empty(0, np.uint64)]
    contents: list[U64] = [np.empty(0, np.uint64)]
    try:
        with pq.ParquetFile(run.pairs_path, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH, columns=["pair_id", "content_id"]):
                ids, content = batch.column("pair_id"), batch.column("content_id")
                keys.append(keys_of(ids.to_pylist()))
                # a pair without copies has its content as its id
                contents.append(keys[-1] if content == ids else keys_of(content.to_pylist()))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise RunError(f"{run.pairs_path} cannot be read: {error}") from error
    every = np.concatenate(keys)
    order = np.argsort(every, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    ordered, content = every[order], np.concatenate(contents)[order]
    sha = hashlib.sha256(ordered.tobytes() + content.tobytes())
    return Population(ordered, content, place, sha.hexdigest()[:20])


def read_p_wrong(run: Run, population: Population) -> Float:
    """p_wrong [N] of a run's scores before reviews, in the order of `population.keys`.

    Raises RunError if scores.parquet cannot be read, is of an older version or holds other pairs.
    """
    require_scores(run)
    hint = "Type the `noisescope score` command of this run again."
    p = np.full(len(population), np.nan)
    rows = 0
    try:
        with pq.ParquetFile(run.scores_path, pre_buffer=False) as file:
            for batch in file.iter_batches(1 << 16, columns=["pair_id", P_WRONG]):
                places = population.places(batch.column("pair_id").to_pylist())
                rows += len(places)
                if len(places) == batch.num_rows:
                    p[places] = batch.column(P_WRONG).to_numpy(zero_copy_only=False)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise RunError(f"{run.scores_path} cannot be read: {error}", hint=hint) from error
    if rows != len(population):
        raise RunError(
            f"{run.scores_path} has scores of {rows:,} of the run's {len(population):,} pairs",
            hint=hint,
        )
    return p


@final
@dataclass(frozen=True)
class Judged:
    """One pair of the run that somebody judged: its place, its sides' content keys, and answers."""

    place: int
    pair_id: str
    chosen: str
    answers: tuple[Answer, ...]

    def counts(self) -> tuple[int, int, int]:
        """How many reviewers found the label wrong, right, and how many called it a tie."""
        better = [one.better for one in self.answers if one.answer not in ("skip", DROP)]
        wrong = sum(side is not None and side != self.chosen for side in better)
        ties = sum(side is None for side in better)
        return wrong, len(better) - wrong - ties, ties

    @property
    def verdict(self) -> str:
        """wrong, right or drop as most reviewers have it; undecided for ties, draws and skipped
        pairs.
        """
        wrong, right, _ = self.counts()
        dropped = sum(answer.answer == DROP for answer in self.answers)
        if dropped > max(wrong, right):
            return DROP
        if wrong == right or dropped == max(wrong, right):
            return UNDECIDED
        return "wrong" if wrong > right else "right"


def read_judged(run: Run, log: Log, population: Population) -> list[Judged]:
    """The pairs of `run` that the log has answers about, in the order of pairs.parquet.

    Answers whose sides are not the pair's are passed by.
    """
    by_content: dict[str, list[Answer]] = {}
    for answer in log.answers:
        by_content.setdefault(answer.content_id, []).append(answer)
    if not by_content:
        return []
    found, row = [], 0
    names = ["pair_id", "content_id", "chosen", "rejected"]
    wanted = pa.array(by_content)
    try:
        with pq.ParquetFile(run.pairs_path, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH, columns=names):
                mask = pa.compute.is_in(batch.column("content_id"), value_set=wanted)
                for at in np.flatnonzero(mask.to_numpy(zero_copy_only=False)).tolist():
                    pair_id, content, chosen, rejected = (
                        batch.column(name)[at].as_py() for name in names
                    )
                    sides = side_key(chosen), side_key(rejected)
                    fitting = [a for a in by_content[content] if set(a.sides) == set(sides)]
                    place = int(population.place[row + at])
                    found.append(Judged(place, pair_id, sides[0], tuple(fitting)))
                row += batch.num_rows
    except (pa.ArrowException, OSError, KeyError) as error:
        raise RunError(f"{run.pairs_path} cannot be read: {error}") from error
    return [judged for judged in found if judged.answers]


@final
@dataclass(frozen=True)
class RunReviews:
    """Judgements of a run's pairs and what follows from them. `reviewed` is None while there is no
    sample of these very pairs, or fewer than FEWEST_SAMPLED answers of it.
    """

    judged: tuple[Judged, ...]
    reviewers: tuple[str, ...]
    judgements: int
    skipped: int
    sampled: int
    agreement: float
    shared: int
    error: ErrorRate
    reviewed: Reviewed | None
    p: Float

    @property
    def p_wrong(self) -> Float:
        """p_wrong [N]: recalibrated if there is a sample, and of judged pairs by Bayes' rule."""
        return self._reviewed.posterior()

    @property
    def recalibration(self) -> Recalibration | None:
        """The map from the audit's p_wrong to the recalibrated one; None without a sample, or
        without an answer that takes a side.
        """
        return self.reviewed.recalibration if self.reviewed and self.fitted_on else None

    @property
    def fitted_on(self) -> int:
        """Judgements that the recalibration rests on: those of the sample and of listed pairs that
        take a side.
        """
        if self.reviewed is None:
            return 0
        used = zip(self.judged, self.reviewed.weights, strict=True)
        return len({a.id for one, weight in used if weight for a in one.answers if a.better})

    def recalibration_json(self) -> dict[str, Any] | None:
        """The recalibration's parameters and how many judgements they rest on, for JSON."""
        fitted = self.recalibration
        if fitted is None:
            return None
        facts = {"intercept": fitted.intercept, "slope": fitted.slope}
        return {"judgements": self.fitted_on} | facts

    @cached_property
    def verdicts(self) -> list[str]:
        """Verdict on each judged label; copies of a pair that are labelled alike count once."""
        distinct = {(one.answers[0].content_id, one.chosen): one for one in self.judged}
        return [one.verdict for one in distinct.values()]

    @cached_property
    def _reviewed(self) -> Reviewed:
        if self.reviewed is not None:
            return self.reviewed
        votes = votes_of(self.judged)
        cells = np.full(len(self.p), CENSUS, np.uint8)
        nobody = np.zeros(len(votes), bool)
        return review(cells, self.p, votes, drawn=nobody, error=self.error)

    def share(self) -> Interval | None:
        """Share of wrong labels among all pairs; None without a sample."""
        return None if self.reviewed is None else self.reviewed.share().share

    def precision(self, threshold: float) -> Estimate | None:
        """Share of wrong labels among the pairs with p_wrong (as the audit has it) at `threshold`
        or above; None without a sample or such pairs.
        """
        above = np.nan_to_num(self.p) >= threshold
        if self.reviewed is None or not above.any():
            return None
        return self.reviewed.share(above)

    def sentence(self) -> str:
        """The reviews in one line, for summaries and pages."""
        who = plural(len(self.reviewers), "reviewer")
        share = self.share()
        if share is None:
            wrong, judged = self.verdicts.count("wrong"), len(self.verdicts)
            text = f"reviewed: {wrong:,} of {plural(judged, 'judged pair')} are wrong"
            why = "no random sample" if not self.sampled else f"{self.sampled:,} of a random sample"
            return f"{text} ({who}; {why}: too little for a share of all labels)"
        agreeing = ""
        if self.shared:
            agreeing = f" who agree on {self.agreement:.0%}"
            agreeing += f" of {plural(self.shared, 'shared pair')}"
        return (
            f"reviewed: {share.estimate:.1%} of labels are wrong (90 %: {100 * share.low:.1f} to "
            f"{100 * share.high:.1f}, from {plural(self.judgements, 'judgement')} by "
            f"{who}{agreeing})"
        )

    def to_json(self) -> dict[str, Any]:
        """JSON object for summaries and `--json`."""
        share = self.share()
        found: dict[str, Any] = {
            "sentence": self.sentence(),
            "wrong_share": share and share.to_json(),
            "pairs_judged": len(self.verdicts),
            "pairs_sampled": self.sampled,
            "judgements": self.judgements,
            "skipped": self.skipped,
            "reviewers": list(self.reviewers),
            "agreement": self.agreement if self.shared else None,
            "pairs_shared": self.shared,
            "reviewer_error": self.error.interval().to_json() if self.error.known else None,
            "wrong": self.verdicts.count("wrong"),
            "right": self.verdicts.count("right"),
            "undecided": self.verdicts.count("undecided"),
        }
        if self.reviewed is not None:
            found["recalibration"] = self.recalibration_json()
            estimates = {t: self.precision(t) for t in THRESHOLDS}
            found["precision"] = [
                {"threshold": t, "pairs": one.pairs, "judged": one.judged, **one.share.to_json()}
                for t, one in estimates.items()
                if one is not None
            ]
        return found


def votes_of(judged: Sequence[Judged]) -> Votes:
    """Counts of judgements by pair."""
    counts = np.array([one.counts() for one in judged], np.float64).reshape(-1, 3)
    places = np.array([one.place for one in judged], np.int64)
    return Votes(places, *counts.T)


def reviews_of(run: Run) -> RunReviews | None:
    """People's judgements of the pairs of a scored run; None if there are none."""
    if not has_reviews(run):
        return None
    population = read_population(run)
    return read_run_reviews(run, read_p_wrong(run, population), population)


def reviews_of_unwritten(run: Run, p: Float) -> RunReviews | None:
    """People's judgements of the pairs of a run whose scores are not written yet; None if there
    are none. p [N] is p_wrong without reviews, in the order of pairs.parquet.
    """
    if not has_reviews(run):
        return None
    population = read_population(run)
    ordered = np.empty(len(population))
    ordered[population.place] = p
    return read_run_reviews(run, ordered, population)


def read_run_reviews(
    run: Run, p: Float, population: Population | None = None, log: Log | None = None
) -> RunReviews | None:
    """People's judgements of the pairs of `run`, in it or beside it; None where there are none.

    p [N] is p_wrong without reviews, in the order of `Population.keys`.
    """
    if log is None and not has_reviews(run):
        return None
    log = read_reviews(run) if log is None else log
    population = population or read_population(run)
    judged = [one for one in read_judged(run, log, population) if sum(one.counts())]
    return join(judged, log, population, p) if judged else None


def read_latest(run: Run) -> list[Judged]:
    """Pairs with each reviewer's latest answer or decision, without those that all skipped."""
    if not has_reviews(run):
        return []
    log = read_reviews(run)
    judged = read_judged(run, replace(log, answers=log.latest), read_population(run))
    return [one for one in judged if any(answer.answer != "skip" for answer in one.answers)]


def chance_wrong(judged: Sequence[Judged]) -> Float:
    """P(label wrong) [n] by people's answers to each pair; NaN where these decide nothing.

    By Bayes' rule and even odds, whatever the audit suspects: a label that one reviewer found wrong
    is right with their error rate (`checked_error`). 1/2 for pairs to drop. Ties and even votes are
    as likely for a wrong label as for a right one, so the audit's own numbers hold there.
    """
    votes = votes_of(judged)
    against, favour = (side[0] for side in votes.likelihoods(checked_error(error_rate(votes))))
    verdicts = np.array([one.verdict for one in judged], object)
    p = np.where(verdicts == DROP, 0.5, against / (against + favour))
    return np.where(verdicts == UNDECIDED, np.nan, p)


def join(judged: Sequence[Judged], log: Log, population: Population, p: Float) -> RunReviews:
    """Combine judged pairs with the sample that they were drawn in."""
    contents = {answer.content_id: one for one in judged for answer in one.answers}
    votes = votes_of(judged)
    once = votes_of(list(contents.values()))  # copies of a pair share their judgements
    error = error_rate(once)
    agreement, shared = once.agreement
    answers = {answer.id: answer for one in judged for answer in one.answers}
    answered = [answer for answer in answers.values() if answer.answer != "skip"]
    design = sample_of(log, population)
    reviewed, sampled = None, 0
    if design is not None:
        cells = cells_of(design)
        cells[census(judged, log, population)] = CENSUS
        drawn = reached(design, judged, population)[votes.place] | (cells[votes.place] == CENSUS)
        sampled = int((drawn & (cells[votes.place] != CENSUS)).sum())
        if sampled >= FEWEST_SAMPLED:
            reviewed = review(cells, p, votes, drawn=drawn, error=error)
    return RunReviews(
        judged=tuple(judged),
        reviewers=tuple(sorted({answer.reviewer for answer in answered})),
        judgements=len(answered),
        skipped=len(answers) - len(answered),
        sampled=sampled,
        agreement=agreement,
        shared=shared,
        error=error,
        reviewed=reviewed,
        p=p,
    )


def sample_of(log: Log, population: Population) -> Draw | None:
    """The sample of these very pairs with the most answers, the earliest of several."""
    answered: dict[str, int] = {}
    for answer in log.answers:
        answered[answer.draw] = answered.get(answer.draw, 0) + 1
    fitting = [
        draw
        for draw in log.draws.values()
        if draw.purpose == "estimate"
        and draw.population == population.digest
        and len(draw.cells) == len(population)
    ]
    return min(fitting, key=lambda d: (-answered.get(d.id, 0), d.time, d.id), default=None)


def cells_of(draw: Draw) -> Cells:
    """The cell of each pair [N] as drawn; a new array."""
    return np.frombuffer(draw.cells, np.uint8).copy()


def queue_of(draw: Draw, population: Population) -> Places:
    """The sample's order of pairs."""
    coins, again = (uniform(population.keys, draw.seed, salt) for salt in (_COIN, _AGAIN))
    return queue(cells_of(draw), coins, again, draw.seed)


def draw_sample(
    log: Log,
    judged: Sequence[Judged],
    population: Population,
    p: Float,
    *,
    count: int,
    seed: int,
) -> Draw:
    """Draw a sample of about `count` of these pairs; more of it may be reviewed later.

    `seed` should be random: who can choose it can choose the pairs.
    """
    known = np.zeros(len(population), bool)
    known[census(judged, log, population)] = True
    cells = stratify(p, seed, known, strata=strata_for(count))
    return Draw(new_id(), "estimate", population.digest, seed, cells.tobytes())


def census(judged: Sequence[Judged], log: Log, population: Population) -> list[int]:
    """Places of judged pairs that represent themselves alone: those of lists and imports.

    A list asks for its most suspicious pairs in turn and passes by those already judged, which
    therefore belong to it, too, up to where it has come.
    """
    samples = {draw.id for draw in log.draws.values() if draw.purpose == "estimate"}
    listed = {
        one.place for one in judged if any(answer.draw not in samples for answer in one.answers)
    }
    answered = {one.place for one in judged}
    asked = {(answer.draw, answer.pair_id) for one in judged for answer in one.answers}
    for draw in log.draws.values():
        turns = [at for at, pair in enumerate(draw.pairs) if (draw.id, pair) in asked]
        if turns:
            listed |= answered.intersection(population.places(draw.pairs[: turns[-1]]).tolist())
            for place in population.places(draw.pairs[turns[-1] :]).tolist():
                if place not in answered:
                    break
                listed.add(place)
    return sorted(listed)


def reached(draw: Draw, judged: Sequence[Judged], population: Population) -> NDArray[np.bool_]:
    """Pairs [N] that the sample's queue has come to: up to the last one answered for it."""
    order = queue_of(draw, population)
    position = np.full(len(population), -1, np.int64)
    position[order] = np.arange(len(order))
    asked = [a.pair_id for one in judged for a in one.answers if a.draw == draw.id]
    last = int(position[population.places(asked)].max(initial=-1))
    return np.asarray((position >= 0) & (position <= last))
