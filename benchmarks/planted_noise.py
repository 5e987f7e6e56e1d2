"""Plant label noise in labels that are right, by the kinds of `noisescope.datasets.flip.kinds`.

clean = simulated(2000, seed=0)
planted = plant(clean, "response", 0.2, seed=0)
planted.chosen, planted.rejected, planted.wrong
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import lsqr
from scipy.special import ndtri

from noisescope.datasets.flip.plan import FlipPlan, chance_of, decide
from noisescope.pairs import uniform
from noisescope.scoring.pair_facts import PairFacts

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]
U64 = NDArray[np.uint64]

KINDS = (
    "uniform",
    "annotator",
    "contrarian",
    "response",
    "prompt",
    "hard",
    "easy",
    "position",
)
#: Salt of the order in which sides are shown.
_SHOWN = 21


@dataclass(frozen=True)
class Traits:
    """What kinds of noise depend on, of N pairs: see `noisescope.datasets.flip.kinds.Labelled`."""

    keys: U64
    annotators: U64
    prompts: U64
    sides: U64
    gaps: Float
    longer: Bool
    second: NDArray[np.int8]


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
    def keys(self) -> U64:
        """A key of each pair, [N]: its two rows, whichever is chosen."""
        low, high = np.minimum(self.chosen, self.rejected), np.maximum(self.chosen, self.rejected)
        return (low * (len(self.score) + 1) + high).astype(np.uint64)

    @property
    def traits(self) -> Traits:
        """What kinds of noise depend on."""
        gaps = np.abs(self.score[self.chosen] - self.score[self.rejected])
        order = np.full(len(gaps), -1) if self.first is None else 1 - self.first
        return Traits(
            keys=np.arange(1, len(gaps) + 1).astype(np.uint64),
            annotators=(self.annotators + 1).astype(np.uint64),
            prompts=(self.prompts + 1).astype(np.uint64),
            sides=np.stack([self.chosen, self.rejected], axis=1).astype(np.uint64),
            gaps=gaps,
            longer=np.zeros(len(gaps), bool),
            second=order.astype(np.int8),
        )

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
    first = None if labels.first is None else np.where(wrong, 1 - labels.first, labels.first)
    return replace(
        labels,
        first=first,
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
    if kind == "position":
        clean = shown(clean, seed)
    plan, traits = FlipPlan(rate, kind, seed), clean.traits
    return reversed_labels(clean, decide(traits, plan, chance_of(plan, lambda: iter([traits]))))


def graded(wrong: Bool, accuracy: float, seed: int) -> NDArray[np.float32]:
    """Numbers [N, 1] of a judge who is as sure as it is right: log odds N(mu, 2 mu) for the truth.

    It is right about a share `accuracy` = Phi(sqrt(mu / 2)) of the pairs, independently of the
    errors, which it finds with AUROC Phi(sqrt(mu)).
    """
    mu = 2 * float(ndtri(accuracy)) ** 2
    drawn = np.random.default_rng([seed, 77]).normal(np.where(wrong, -mu, mu), np.sqrt(2 * mu))
    return drawn[:, None].astype(np.float32)


def shown(labels: Labels, seed: int) -> Labels:
    """The labels with an order of sides, drawn."""
    first = uniform(labels.traits.keys, seed, _SHOWN) < 0.5
    return replace(labels, first=first.astype(np.int64))


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
