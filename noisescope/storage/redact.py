"""Remove secrets from what is printed, logged or written: passwords in URLs, known tokens.

    masked("merge s3://key:secret@bucket/runs")      # "merge s3://***@bucket/runs"

Values of environment variables with secret-sounding names are removed too. Every user of the
machine can see command-line arguments (ps); this keeps them out of files and logs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
#: Environment variables whose value is never shown if it is at least this long.
_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIALS?$", re.I)
_LEAST = 8
#: User and password of a URL, up to its last @, which passwords may contain. In abfs:// and
#: wasb:// that part is a container.
_USER = re.compile(r"(?<!\w)((?!abfss?:|wasbs?:)[a-z][\w+.-]*://)[^/\s'\"]+@", re.I)
#: Signed URLs: a parameter that is, or ends in, one of these.
_PARAMETER = re.compile(
    r"([?&][\w.-]*(?:token|secret|signature|sig|credential|password|key|keyid)=)[^&#\s'\"]+", re.I
)
#: Tokens of the Hugging Face Hub, OpenAI and alike, GitHub, AWS.
_LOOKS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|A[KS]IA[A-Z0-9]{12,})"
)


def masked(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` with every secret in it replaced by three stars."""
    named = (value for name, value in environment.items() if value in text and _NAMES.search(name))
    for value in sorted(named, key=len, reverse=True):  # one may begin another
        text = text.replace(value, MASK) if len(value) >= _LEAST else text
    text = _USER.sub(rf"\1{MASK}@", text)
    text = _PARAMETER.sub(rf"\1{MASK}", text)
    return _LOOKS.sub(MASK, text)


def without_secrets(facts: Mapping[str, Any]) -> dict[str, Any]:
    """`facts` with secrets masked in their `command`."""
    command = facts.get("command")
    return {**facts, "command": masked(command)} if isinstance(command, str) else dict(facts)
