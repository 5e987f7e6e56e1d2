"""Make untrusted text safe to show in a terminal, on a page, in XML or in Markdown.

    printable("a\\x1b[31m b")                 # one line
    printable(response, lines=True)          # line breaks and tabs are kept

Control characters (with them escape sequences), surrogates, characters that change the direction
of the text after them, and characters that XML forbids become U+FFFD. Markup is escaped by the
caller, in the rules of its format.
"""

from __future__ import annotations

import unicodedata

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
#: Zero-width characters that ordinary words and emoji contain.
_ZERO_WIDTH = frozenset("\u00ad\u200b\u200c\u200d\u2060\ufeff")
_NONCHARACTERS = frozenset("\ufffe\uffff")


def printable(text: str, *, lines: bool = False) -> str:
    """Replace what is unsafe to print. Without `lines`, line breaks and tabs become spaces."""
    if text.isprintable():
        return text
    if not lines:
        return "".join(" " if c in "\n\r\t" else _safe(c) for c in text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c in "\n\t" else _safe(c) for c in text)


def one_line(text: str) -> str:
    """Return `text` as one printable line, white space collapsed."""
    return printable(" ".join(text.split()))


def _safe(character: str) -> str:
    if character in _ZERO_WIDTH:
        return character
    unsafe = unicodedata.category(character) in ("Cc", "Cf", "Cs") or character in _NONCHARACTERS
    return REPLACEMENT if unsafe else character


#: Words after a number that have no plural of their own.
_UNCOUNTED = ("unlabelled", "unreadable", "identical once cut")


def plural(count: int, noun: str) -> str:
    """Return `1 pair`, `25 ties`, `3 empty responses`."""
    same = count == 1 or noun.endswith("s") or noun in _UNCOUNTED
    return f"{count:,} {noun}{'' if same else 's'}"
