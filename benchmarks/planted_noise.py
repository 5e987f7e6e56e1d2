"""Plant label noise of eight kinds in labels that are right.

    clean = simulated(2000, seed=0)
    planted = plant(clean, "response", 0.2, seed=0)
    planted.chosen, planted.rejected, planted.wrong

| kind       | wrong are                                                                |
|------------|--------------------------------------------------------------------------|
| uniform    | any labels                                                               |
| careless   | half of the labels of some annotators                                    |
| contrarian | all labels of some annotators                                            |
| response   | labels from scores, some of which belong to another response             |
| prompt     | all labels of some prompts                                               |
| hard, easy | labels of close pairs (of clear ones), twice the rate times a mid-rank   |
| position   | judgements that take the side shown first, where that is the worse one   |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import lsqr
from scipy.stats import rankdata

from noisescope.scoring.pair_facts import PairFacts

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

KINDS = (
    "uniform",
    "careless",
    "contrarian",
    "response",
    "prompt",
    "hard",
    "easy",
    "position",
)


@dataclass(frozen=True)
class Labels:
    """Pairs with features: group -> [R, D]; rows of both sides [N], prompts and annotators [N].

    `score` [R] is how good each response is; `wrong` [N] marks planted errors; `first` [N] is 1
    where the labelled side was shown first, None where the order is unknown.
    """

    name: str
    features: Mapping[str, NDArray[np.float32]]
    chosen: Int
    rejected: Int
    prompts: Int
    annotators: Int
    score: Float
    wrong: Bool
    first: Int | None = None

    @property
    def keys(self) -> NDArray[np.uint64]:
        """A key of each pair, [N]: its two rows, whichever is chosen."""
        low, high = np.minimum(self.chosen, self.rejected), np.maximum(self.chosen, self.rejected)
        return (low * (len(self.score) + 1) + high).astype(np.uint64)

    @property
    def facts(self) -> PairFacts:
        """What an audit would know of the pairs."""
        return PairFacts(
            prompts=self.prompts,
            sides=np.stack([self.chosen, self.rejected], axis=1),
            annotators=self.annotators,
            first=self.first,
        )


def reversed_labels(labels: Labels, wrong: Bool) -> Labels:
    """The labels in `wrong` [N] reversed and marked."""
    return replace(
        labels,
        chosen=np.where(wrong, labels.rejected, labels.chosen),
        rejected=np.where(wrong, labels.chosen, labels.rejected),
        wrong=wrong,
    )


def right(labels: Labels) -> Labels:
    """The labels with the wrong ones reversed: none is wrong."""
    return replace(reversed_labels(labels, labels.wrong), wrong=np.zeros(len(labels.wrong), bool))


def abilities(chosen: Int, rejected: Int, margins: Float, responses: int) -> Float:
    """Scores [R] whose differences are nearest to `margins` [N], ridge 0.1."""
    n = len(chosen)
    signs = np.tile([1.0, -1.0], n)
    ends = np.stack([chosen, rejected], axis=1).ravel()
    matrix = csr_array((signs, ends, np.arange(0, 2 * n + 1, 2)), shape=(n, responses))
    return np.asarray(lsqr(matrix, margins, damp=0.1)[0])


def plant(clean: Labels, kind: str, rate: float, seed: int) -> Labels:
    """Reverse about a share `rate` of clean labels in the way of `kind`."""
    rng = np.random.default_rng([seed, KINDS.index(kind), round(1000 * rate)])
    n = len(clean.chosen)
    if rate == 0:
        return reversed_labels(clean, np.zeros(n, bool))
    if kind == "uniform":
        return reversed_labels(clean, rng.random(n) < rate)
    if kind == "careless":
        bad = rng.random(int(clean.annotators.max()) + 1) < 2 * rate
        return reversed_labels(clean, bad[clean.annotators] & (rng.random(n) < 0.5))
    if kind == "contrarian":
        bad = rng.random(int(clean.annotators.max()) + 1) < rate
        return reversed_labels(clean, bad[clean.annotators])
    if kind == "response":
        return reversed_labels(clean, _rescored(clean, rate, rng))
    if kind == "prompt":
        names, codes = np.unique(clean.prompts, return_inverse=True)
        bad = np.isin(
            np.arange(len(names)), rng.permutation(len(names))[: round(rate * len(names))]
        )
        return reversed_labels(clean, bad[codes])
    if kind in ("hard", "easy"):
        gap = np.abs(clean.score[clean.chosen] - clean.score[clean.rejected])
        rank = (rankdata(gap) - 0.5) / n
        return reversed_labels(
            clean, rng.random(n) < 2 * rate * (1 - rank if kind == "hard" else rank)
        )
    better_first, lazy = rng.random(n) < 0.5, rng.random(n) < 2 * rate
    noisy = reversed_labels(clean, lazy & ~better_first)
    return replace(noisy, first=(better_first | lazy).astype(np.int64))


def _rescored(clean: Labels, rate: float, rng: np.random.Generator) -> Bool:
    """Labels against exchanged scores of as many responses as it takes for a share `rate`."""
    order, other = rng.permutation(len(clean.score)), rng.permutation(clean.score)
    low, high = 0.0, 1.0
    wrong = np.zeros(len(clean.chosen), bool)
    for _ in range(20):
        share = (low + high) / 2
        some = order[: int(share * len(order))]
        score, touched = clean.score.copy(), np.zeros(len(order), bool)
        score[some], touched[some] = other[some], True
        wrong = (touched[clean.chosen] | touched[clean.rejected]) & (
            score[clean.chosen] < score[clean.rejected]
        )
        low, high = (share, high) if wrong.mean() < rate else (low, share)
    return wrong


def simulated(pairs: int, seed: int, *, width: int = 16, annotators: int = 40) -> Labels:
    """Clean labels of simulated responses: prompts of 8 responses, features that explain most."""
    rng = np.random.default_rng([seed, pairs])
    each = 8
    left, right = np.triu_indices(each, 1)
    prompts = -(-pairs // len(left))
    x = rng.normal(size=(prompts * each, width))
    score = x @ rng.normal(size=width) / np.sqrt(width) + 0.4 * rng.normal(size=len(x))
    a = (np.arange(prompts)[:, None] * each + left).ravel()[:pairs]
    b = (np.arange(prompts)[:, None] * each + right).ravel()[:pairs]
    better = score[a] > score[b]
    return Labels(
        name=f"simulated {pairs:,}",
        features={"x": x.astype(np.float32)},
        chosen=np.where(better, a, b),
        rejected=np.where(better, b, a),
        prompts=a // each,
        annotators=rng.integers(0, annotators, pairs),
        score=score,
        wrong=np.zeros(pairs, bool),
    )
