"""Answers of a judge: how they are read from replies, and the file that keeps them.

    answers = Answers(path)
    answers.add({"key": one.key(model), "log_odds": token_odds(reply.logprobs)})
    answers.log_odds(one.key(model))      # NaN without an answer

An answer is the log odds of "1" over "2" where the endpoint gives log-probabilities, else `VOTES`
answers at temperature 1: log (k + 1/2) / (n - k + 1/2). Each is appended to the file of its model
and flushed to the disk when it arrives, under a key of the wording, the model, the prompt and both
responses in their order; labels are not part of it. Each URL and model has a file of its own.
Replies that name neither response are kept too.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from noisescope.errors import RunError
from noisescope.models.chat import LONGEST
from noisescope.pairs import digest
from noisescope.storage.files import append, refuse_link, unwritten

#: Increase this when the question's wording, here or in `models.chat`, changes.
WORDING = 1
FORM = "Answer with one character and nothing else: 1 or 2, the number of the better response."
NAMED = re.compile(r"[\W_]*(?:(?:VERDICT|ANSWER):?\s*)?(?:RESPONSE\s*)?([12])[\W_]*", re.IGNORECASE)
#: Characters of the longest reply that can name a response.
LONGEST_REPLY = 200
#: Largest log odds of one answer: no judge is trusted beyond 1 error in 150.
BOUND = 5.0
#: Answers an order where there are no log-probabilities.
VOTES = 4
#: What an endpoint gives -> calls an order.
LOG_PROBABILITIES = "log-probabilities"
CALLS = {LOG_PROBABILITIES: 1, "votes": VOTES}
#: Tokens of an answer; characters a token, roughly; tokens of a request besides the texts.
TOKENS, CHARACTERS, FRAME = 8, 4, 140


@final
@dataclass(frozen=True)
class Question:
    """A prompt and two responses in the order in which they are shown."""

    prompt: str
    first: str
    second: str

    def key(self, model: str) -> str:
        """Identity of the question to `model`."""
        return digest("judge", str(WORDING), model, self.prompt, self.first, self.second)

    @property
    def tokens(self) -> int:
        """About how many tokens a request has."""
        shown = sum(min(len(text), LONGEST) for text in (self.prompt, self.first, self.second))
        return FRAME + TOKENS + shown // CHARACTERS


@final
class Answers:
    """The file of a model's answers: a line of JSON each, of log odds or a vote, by key.

    Lines that are torn or damaged are answers that are missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.odds: dict[str, float | None] = {}
        self.votes: dict[str, list[int]] = {}
        self._lock, self._end = threading.Lock(), b""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise RunError(
                f"cannot read {path}: {error.strerror or error}",
                hint="Make it readable, or move it away: its answers are then asked again.",
            ) from error
        for line in content.splitlines():
            self._take(line)
        self._end = b"\n" if content and not content.endswith(b"\n") else b""

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            key = record["key"]
            if not isinstance(key, str):
                return
            if record.get("vote") in (0, 1, 2):
                self.votes.setdefault(key, []).append(record["vote"])
            elif record["log_odds"] is None:
                self.odds[key] = None
            elif abs(odds := float(record["log_odds"])) <= BOUND:
                self.odds[key] = odds
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ):
            return

    @property
    def mode(self) -> str | None:
        """What the endpoint gave so far; None if it was never asked."""
        return LOG_PROBABILITIES if self.odds else "votes" if self.votes else None

    def missing(self, key: str, mode: str) -> int:
        """How many calls the question of `key` still needs."""
        if key in self.odds:
            return 0
        return max(0, CALLS[mode] - len(self.votes.get(key, ())))

    def log_odds(self, key: str) -> float:
        """Log odds that the first response is better; NaN without an answer."""
        if key in self.odds:
            found = self.odds[key]
            return math.nan if found is None else found
        named = [vote for vote in self.votes.get(key, ()) if vote]
        firsts = named.count(1)
        return math.log((firsts + 0.5) / (len(named) - firsts + 0.5)) if named else math.nan

    def is_empty(self, key: str) -> bool:
        """Whether there are replies to a question, and none of them names a response."""
        return (key in self.odds or key in self.votes) and math.isnan(self.log_odds(key))

    def add(self, record: Mapping[str, Any]) -> None:
        """Append one answer; it is on the disk when this returns. Raises RunError."""
        line = json.dumps(record).encode() + b"\n"
        with self._lock:
            try:
                refuse_link(self.path, "--runs-dir")
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                descriptor = os.open(self.path, flags, 0o666)
                try:
                    append(descriptor, self._end + line)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise unwritten(self.path, error) from error
            self._end = b""
            self._take(line)


def named(text: str) -> int:
    """1 or 2, the response that a reply names; 0 if it names none and nothing else."""
    found = NAMED.fullmatch(text.strip()) if len(text) <= LONGEST_REPLY else None
    return int(found[1]) if found else 0


def token_odds(tokens: Sequence[Any]) -> float | None:
    """Log odds of "1" over "2" at the first token that is one of them.

    A response that is not among the tokens listed there is as probable as the least of them, at
    most. None if a log-probability is not a number, or nothing but the token itself is listed.
    """
    try:
        place = next(token for token in tokens if _digit(token["token"]))
        listed = {str(one["token"]): one["logprob"] for one in place["top_logprobs"]}
        values = [float(value) for value in listed.values() if not isinstance(value, bool)]
    except (StopIteration, LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None
    if len(values) < max(2, len(listed)) or any(math.isnan(v) or v > 0.01 for v in values):
        return None
    floor = min((value for value in values if value > -math.inf), default=math.nan)
    mass = {"1": -math.inf, "2": -math.inf}
    for token, value in zip(listed, values, strict=True):
        if (digit := _digit(token)) is not None:
            mass[digit] = float(np.logaddexp(mass[digit], value))
    odds = max(mass["1"], floor) - max(mass["2"], floor)
    return min(max(odds, -BOUND), BOUND) if math.isfinite(odds) else None


def _digit(token: str) -> str | None:
    """ "1" or "2" if a token is that and punctuation, else None."""
    bare = re.sub(r"[\W_]+", "", token)
    return bare if bare in ("1", "2") else None
