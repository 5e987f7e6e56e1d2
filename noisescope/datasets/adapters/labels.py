"""Words and values of labels: which side they name, and the same label as it is compared."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from noisescope.datasets.adapters.cells import key

TIES = {
    "tie", "ties", "tied", "draw", "both", "both_bad", "bothbad", "tie_bothbad", "tie_both_bad",
    "both_good", "tie_bothgood", "neither", "equal", "same", "no_preference", "neutral", "c",
}  # fmt: skip
_UNLABELLED = {"unknown", "skip", "skipped", "unlabelled", "unlabeled", "n_a", "na", "invalid"}
_FIRST, _SECOND = {"a", "1", "first", "left", "1st", "chosen"}, {
    "b", "2", "second", "right", "2nd", "rejected",
}  # fmt: skip
_ORDER = re.compile(r"\W*([a-z0-9])\W*?([<>=]+)\W*([a-z0-9])\W*", re.IGNORECASE)
_FILLERS = {
    "model", "response", "answer", "output", "assistant", "option", "candidate", "completion",
    "text", "conversation", "summary", "image", "img", "is", "better", "wins", "win", "won",
    "winner", "prefer", "preferred", "the", "side", "system", "choice", "generation",
}  # fmt: skip


#: Types of a value that can be a label.
LABEL_TYPES = (str, int, float)


def words_of(name: str) -> list[str]:
    """The words and numbers of a name: responseA_10 -> response, a, 10."""
    return re.findall(r"[a-z]+|\d+", key(name))


@lru_cache(maxsize=256)
def tags(one: str, other: str) -> tuple[str, str]:
    """What differs in the names of two columns: response_a, response_b -> a, b."""
    a, b = words_of(one), words_of(other)
    if len(a) == len(b):
        differ = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
        if len(differ) == 1:
            return differ[0]
    return "", ""


def word_side(text: str, own: tuple[str, str]) -> float | None:
    """Which side a word names: 1 the first, -1 the second, 0 neither; None if it names none.

    `own` are the tags of the two columns. "model_a", "A>B", "[[B]]", "response_1", "tie (bothbad)".
    """
    name = key(text)
    if name in TIES:
        return 0.0
    if match := _ORDER.fullmatch(text.strip()):
        x, sign, y = (part.lower() for part in match.groups())
        one, other = _position(x, own), _position(y, own)
        if one is None or other is None or one == other:
            return None
        return 0.0 if sign == "=" else one if ">" in sign else other
    words = words_of(name)
    rest = [word for word in words if word not in _FILLERS]
    if len(rest) != 1 or (rest[0].isdecimal() and len(words) == 1):
        return None  # a bare number needs a stated coding
    return _position(rest[0], own)


def is_unlabelled(text: str) -> bool:
    """Whether a word states that there is no label."""
    return key(text) in _UNLABELLED


def _position(tag: str, own: tuple[str, str]) -> float | None:
    if tag in own and own[0] != own[1]:
        return 1.0 if tag == own[0] else -1.0
    if own[0] in ("0",):  # response_0, response_1: 1 is the second
        return None if tag.isdecimal() else (1.0 if tag in _FIRST else None)
    return 1.0 if tag in _FIRST else -1.0 if tag in _SECOND else None


def mirrored_word(text: str, own: tuple[str, str]) -> str:
    """The word that names the other side, spelled alike."""
    if match := _ORDER.fullmatch(text.strip()):
        swap = {match[1]: match[3], match[3]: match[1]}
        return re.sub(r"[A-Za-z0-9]", lambda found: swap.get(found[0], found[0]), text)
    pairs = [own, *(("a", "b"), ("1", "2"), ("first", "second"), ("left", "right"))]
    pairs += [("1st", "2nd"), ("chosen", "rejected")]
    for one, other in pairs:
        for mine, theirs in ((one, other), (other, one)):
            found = re.search(rf"(?<![A-Za-z0-9]){re.escape(mine)}(?![A-Za-z0-9])", text, re.I)
            found = found or re.search(rf"(?<=[a-z]){re.escape(mine)}\s*$", text)
            if mine and found:
                new = theirs.upper() if found[0].isupper() else theirs
                new = new.capitalize() if found[0].istitle() and len(found[0]) > 1 else new
                return text[: found.start()] + new + text[found.end() :]
    return text


def canonical(found: Any) -> str:
    """A label as labels are compared: 1, 1.0, "1.0", true are one."""
    if isinstance(found, bool):
        return "1" if found else "0"
    text = str(found).strip().lower() if not isinstance(found, int) else _digits(found)
    text = {"true": "1", "false": "0"}.get(text, text)
    return f"{float(text):g}" if is_number(text) else text


def _digits(found: int) -> str:
    try:
        return str(found)
    except ValueError:  # thousands of digits
        return "a number of thousands of digits"


def is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(?:\d{1,15}\.?\d{0,15}|\.\d{1,15})", text) is not None


def like(text: str, found: Any) -> Any:
    """`text` as a value of the type of `found`."""
    if isinstance(found, bool):
        return canonical(text) == "1"
    if isinstance(found, int) and is_number(text):
        return int(float(text))
    if isinstance(found, float) and is_number(text):
        return float(text)
    if not isinstance(found, str):
        return text
    core = found.strip()
    if core.lower() in ("true", "false"):
        text = "true" if canonical(text) == "1" else "false"
    elif re.fullmatch(r"[+-]?\d+\.0", core) and "." not in text:
        text = f"{text}.0"
    if core.isupper() or core.istitle():
        text = text.upper() if core.isupper() else text.capitalize()
    return found.replace(core, text)


def negated(text: str) -> str:
    bare = text.strip()
    return bare[1:] if bare.startswith("-") else f"-{bare.removeprefix('+')}"
