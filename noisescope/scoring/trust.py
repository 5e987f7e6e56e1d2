"""Decide how far an audit can be trusted: one word, its reason, and what would help.

    found = judge_trust(TrustFacts(...))
    found.word, found.sentence, found.acts

| word        | when (the first that holds)                                                      |
|-------------|----------------------------------------------------------------------------------|
| cannot know | the margins do not test the labels: no better than chance, in-sample, a mark, a  |
|             | length or a source that gives the labels away, or pooled fits that held-out ones |
|             | contradict                                                                       |
| too weak    | expected AUROC may be below `WEAK`, held-out accuracy may be 1/2, there are fewer |
|             | than `FEWEST` pairs, or reviewers found most of the labels with p_wrong >= 0.5    |
|             | right                                                                             |
| good        | expected AUROC is at least `GOOD`, and the flip rate is identifiable or reviewed  |
| fair        | the order can be trusted, the counts less so                                     |

"May be": the low end of the 90 % interval. Why `WEAK` is .70: with equal normal distributions of
scores and 13 % wrong labels (what crowds make at best), half of even the most suspicious 1 % are
right at that AUROC, so that changing labels does as much harm as good. Reviewers who found most of
the labels with p_wrong >= 0.5 wrong overrule "too weak".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, final

from noisescope.scoring.contrasts import POOLED, Contrast, differ
from noisescope.scoring.flip_rate import FlipRate
from noisescope.scoring.metrics import Interval
from noisescope.scoring.sources import CIRCULAR, SourceReport
from noisescope.scoring.triads import Triads

Word = Literal["good", "fair", "too weak to change labels", "cannot know"]

#: The word for an audit that may rank single labels too poorly.
WEAK_WORD: Final = "too weak to change labels"
#: Expected AUROC whose interval must not reach below these.
WEAK, GOOD = 0.70, 0.80
#: Judged pairs from which on reviews overrule the audit, and pairs from which on it counts.
FEWEST_JUDGED = FEWEST = 20
#: Fewest prompts, held out whole, whose reversals can distinguish a judge from a coin.
FEWEST_PROMPTS = 8

MODEL = "a larger judge: noisescope score DATASET --model MODEL"
PAIRS = "more pairs: some thousands"
POOL = "if labels are independent votes: noisescope score DATASET --pool"
EVIDENCE = "a reward model or ratings: noisescope score DATASET --evidence reward:MODEL"
REVIEWS = "100 judgements of your own: noisescope review RUN"


@final
@dataclass(frozen=True)
class Trust:
    """How far to trust an audit: `word`, the reason in one `sentence`, and what `helps`.

    `acts`: labels may be changed by it.
    """

    word: Word
    sentence: str
    helps: tuple[str, ...] = ()

    @property
    def acts(self) -> bool:
        return self.word in ("good", "fair")

    def to_json(self) -> dict[str, Any]:
        """JSON object of the summary."""
        return {
            "word": self.word,
            "sentence": self.sentence,
            "helps": list(self.helps),
            "acts": self.acts,
        }


@final
@dataclass(frozen=True)
class TrustFacts:
    """What the word depends on.

    `own` and `others` are the cross-fits of the labels, `expected` the AUROC of planted flips.
    `precision` is the share of wrong labels that reviewers found at p_wrong >= 0.5, from `judged`
    pairs. `giveaway`: a mark in the texts decides the label of most pairs. `length`: what to state
    where length alone decides nearly all. `prompts`: how many are held out whole; None if something
    else is.
    """

    own: Contrast
    rate: FlipRate
    expected: Interval
    chance: bool = False
    in_sample: bool = False
    giveaway: bool = False
    length: str | None = None
    others: tuple[Contrast, ...] = ()
    triads: Triads | None = None
    sources: Sequence[SourceReport] = ()
    precision: Interval | None = None
    judged: int = 0
    reviewed: bool = False
    prompts: int | None = None


def too_few(prompts: int | None) -> bool:
    """Whether too few prompts are held out for a test to distinguish a judge from a coin."""
    return prompts is not None and prompts < FEWEST_PROMPTS


def judge_trust(facts: TrustFacts) -> Trust:
    """The word, by the table above."""
    return _unknowable(facts) or _weak(facts) or _sound(facts)


def _unknowable(facts: TrustFacts) -> Trust | None:
    """The audit that says nothing about these labels, if it is one."""
    accuracy = facts.own.accuracy
    word: Word = "cannot know"
    if facts.chance and too_few(facts.prompts):
        sentence = (
            f"The judge agrees with {accuracy.estimate:.0%} of the labels, but {facts.prompts} "
            "prompts, each held out whole, are too few to distinguish it from a coin."
        )
        return Trust(word, sentence, (POOL, "pairs of more prompts", REVIEWS))
    if facts.chance:
        sentence = (
            f"The judge agrees with {accuracy.estimate:.0%} of the labels it did not train on; a "
            "coin with 50%."
        )
        direction = "a look at the labels' direction: noisescope show --rank 1"
        return Trust(word, sentence, (MODEL, PAIRS, direction))
    if facts.in_sample:
        sentence = (
            "The adapters may have trained on the pairs they judge, and confirm their labels."
        )
        help = "--held-out if they never saw these pairs; else score without --from-adapters"
        return Trust(word, sentence, (help, REVIEWS))
    if facts.giveaway:
        sentence = "A mark in the texts gives the labels away, so the judge confirms wrong ones."
        return Trust(
            word, sentence, ("texts without the mark (see the notes in --details)", REVIEWS)
        )
    if facts.length:
        return Trust(word, facts.length, ("pairs of responses of similar length", REVIEWS))
    circular = [one.source for one in facts.sources if _circular(one)]
    if circular:
        sentence = f"{circular[0]} looks like the origin of the labels, and confirms their errors."
        return Trust(
            word, sentence, (f"the same command without --evidence {circular[0]}", REVIEWS)
        )
    return _pooled(facts)


def _circular(source: SourceReport) -> bool:
    return source.may_be_origin and source.accuracy_alone >= CIRCULAR


def _pooled(facts: TrustFacts) -> Trust | None:
    """A pooled fit that whole groups held out contradict, unless cyclic triads show votes."""
    if facts.own.name != POOLED:
        return None
    for other in facts.others:
        verdict = facts.triads and facts.triads.verdict(other.flip_rate.estimate)
        if verdict != "votes" and differ(facts.own, other):
            sentence = (
                "Labels of pairs that share a response confirm each other: right ones and wrong "
                "ones alike."
            )
            return Trust("cannot know", sentence, ("the same command without --pool", REVIEWS))
    return None


def _weak(facts: TrustFacts) -> Trust | None:
    """The audit that may rank labels too poorly to change any, if it is one."""
    found = facts.precision if facts.judged >= FEWEST_JUDGED else None
    if found is not None and found.low > 0.5:
        return None
    word: Word = WEAK_WORD
    if found is not None and found.high < 0.5:
        sentence = (
            f"Reviewers found only {found.low:.0%} to {found.high:.0%} of the labels with "
            "p_wrong of 0.5 or more wrong."
        )
        return Trust(word, sentence, (MODEL, EVIDENCE))
    accuracy, expected = facts.own.accuracy, facts.expected
    if facts.rate.pairs < FEWEST:
        sentence = f"{facts.rate.pairs:,} pairs are too few to test a judge on."
        return Trust(word, sentence, (PAIRS, REVIEWS))
    if accuracy.low > 0.5 and expected.low >= WEAK:
        return None
    helps = [MODEL, EVIDENCE, REVIEWS]
    if expected.estimate >= WEAK:  # only the interval is too wide
        helps.insert(1, PAIRS)
    times = max(round(10 * expected.low), 5)
    sentence = f"{_agrees(accuracy)} Shown a wrong and a right label, the judge may suspect the "
    return Trust(word, f"{sentence}wrong one only {times} times in 10.", tuple(helps))


def _sound(facts: TrustFacts) -> Trust:
    """Good or fair."""
    known = facts.rate.identifiable or facts.reviewed
    suspects = _suspects(facts.expected)
    if known and facts.expected.low >= GOOD:
        return Trust("good", suspects)
    if not known:
        low, high = facts.rate.low, facts.rate.high
        counts = (
            f"The order can be trusted, the counts less: flip rates of {low:.0%} to {high:.0%} fit."
        )
        return Trust("fair", f"{suspects} {counts}", (REVIEWS,))
    return Trust("fair", suspects, (MODEL, PAIRS))


def _agrees(accuracy: Interval) -> str:
    return (
        f"The judge agrees with {accuracy.estimate:.0%} of the labels it did not train on "
        f"({accuracy.low:.0%} to {accuracy.high:.0%}); a coin with 50%."
    )


def _suspects(expected: Interval) -> str:
    """The expected AUROC as a frequency: in tenths, near 1 in hundredths, 99 at most."""
    times = round(10 * expected.estimate)
    often = (
        f"{times} times in 10"
        if times < 10
        else f"{min(100 * expected.estimate, 99):.0f} times in 100"
    )
    return f"Shown a wrong and a right label, the judge suspects the wrong one {often}."
