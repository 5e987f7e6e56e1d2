"""How far annotators agree, from several votes on the same pair; needs no model.

found = agreement(load("votes.parquet").table)
found.accuracy, found.not_unanimous, found.alpha, found.by_annotator

A vote is one row: an annotator prefers one side of a content. n annotators judge a content, k of
them prefer the side that sorts first. Every number over the whole crowd is a function of how
many contents have each (n, k), so a bootstrap over contents draws those few counts. The paper's
Fig. 2 (arXiv 2503.16921) shows the same two things: accuracy and inconsistency of annotators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import DataError
from noisescope.scoring.metrics import MASS, Interval, share

if TYPE_CHECKING:
    import pyarrow as pa

Int = NDArray[np.int64]
Float = NDArray[np.float64]

#: Draws of the bootstrap.
DRAWS = 2000


@final
@dataclass(frozen=True)
class Votes:
    """V votes: content [V] and annotator [V] codes from 0; first [V]: 1 where the chosen side
    sorts before the rejected one, else 0. names [A] of the annotators, unnamed rows omitted.
    """

    content: Int
    annotator: Int
    first: Int
    names: tuple[str, ...]
    unnamed: int = 0


@final
@dataclass(frozen=True)
class AnnotatorAgreement:
    """One annotator: votes that a majority of the others judges, and the share that agrees."""

    name: str
    judged: int
    right: int
    accuracy: Interval

    def to_json(self) -> dict[str, object]:
        """JSON object with the interval beside the counts."""
        counts = {"annotator": self.name, "judged": self.judged, "right": self.right}
        return counts | {"accuracy": self.accuracy.to_json()}


@final
@dataclass(frozen=True)
class Agreement:
    """Agreement among annotators; every Interval is 90 %, by bootstrap over contents.

    `contents` are distinct pairs, `shared` those with two annotators or more, `opinions` one
    view an annotator and shared content; `undecided` annotators contradicted themselves evenly
    and hold none. `judged` opinions face a majority of the others, the rest of them a split.
    `self_consistency` is None where nobody judged a pair twice; `repeats` counts who did.
    `patterns` [P, 3]: n, k and how many shared contents have them.
    """

    votes: int
    unnamed: int
    annotators: int
    contents: int
    shared: int
    opinions: int
    undecided: int
    judged: int
    accuracy: Interval | None
    not_unanimous: Interval
    pairwise: Interval
    alpha: Interval
    repeats: int
    self_consistency: Interval | None
    by_annotator: tuple[AnnotatorAgreement, ...]
    patterns: Int

    def to_json(self) -> dict[str, object]:
        """JSON object; annotators least accurate first, contents counted by (n, k)."""
        counts = ("votes", "unnamed", "annotators", "contents", "shared", "opinions", "undecided")
        record: dict[str, object] = {name: getattr(self, name) for name in (*counts, "judged")}
        record["repeats"] = self.repeats
        for name in ("accuracy", "not_unanimous", "pairwise", "alpha", "self_consistency"):
            interval: Interval | None = getattr(self, name)
            record[name] = interval.to_json() if interval else None
        record["patterns"] = [
            {"annotators": int(n), "first": int(k), "contents": int(count)}
            for n, k, count in self.patterns
        ]
        return record | {"by_annotator": [row.to_json() for row in self.by_annotator]}


def votes_of(table: pa.Table) -> Votes:
    """The votes of a pairs table (`pairs_schema`). Raises DataError where nobody is named."""
    names = np.asarray(table["annotator"].to_pylist(), dtype=object)
    named = np.array([name is not None for name in names], dtype=bool)
    if not named.any():
        raise DataError(
            "the dataset names no annotators",
            hint="Agreement needs one row a vote, with an `annotator` column (Pick-a-Pic: user_id, "
            "HPDv2: user_hash). Without names, `noisescope score DATASET` estimates the flip rate.",
        )
    ids = np.asarray(table["content_id"].to_pylist(), dtype=object)[named]
    sides = zip(table["chosen"].to_pylist(), table["rejected"].to_pylist(), strict=True)
    first = np.array([chosen < rejected for chosen, rejected in sides], dtype=np.int64)[named]
    known, annotator = np.unique(names[named].astype(str), return_inverse=True)
    content = np.unique(ids.astype(str), return_inverse=True)[1]
    firsts = tuple(known.tolist())
    return Votes(content, annotator, first, firsts, int((~named).sum()))


def opinions(votes: Votes) -> tuple[Votes, int]:
    """One vote an annotator and content: the majority of their own; and how many have none."""
    key = votes.annotator * (int(votes.content.max()) + 1) + votes.content
    _, where, code, count = np.unique(
        key, return_index=True, return_inverse=True, return_counts=True
    )
    lead = 2 * np.bincount(code, votes.first).astype(np.int64) - count
    held = lead != 0
    where, view = where[held], (lead[held] > 0).astype(np.int64)
    one = Votes(votes.content[where], votes.annotator[where], view, votes.names, votes.unnamed)
    return one, int((~held).sum())


def judged_by_others(n: Int, k: Int, first: Int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(judged, right) of a vote `first` among n, k of them 1: against the majority of the rest.

    lead = 2 (k - v) - (n - 1) over the n - 1 others; no majority, no judgement, where it is 0.
    Leaving the vote itself out keeps it from agreeing with itself.
    """
    lead = 2 * (k - first) - (n - 1)
    return lead != 0, np.where(first == 1, lead > 0, lead < 0)


