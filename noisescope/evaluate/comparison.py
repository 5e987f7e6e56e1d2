"""Types of an evaluation: prompts, two outputs for each, verdicts, and the judge protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

from noisescope.pairs import Message, Modality, digest

#: A response, or the bytes of a PNG.
Output = str | bytes
#: Answers of a judge that sees two outputs, or the reason why there is none.
FIRST, SECOND, TIE, UNPARSABLE, FAILED = "first", "second", "tie", "unparsable", "failed"


@final
@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. `turns` is set for a conversation; `text` is then the same as plain text."""

    text: str
    turns: tuple[Message, ...] | None = None

    @property
    def key(self) -> str:
        """Identity of the prompt: noise, batches and stored outputs are keyed by it."""
        turns = (f"{turn.role}\0{turn.content}" for turn in self.turns or ())
        return digest("prompt", self.text, *turns)


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt with the output of the policy and that of its opponent."""

    prompt: Prompt
    policy: Output
    against: Output


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict: `outcome` 1 (policy better), 0.5 (tie), 0 (opponent better), None (unjudged).

    `policy` and `against` are the scores (higher is better) of a judge that sees one output at a
    time. `answers` are those of a judge that sees both outputs: with the policy's first, then with
    it second. `retries` counts repeated requests.
    """

    outcome: float | None
    policy: float | None = None
    against: float | None = None
    answers: tuple[str, ...] = ()
    retries: int = 0


@final
@dataclass(frozen=True)
class JudgeCard:
    """Describe a judge: name, model, licence, and modality of the outputs it judges.

    `fingerprint` covers weights, prompts and settings; scores are stored under it.
    """

    name: str
    model: str
    licence: str
    modality: Modality
    fingerprint: str
    is_pairwise: bool = False


class Judge(Protocol):
    """Compares outputs. `judge` may be called with any number of comparisons, in any batches."""

    @property
    def card(self) -> JudgeCard: ...

    def cost(self, comparisons: int) -> str:
        """Describe the cost beyond local computation, such as requests; empty if none."""

    def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Return one verdict per comparison, in order. Raises ModelError or UsageError."""


def by_score(policy: Sequence[float], against: Sequence[float]) -> list[Verdict]:
    """Turn pairs of scores into verdicts: the higher wins, equal scores tie, NaN is unjudged."""
    return [_by_score(mine, theirs) for mine, theirs in zip(policy, against, strict=True)]


def _by_score(mine: float, theirs: float) -> Verdict:
    if not (math.isfinite(mine) and math.isfinite(theirs)):
        return Verdict(None)
    outcome = 0.5 if mine == theirs else float(mine > theirs)
    return Verdict(outcome, float(mine), float(theirs))


def by_order(answers: Sequence[str], retries: int = 0) -> Verdict:
    """Combine a judge's two answers, with the policy's output shown first, then second.

    If both name the policy it wins, if both name the opponent it loses; other valid answers are a
    tie. An answer that failed or could not be parsed leaves the comparison unjudged.
    """
    kept = tuple(answers)
    if any(answer in (UNPARSABLE, FAILED) for answer in kept):
        return Verdict(None, answers=kept, retries=retries)
    outcome = {(FIRST, SECOND): 1.0, (SECOND, FIRST): 0.0}.get((kept[0], kept[1]), 0.5)
    return Verdict(outcome, answers=kept, retries=retries)
