"""What an evaluation is made of: prompts, two outputs for each, and judges that compare them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

from noisescope.pairs import Message, Modality, digest

#: A response, or the bytes of a PNG.
Output = str | bytes
#: What a judge that is shown two outputs may say of them, or why it said nothing.
FIRST, SECOND, TIE, UNPARSABLE, FAILED = "first", "second", "tie", "unparsable", "failed"


@final
@dataclass(frozen=True, slots=True)
class Prompt:
    """What both models are asked. `turns` holds a conversation, `text` the same to read."""

    text: str
    turns: tuple[Message, ...] | None = None

    @property
    def key(self) -> str:
        """Identity of the prompt: what noise, batches and stored outputs are keyed by."""
        said = (f"{turn.role}\0{turn.content}" for turn in self.turns or ())
        return digest("prompt", self.text, *said)


@final
@dataclass(frozen=True, slots=True)
class Duel:
    """One prompt and what the policy and its opponent made of it."""

    prompt: Prompt
    policy: Output
    against: Output


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge found: `outcome` 1 (policy better), 0.5 (tie), 0 (opponent), None (unjudged).

    `policy` and `against` are scores, higher is better, of judges that see one output at a time.
    `told` is what a judge of two outputs said with the policy's first, then with it second.
    `retries` counts requests that had to be repeated.
    """

    outcome: float | None
    policy: float | None = None
    against: float | None = None
    told: tuple[str, ...] = ()
    retries: int = 0


@final
@dataclass(frozen=True)
class JudgeCard:
    """Which judge: its name, its model, under which licence, and what it sees.

    `fingerprint` changes with weights, prompts and settings: scores are stored under it. Higher
    scores are better for every judge.
    """

    name: str
    model: str
    licence: str
    modality: Modality
    fingerprint: str
    is_pairwise: bool = False


class Judge(Protocol):
    """Compares outputs. `judge` may be called with any number of duels, in any split."""

    @property
    def card(self) -> JudgeCard: ...

    def cost(self, duels: int) -> str:
        """What judging so many duels takes beside this machine's time; empty if nothing."""

    def judge(self, duels: Sequence[Duel]) -> list[Verdict]:
        """A verdict a duel, in order. Raises ModelError or UsageError, never invents one."""


def by_score(policy: Sequence[float], against: Sequence[float]) -> list[Verdict]:
    """Verdicts from two scores a duel: the higher wins, equal scores tie, NaN is unjudged."""
    return [_by_score(mine, theirs) for mine, theirs in zip(policy, against, strict=True)]


def _by_score(mine: float, theirs: float) -> Verdict:
    if not (math.isfinite(mine) and math.isfinite(theirs)):
        return Verdict(None)
    outcome = 0.5 if mine == theirs else float(mine > theirs)
    return Verdict(outcome, float(mine), float(theirs))


def by_order(told: Sequence[str], retries: int = 0) -> Verdict:
    """Verdict of a judge asked twice, the policy's output first, then second.

    Both answers name the policy: it wins; both the opponent: it loses; anything else that was
    understood is a tie. An answer that was not understood leaves the duel unjudged.
    """
    kept = tuple(told)
    if any(answer in (UNPARSABLE, FAILED) for answer in kept):
        return Verdict(None, told=kept, retries=retries)
    outcome = {(FIRST, SECOND): 1.0, (SECOND, FIRST): 0.0}.get((kept[0], kept[1]), 0.5)
    return Verdict(outcome, told=kept, retries=retries)