def accuracy(n: Int, k: Int, weight: Float) -> Float:
    """Share of judged votes that agree with the majority of the others; weight [..., P] contents.

    NaN where no vote faces a majority.
    """
    judged, right = np.zeros(len(n)), np.zeros(len(n))
    for value, count in ((1, k), (0, n - k)):
        can, agrees = judged_by_others(n, k, np.full(len(n), value))
        judged += count * can
        right += count * agrees
    with np.errstate(invalid="ignore"):
        return np.asarray((weight @ right) / (weight @ judged), dtype=np.float64)


def not_unanimous(n: Int, k: Int, weight: Float) -> Float:
    """Share of contents whose annotators do not all agree: 0 < k < n."""
    split = ((k > 0) & (k < n)).astype(np.float64)
    return np.asarray((weight @ split) / weight.sum(axis=-1), dtype=np.float64)


def pairwise(n: Int, k: Int, weight: Float) -> Float:
    """Share of pairs of annotators that agree on a content, all such pairs alike:

    sum_u [C(k, 2) + C(n - k, 2)] / sum_u C(n, 2).
    """
    agreeing = (k * (k - 1) + (n - k) * (n - k - 1)) / 2
    return np.asarray((weight @ agreeing) / (weight @ (n * (n - 1) / 2)), dtype=np.float64)


def krippendorff(n: Int, k: Int, weight: Float) -> Float:
    """Krippendorff's alpha, nominal, two values, any number of votes a unit (2011, section C).

    alpha = 1 - (N - 1) o_01 / (n_0 n_1), with coincidences o_01 = sum_u k (n - k) / (n - 1),
    n_1 = sum_u k, n_0 = sum_u (n - k), N = n_0 + n_1, over units with n >= 2. weight [..., P]
    units have each (n, k). NaN where one value never occurs. 1: all agree; 0: as by chance.
    """
    coincident = weight @ (k * (n - k) / (n - 1))
    ones, zeros = weight @ k.astype(np.float64), weight @ (n - k).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - (ones + zeros - 1) * coincident / (ones * zeros), dtype=np.float64)


def alpha(n: Int, k: Int, weight: Float) -> Float:
    """Krippendorff's alpha of pairs. A pair has no first side, so each counts both ways round.

    Both values are then equally common, and naming the sides otherwise changes nothing.
    """
    both = np.concatenate([weight, weight], axis=-1)
    return krippendorff(np.concatenate([n, n]), np.concatenate([k, n - k]), both)


Statistic = Callable[[Int, Int, Float], Float]


