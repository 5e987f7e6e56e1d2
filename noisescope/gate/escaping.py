"""Dataset text in other people's formats: every function takes untrusted text and defuses it."""

from __future__ import annotations

import re
import unicodedata

#: Written in place of a control, format or surrogate character, and of what XML forbids.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
#: What means something in Markdown, HTML, or GitHub's automatic links and mentions.
_MARKUP = re.compile(r"[\\`*_{}\[\]()<>#+\-!|~&@:/.\"'$^=]")
_NONCHARACTER = re.compile("[\ufffe\uffff]")


def clean(text: str) -> str:
    """One line without control, format, surrogate or XML-forbidden characters."""
    line = " ".join(text.split())
    kept = "".join(
        REPLACEMENT if unicodedata.category(character) in ("Cc", "Cf", "Cs") else character
        for character in line
    )
    return _NONCHARACTER.sub(REPLACEMENT, kept)


def markdown(text: str) -> str:
    """Text that Markdown and HTML show as it is: markup characters as numeric entities."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", clean(text))


def command_data(text: str) -> str:
    """The message of a GitHub workflow command; line breaks are kept, escaped."""
    lines = "\n".join(clean(line) for line in text.splitlines())
    return lines.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def command_property(text: str) -> str:
    """A property (file, title) of a GitHub workflow command."""
    return command_data(text).replace(":", "%3A").replace(",", "%2C")
