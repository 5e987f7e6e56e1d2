"""Define kinds of label errors: the chance that each of N labels is flipped.

    chance = chance_of(FlipPlan(0.2, "prompt"), lambda: iter([labels]))
    decide(labels, plan, chance)                # [N], which labels are flipped

`flip`, `validate` and the benchmarks plant errors by these definitions. With r the rate, F(g) the
mid-rank share of g = |score or margin gap| of a pair, and hashes h in [0, 1) of the seed:

    uniform     r
    hard        2 r (1 - F(g)): close pairs most
    easy        2 r F(g): clear pairs most
    long        r / q if the rejected side is the longer one (a share q of pairs), else 0
    position    r / q if the rejected side was shown first (a share q of pairs), else 0
    annotator   1/2 for all labels of annotators who gave a share 2 r of the labels, else 0
    contrarian  1 for all labels of annotators who gave a share r of the labels, else 0
    prompt      1 for all pairs of prompts that have a share r of the pairs, else 0
    response    1 if perturbed scores reverse the pair, else 0

each of which is r on average. Annotators and prompts are drawn in the order of their hash, until
their pairs are as near to that share as whole groups come. For `response` the score of every
response has an error s z, z = +-(h / (1 - h))^2 a function of (seed, response), so most scores are
nearly right and a few are far off in all of their pairs. A pair with gap g is reversed where
s (z_rejected - z_chosen) > g, and s is such that a share r of all pairs is. Where responses do not
recur that is an error of single pairs, as `prompt` is where each prompt has one pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import UsageError
from noisescope.pairs import uniform

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
U64 = NDArray[np.uint64]

#: Salts that keep the draws of a pair, an annotator, a prompt and a response independent.
COIN, _CARE, _PROMPT, _ERROR, _SIGN = 11, 12, 13, 14, 15
_BINS = 1 << 16


class Labelled(Protocol):
    """What the kinds depend on, of N labelled pairs; hashes are equal for equal content."""

    @property
    def keys(self) -> U64:
        """Hash of each pair, [N]."""

    @property
    def annotators(self) -> U64:
        """Hash of who labelled it, [N], 0 if unknown."""

    @property
    def prompts(self) -> U64:
        """Hash of each prompt, [N]."""

    @property
    def sides(self) -> U64:
        """Hashes of the responses with their prompt, [N, 2], the labelled side first."""

    @property
    def gaps(self) -> Float:
        """|distance between the sides|, [N], inf if unknown. Raises UsageError if none is known."""

    @property
    def longer(self) -> Bool:
        """Whether the rejected side is the longer one, [N]."""

    @property
    def second(self) -> NDArray[np.int8]:
        """1 if the rejected side was shown first, 0 if the labelled one was, -1 unknown, [N]."""


L = TypeVar("L", bound=Labelled)
#: Probability of a flip for each pair, [N].
Chance = Callable[[L], Float]
#: Reads all pairs once, in chunks.
Survey = Callable[[], Iterator[L]]


def uniform_chance(rate: float, seed: int, survey: Survey[L]) -> Chance[L]:
    """Flip every label with probability `rate`."""
    return lambda chunk: np.full(len(chunk.keys), rate)


def hard_chance(rate: float, seed: int, survey: Survey[L]) -> Chance[L]:
    """Flip close pairs most: 2 r (1 - F(g))."""
    share = _mid_ranks(survey)
    return lambda chunk: 2 * rate * (1 - share[_bins(chunk.gaps)])


def easy_chance(rate: float, seed: int, survey: Survey[L]) -> Chance[L]:
    """Flip clear pairs most: 2 r F(g)."""
    share = _mid_ranks(survey)
    return lambda chunk: 2 * rate * share[_bins(chunk.gaps)]


def _mid_ranks(survey: Survey[L]) -> Float:
    """F by bin, from counts of g in half precision: constant memory, exact with ties."""
    counts = np.zeros(_BINS, np.int64)
    for chunk in survey():
        counts += np.bincount(_bins(chunk.gaps), minlength=_BINS)
    return np.asarray((np.cumsum(counts) - counts / 2) / max(counts.sum(), 1))


def _bins(gaps: Float) -> NDArray[np.int64]:
    """Order-preserving bins of values >= 0: the bits of their half-precision form."""
    return np.minimum(gaps, 65504.0).astype(np.float16).view(np.uint16).astype(np.int64)


def long_chance(rate: float, seed: int, survey: Survey[L]) -> Chance[L]:
    """Flip labels for the shorter side, so that errors favour length."""
    share = _share(survey, lambda chunk: chunk.longer)
    part = _part(rate, share, "prefer the shorter response")
    return lambda chunk: np.where(chunk.longer, part, 0.0)


def position_chance(rate: float, seed: int, survey: Survey[L]) -> Chance[L]:
    """Flip labels for the side shown second, so that errors favour the first.

    Raises UsageError if the order of the sides is not known.
    """
    share = _share(survey, lambda chunk: chunk.second == 1)
    if not share:
        raise UsageError(
            "position flips need the order in which the sides were shown: no pair is known to "
            "prefer the side shown second",
            hint="Read two sides and a verdict: --columns a=FIRST,b=SECOND,preference=VERDICT",
        )
    part = _part(rate, share, "prefer the side shown second")
    return lambda chunk: np.where(chunk.second == 1, part, 0.0)


def _share(survey: Survey[L], eligible: Callable[[L], Bool]) -> float:
    """The share of eligible labels."""
    found = total = 0
    for chunk in survey():
        found += int(eligible(chunk).sum())
        total += len(chunk.keys)
    return found / max(total, 1)


def _part(rate: float, share: float, which: str) -> float:
    """r / q for the share q of eligible labels. Raises UsageError if there are too few."""
    if rate > share:
        raise UsageError(
            f"only {share:.1%} of the labels {which}, so {rate:.1%} of all cannot be flipped",
            hint=_most(share),
        )
    return rate / max(share, 1e-300)


def _most(share: float) -> str:
    """The largest rate that can be typed, to two digits; another kind where there is none."""
    if share <= 0:
        return "Use another --kind: uniform flips any label."
    digits = max(1 - math.floor(math.log10(share)), 2)
    return f"Use --rate {math.floor(share * 10**digits) / 10**digits:g} or less."


def annotator_chance(rate: float, seed: int, survey: Survey[L]) -> Chance[L]:
    """Flip half of the labels of careless annotators."""
    careless = _drawn(2 * rate, seed, survey, lambda chunk: chunk.annotators, _CARE, "annotators")
    return lambda chunk: np.where(careless(chunk) > 0, 0.5, 0.0)


def contrarian_chance(rate: float, seed: int, survey: Survey[L]) -> Chance[L]:
    """Flip all labels of contrarian annotators."""
    return _drawn(rate, seed, survey, lambda chunk: chunk.annotators, _CARE, "annotators")


def prompt_chance(rate: float, seed: int, survey: Survey[L]) -> Chance[L]:
    """Flip all pairs of some prompts."""
    return _drawn(rate, seed, survey, lambda chunk: chunk.prompts, _PROMPT, "prompts")


def _drawn(
    share: float, seed: int, survey: Survey[L], of: Callable[[L], U64], salt: int, what: str
) -> Chance[L]:
    """1 for the pairs of drawn groups, which have about a `share` of all pairs; 8 bytes a pair.

    Raises UsageError if whole groups come no nearer to the share than half of it.
    """
    keys = np.concatenate([np.empty(0, np.uint64), *(of(chunk) for chunk in survey())])
    names, counts = np.unique(keys[keys != 0], return_counts=True)
    if not len(names):
        raise UsageError(
            f"flips by {what} need {what}, and no pair names one",
            hint=f"Name the column: --columns {what.removesuffix('s')}=COLUMN",
        )
    hashes = uniform(names, seed, salt)
    order = np.argsort(hashes)
    total = np.concatenate([[0], np.cumsum(counts[order])]) / len(keys)
    count = int(np.argmin(np.abs(total - share)))
    if abs(total[count] - share) > share / 2:
        raise UsageError(
            f"whole {what} come no nearer to {share:.1%} of the labels than {total[count]:.1%}: "
            f"the {len(names):,} {what} have {counts.min() / len(keys):.1%} to "
            f"{counts.max() / len(keys):.1%} of the labels each",
            hint="Use a different --rate or --seed, or --kind uniform.",
        )
    limit = hashes[order[count - 1]] if count else -1.0

    def chance(chunk: L) -> Float:
        groups = of(chunk)
        return np.where((groups != 0) & (uniform(groups, seed, salt) <= limit), 1.0, 0.0)

    return chance


def response_chance(rate: float, seed: int, survey: Survey[L]) -> Chance[L]:
    """Flip the pairs that perturbed scores reverse; 8 bytes a pair.

    Raises UsageError if too few pairs have a gap that any error could reverse.
    """
    needed = np.concatenate([np.empty(0), *(_needed(chunk, seed) for chunk in survey())])
    count = round(rate * len(needed))
    possible = int(np.isfinite(needed).sum())
    if count > possible:
        raise UsageError(
            f"errors of scores can reverse {possible / len(needed):.1%} of the labels, not "
            f"{rate:.1%}: half of those that have scores",
            hint=_most(possible / len(needed)),
        )
    scale = np.partition(needed, count - 1)[count - 1] if count else -1.0
    return lambda chunk: (_needed(chunk, seed) <= scale).astype(np.float64)


def _needed(chunk: Labelled, seed: int) -> Float:
    """The least scale s of the errors at which the scores of a pair are reversed, [N]."""
    own, other = _errors(chunk.sides, seed).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(other > own, chunk.gaps / (other - own), np.inf)


def _errors(responses: U64, seed: int) -> Float:
    """z of each response: +-(h / (1 - h))^2, with the median |z| 1 and tails of power 1/2."""
    h = uniform(responses, seed, _ERROR)
    sign = np.where(uniform(responses, seed, _SIGN) < 0.5, -1.0, 1.0)
    return np.asarray(sign * np.square(h / (1 - h)))


#: --kind -> how the chances are made.
KINDS: dict[str, Callable[[float, int, Survey[Any]], Chance[Any]]] = {
    "uniform": uniform_chance,
    "hard": hard_chance,
    "easy": easy_chance,
    "long": long_chance,
    "annotator": annotator_chance,
    "contrarian": contrarian_chance,
    "response": response_chance,
    "prompt": prompt_chance,
    "position": position_chance,
}
#: In words: which labels are wrong.
WORDS = {
    "uniform": "any labels",
    "hard": "labels of close pairs",
    "easy": "labels of clear pairs",
    "long": "labels moved to the longer side",
    "annotator": "half of the labels of some annotators",
    "contrarian": "all labels of some annotators",
    "response": "labels from scores with errors",
    "prompt": "all labels of some prompts",
    "position": "labels moved to the side shown first",
}
#: Kinds whose chances reach 1, so that the rate may too.
UP_TO_ONE = ("uniform", "contrarian", "prompt")
