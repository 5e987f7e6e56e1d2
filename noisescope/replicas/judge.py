"""Ask a chat model which side of a pair is better, in both orders.

    judge = Judge(Endpoint(url, model, key, option="--evidence judge:"), Answers(path))
    mode = judge.probe(question, command)            # log-probabilities or votes
    found = judge.ask(pairs, mode, reporter, command)
    found.log_odds                                   # [n], of the chosen side

What is answered already is not asked again (`answers`). Faults of the endpoint are counted by
kind, and asked again by the next command; the command stops where the endpoint is down or most
replies are no answers.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from noisescope.errors import RunError, UsageError
from noisescope.models.chat import (
    CONCURRENCY,
    Answer,
    Endpoint,
    ask_all,
    question,
)
from noisescope.progress import Reporter
from noisescope.replicas.answers import (
    FORM,
    LOG_PROBABILITIES,
    TOKENS,
    Answers,
    Question,
    named,
    token_odds,
)

Float = NDArray[np.float64]

#: Settings of a request, by what the endpoint gives.
SETTINGS: dict[str, dict[str, Any]] = {
    LOG_PROBABILITIES: {"logprobs": True, "top_logprobs": 5},
    "votes": {"temperature": 1},
}
#: Statuses that may concern a single question: too long, or a setting the server does not know.
SPARED = (400, 413, 422)
#: Requests that fail one after another, each after all its attempts, before the command stops.
DOWN = 5
#: Replies after which the command stops if more than half of them are no answers.
TRIAL = 40
#: Attempts of a request.
ATTEMPTS = 8
NEITHER = "named neither response"
NO_NUMBERS = "without usable log-probabilities"


@final
@dataclass(frozen=True)
class Judged:
    """Log odds [n] of the chosen side, shown first and shown second; NaN without an answer.

    `faults` counts replies that are no answers, by kind.
    """

    chosen_first: Float
    rejected_first: Float
    faults: Mapping[str, int] = field(default_factory=dict)

    @property
    def log_odds(self) -> Float:
        """Their mean, which changes sign with the sides; NaN if either order has no answer."""
        return (self.chosen_first + self.rejected_first) / 2

    def remark(self) -> str:
        """How far the answers depend on the order, and why some are missing."""
        both = np.isfinite(self.log_odds)
        one, other = self.chosen_first[both], self.rejected_first[both]
        lost = ", ".join(f"{count:,} {fault}" for fault, count in self.faults.items())
        parts = [f"{(~both).sum():,} pairs have no answer ({lost})"] if not both.all() else []
        if both.any():
            first = np.concatenate([one > 0, other < 0]).mean()
            agreed = (np.sign(one) == np.sign(other)).mean()
            parts.append(
                f"the first response was named in {first:.0%} of the answers, the same one in "
                f"both orders for {agreed:.0%} of the pairs"
            )
        return "; ".join(parts)


@final
@dataclass
class Judge:
    """A chat model asked about pairs, its answers so far, and the faults of this command."""

    endpoint: Endpoint
    answers: Answers
    concurrency: int = CONCURRENCY
    faults: Counter[str] = field(default_factory=Counter)
    replies: int = 0
    #: Requests that failed since the last reply.
    failed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def by_key(self, questions: Iterable[Question]) -> dict[str, Question]:
        """The distinct questions by key."""
        return {one.key(self.endpoint.model): one for one in questions}

    def missing(self, questions: Iterable[Question], mode: str) -> int:
        """How many calls the questions still need."""
        return sum(self.answers.missing(key, mode) for key in self.by_key(questions))

    def probe(self, one: Question, command: str) -> str:
        """What the endpoint gives; asks one question, twice at most, unless it is known.

        Raises RunError if it does not answer, UsageError if it refuses.
        """
        if self.answers.mode is not None:
            return self.answers.mode
        answer = self._send(one, LOG_PROBABILITIES)
        if answer.refused:
            answer = self._send(one, "votes")
            if answer.refused:
                raise UsageError(
                    answer.fault, hint=f"Check {self.endpoint.option} and the model's name."
                )
            return "votes"
        if answer.text is None:
            raise self._down(answer.fault, command)
        if answer.fault:  # no completion: `ask` counts such replies
            return LOG_PROBABILITIES
        odds = None if answer.logprobs is None else token_odds(answer.logprobs)
        if answer.logprobs is None or (named(answer.text) and odds is None):
            return "votes"
        self._keep(one.key(self.endpoint.model), answer, LOG_PROBABILITIES)
        return LOG_PROBABILITIES

    def ask(
        self, pairs: Sequence[Sequence[str]], mode: str, reporter: Reporter, command: str
    ) -> Judged:
        """Ask what is missing about `pairs` of prompt, chosen and rejected, in their order.

        Raises RunError if the endpoint is down or most of its replies are no answers.
        """
        one = [Question(prompt, chosen, rejected) for prompt, chosen, rejected in pairs]
        other = [Question(prompt, rejected, chosen) for prompt, chosen, rejected in pairs]
        asked = self.by_key(each for both in zip(one, other, strict=True) for each in both)
        todo = [key for key in asked for _ in range(self.answers.missing(key, mode))]
        done = 0
        with reporter.stage(f"{len(todo):,} calls to {self.endpoint.model}") as progress:

            def send(key: str) -> None:
                nonlocal done
                if self.endpoint.stop.is_set():
                    return
                try:
                    self._ask(key, asked[key], mode, len(todo), command)
                except BaseException:
                    self.endpoint.stop.set()  # before the other threads begin a request
                    raise
                with self._lock:
                    done += 1
                    progress(done, len(todo), None)

            ask_all(send, todo, self.endpoint, self.concurrency)
        model = self.endpoint.model
        first = np.array([self.answers.log_odds(each.key(model)) for each in one], float)
        second = np.array([self.answers.log_odds(each.key(model)) for each in other], float)
        empty = sum(self.answers.is_empty(key) for key in asked)
        faults = {what: count for what, count in self.faults.items() if what != NEITHER}
        return Judged(first, -second, faults | ({NEITHER: empty} if empty else {}))

    def _ask(self, key: str, one: Question, mode: str, total: int, command: str) -> None:
        """Ask once and keep the answer, or count why there is none."""
        answer = self._send(one, mode)
        fault = self._keep(key, answer, mode)
        with self._lock:
            if self.endpoint.stop.is_set() and answer.text is None:
                return
            self.replies += 1
            self.failed = self.failed + 1 if answer.text is None and not answer.refused else 0
            if fault:
                self.faults[fault] += 1
            if self.failed >= min(DOWN, total):
                raise self._down(answer.fault, command)
            none = self.faults.total()
            if self.replies >= min(TRIAL, total) and none > self.replies / 2:
                kinds = ", ".join(f"{count:,} {what}" for what, count in self.faults.items())
                last = answer.fault or f"the last reply is {(answer.text or '')[:60]!r}"
                raise RunError(
                    f"{none:,} of {self.replies:,} replies of {self.endpoint.model} are no "
                    f"answers: {kinds} ({last})",
                    hint="It must reply with 1 or 2: choose a model that follows instructions, "
                    "with its thinking switched off. Answers are kept.",
                )

    def _keep(self, key: str, answer: Answer, mode: str) -> str:
        """Keep an answer; why it is none, or empty."""
        if answer.text is None:
            return "refused" if answer.refused else f"failed ({answer.fault})"
        if answer.fault:
            return answer.fault
        name = named(answer.text)
        if mode == "votes":
            self.answers.add({"key": key, "vote": name})
            return "" if name else NEITHER
        odds = None if answer.logprobs is None else token_odds(answer.logprobs)
        if name and odds is None:
            return NO_NUMBERS
        self.answers.add({"key": key, "log_odds": odds if name else None})
        return "" if name else NEITHER

    def _send(self, one: Question, mode: str) -> Answer:
        messages = question(FORM, one.prompt, one.prompt, one.first, one.second)
        return self.endpoint.ask(messages, spared=SPARED, max_tokens=TOKENS, **SETTINGS[mode])

    def _down(self, fault: str, command: str) -> RunError:
        kept = len(self.answers.odds) + sum(map(len, self.answers.votes.values()))
        return RunError(
            f"{self.endpoint.model} at {self.endpoint.url} does not answer: {fault}; {kept:,} "
            f"answers are kept in {self.answers.path}",
            hint=f"When it is back, only what is missing is asked: {command}",
        )