def bootstrap(statistic: Statistic, patterns: Int, seed: int, draws: int = DRAWS) -> Interval:
    """The statistic with its 90 % percentile interval over contents (Efron 1979).

    patterns [P, 3] holds n, k and a count of contents. To draw C contents with replacement is to
    draw the P counts from a multinomial.
    """
    n, k, count = patterns.T
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(int(count.sum()), count / count.sum(), size=draws)
    spread = statistic(n, k, drawn.astype(np.float64))
    low, high = np.nanquantile(spread, [(1 - MASS) / 2, (1 + MASS) / 2])
    estimate = float(statistic(n, k, count.astype(np.float64)))
    return Interval(estimate, float(min(low, estimate)), float(max(high, estimate)))


def agreement(table: pa.Table, *, seed: int = 0) -> Agreement:
    """All of it, of a pairs table. Raises DataError where no two annotators judged one content."""
    votes = votes_of(table)
    held, undecided = opinions(votes)
    contents = int(votes.content.max()) + 1
    n = np.bincount(held.content, minlength=contents)
    k = np.bincount(held.content, held.first, contents).astype(np.int64)
    shared = n >= 2
    if not shared.any():
        raise DataError(
            f"no pair is judged by two annotators: {len(votes.content):,} votes on {contents:,} "
            f"pairs by {len(votes.names):,} annotators",
            hint="Agreement needs the raw votes, one row a vote, with the same prompt and sides in "
            "each. From one label a pair, `noisescope score DATASET` estimates every annotator's "
            "flip rate.",
        )
    patterns = _counted(n[shared], k[shared])
    judged = judged_by_others(n[held.content], k[held.content], held.first)[0] & (
        n[held.content] >= 2
    )
    repeated = _repeats(votes)
    return Agreement(
        votes=len(votes.content),
        unnamed=votes.unnamed,
        annotators=len(votes.names),
        contents=contents,
        shared=int(shared.sum()),
        opinions=int(n[shared].sum()),
        undecided=undecided,
        judged=int(judged.sum()),
        accuracy=bootstrap(accuracy, patterns, seed) if judged.any() else None,
        not_unanimous=bootstrap(not_unanimous, patterns, seed),
        pairwise=bootstrap(pairwise, patterns, seed),
        alpha=bootstrap(alpha, patterns, seed),
        repeats=int(repeated[:, 2].sum()),
        self_consistency=bootstrap(pairwise, repeated, seed) if len(repeated) else None,
        by_annotator=_by_annotator(held, n, k),
        patterns=patterns,
    )


def _counted(n: Int, k: Int) -> Int:
    """[P, 3]: each distinct (n, k) and how often it occurs."""
    rows, count = np.unique(np.stack([n, k], axis=1), axis=0, return_counts=True)
    return np.concatenate([rows, count[:, None]], axis=1)


def _repeats(votes: Votes) -> Int:
    """[P, 3]: votes and first-side votes of an annotator who judged one content more than once."""
    key = votes.annotator * (int(votes.content.max()) + 1) + votes.content
    _, code, n = np.unique(key, return_inverse=True, return_counts=True)
    k = np.bincount(code, votes.first).astype(np.int64)
    return _counted(n[n >= 2], k[n >= 2])


def _by_annotator(held: Votes, n: Int, k: Int) -> tuple[AnnotatorAgreement, ...]:
    """Annotators with a judged vote, least accurate first, Wilson intervals."""
    can, agrees = judged_by_others(n[held.content], k[held.content], held.first)
    can &= n[held.content] >= 2
    judged = np.bincount(held.annotator, can, len(held.names)).astype(np.int64)
    right = np.bincount(held.annotator, can & agrees, len(held.names)).astype(np.int64)
    rows: list[Any] = [
        AnnotatorAgreement(name, int(of), int(ok), share(int(ok), int(of)))
        for name, of, ok in zip(held.names, judged, right, strict=True)
        if of
    ]
    return tuple(sorted(rows, key=lambda row: (row.accuracy.estimate, -row.judged, row.name)))
