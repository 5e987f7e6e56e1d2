"""Measure traits of responses that people can read: length, lists, refusal, repetition...

    sides = compare_sides(prompts, chosen, rejected)     # trait -> int8 [N]

1 where the labelled side has more of the trait, -1 where the other side has, 0 where they are
alike. Plain rules over the text, made to be named in a sentence: no model, about 0.2 ms a pair.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
from numpy.typing import NDArray

from noisescope.scoring.giveaways import MARK

Int8 = NDArray[np.int8]

_WORD = re.compile(r"\w+")
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|afraid|unable|not able|not comfortable)|i (?:cannot|can't|can not"
    r"|won't|will not|must decline|decline)|as an? (?:ai|language model)|i apologi[sz]e"
    r"|(?:not|isn't) (?:appropriate|something i can)|unable to (?:help|assist|provide))\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|might|possibly|probably|i think|i believe|i guess|not sure|it depends"
    r"|hard to (?:say|tell)|in (?:general|some ways?))\b",
    re.IGNORECASE,
)
_LIST = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+\S", re.MULTILINE)
_MARKDOWN = re.compile(r"^#{1,6} \S|\*\*\S[^*\n]*\*\*|^\|.+\|$", re.MULTILINE)
_CODE = re.compile(r"```|^ {4}\S|</?[a-z]+>|\b(?:def|function|import|SELECT)\s", re.MULTILINE)
_URL = re.compile(r"https?://|www\.", re.IGNORECASE)
_EMOJI = re.compile("[\U0001f300-\U0001faff\u2600-\u27bf]")
_ENDED = re.compile(r"""[.!?…)\]}"'”’`*:。！？」؟۔।\d]\s*\Z""")
_QUESTION = re.compile(r"[?？؟]\s*\Z")


@final
@dataclass(frozen=True)
class Trait:
    """A trait of a response. `side` names the side that has more of it in a sentence.

    `merit` is 1 if readers want more of it, -1 if less, 0 if it should not decide a label. Values
    differ if they are `least` apart and by the ratio `ratio`. `measure` takes prompt and response.
    """

    name: str
    side: str
    measure: Callable[[str, str], float] = lambda prompt, response: 0.0
    merit: int = 0
    least: float = 1.0
    ratio: float = 1.0

    def sign(self, first: float, second: float) -> int:
        """1 if the first value is the higher one, -1 if the second is, 0 if they are alike."""
        high, low = max(first, second), min(first, second)
        if high == low or high - low < self.least or high < self.ratio * low:
            return 0
        return 1 if first > second else -1


def _has(pattern: re.Pattern[str]) -> Callable[[str, str], float]:
    return lambda prompt, text: float(pattern.search(text) is not None)


@lru_cache(maxsize=8)  # two traits look at the same three texts
def _words(text: str) -> Sequence[str]:
    return _WORD.findall(text.lower())


def overlap(prompt: str, text: str) -> float:
    """Share of the response's distinct words of four letters or more that the prompt has."""
    own = {word for word in _words(text) if len(word) >= 4}
    return len(own & set(_words(prompt))) / len(own) if own else 0.0


def repetition(prompt: str, text: str) -> float:
    """Share of the response's word trigrams that repeat an earlier one."""
    words = _words(text)
    grams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def foreign(prompt: str, text: str) -> float:
    """Share of the letters that are not Latin, if the prompt is Latin; else of those that are."""
    return _not_latin(text) if _not_latin(prompt) < 0.5 else 1 - _not_latin(text)


def _not_latin(text: str) -> float:
    if text.isascii():
        return 0.0
    letters = [letter for letter in text if letter.isalpha()]
    return sum(ord(letter) > 0x24F for letter in letters) / len(letters) if letters else 0.0


TRAITS = (
    Trait("length", "the longer response", lambda _, text: len(text), ratio=1.1),
    Trait("refusal", "the response that refuses", _has(_REFUSAL)),
    Trait("hedging", "the response that hedges", lambda _, text: len(_HEDGE.findall(text))),
    Trait("list", "the response with a list", _has(_LIST)),
    Trait("markdown", "the response with Markdown", _has(_MARKDOWN)),
    Trait("code", "the response with code", _has(_CODE)),
    Trait("url", "the response with a link", _has(_URL)),
    Trait("emoji", "the response with emoji", _has(_EMOJI)),
    Trait("exclamation", "the response with more exclamation marks", lambda _, t: t.count("!")),
    Trait("question", "the response that ends with a question", _has(_QUESTION)),
    Trait("template", "the response with a template's token", _has(MARK), merit=-1),
    Trait("repetition", "the response that repeats itself", repetition, merit=-1, least=0.2),
    Trait("unfinished", "the response that stops mid-sentence", lambda _, t: not _ENDED.search(t),
          merit=-1),
    Trait("language", "the response in another script than the prompt's", foreign, merit=-1,
          least=0.3),
    Trait("overlap", "the response with more words of the prompt", overlap, merit=1, least=0.15),
)  # fmt: skip


def compare_sides(
    prompts: Sequence[str], chosen: Sequence[str], rejected: Sequence[str]
) -> Mapping[Trait, Int8]:
    """Every trait of N pairs: 1 where the labelled side has more of it, -1 where the other has."""
    found = np.zeros((len(TRAITS), len(prompts)), np.int8)
    for index, (prompt, one, two) in enumerate(zip(prompts, chosen, rejected, strict=True)):
        for row, trait in enumerate(TRAITS):
            found[row, index] = trait.sign(trait.measure(prompt, one), trait.measure(prompt, two))
    return dict(zip(TRAITS, found, strict=True))


def near_identical(chosen: str, rejected: str) -> bool:
    """Whether nine in ten of the words of both sides are common to them."""
    one, two = set(_words(chosen)), set(_words(rejected))
    return len(one & two) >= 0.9 * max(len(one | two), 1)
