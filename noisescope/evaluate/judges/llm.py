"""Compare two responses by a language model behind an OpenAI-compatible endpoint.

    judge = open_llm("qwen3-8b", "http://127.0.0.1:8000/v1", key=None)
    judge.judge(comparisons)          # both orders of every comparison, a few requests at once

Each comparison is judged twice with the positions swapped. A response wins only if both answers
name it; two different answers are a tie, and the report contains how often the first position was
named. The last line of an answer must be a verdict and nothing else; other answers are counted
and leave the comparison unjudged.
Requests, retries and the key: `models.chat`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from noisescope.errors import UsageError
from noisescope.evaluate.comparison import (
    FAILED,
    FIRST,
    SECOND,
    TIE,
    UNPARSABLE,
    Comparison,
    JudgeCard,
    Output,
    Prompt,
    Verdict,
    by_order,
)
from noisescope.models.chat import CONCURRENCY, Answer, Endpoint, ask_all, question
from noisescope.pairs import digest

#: Increase this when the wording below changes: verdicts of two wordings are not mixed.
WORDING = 1
FORM = (
    "Give your reason in a sentence or two. Then write a last line that is exactly one of "
    '"VERDICT: 1", "VERDICT: 2" or "VERDICT: TIE".'
)
VERDICT = re.compile(r"\**VERDICT:\s*(1|2|TIE)\.?\**\.?", re.IGNORECASE)
MEANING = {"1": FIRST, "2": SECOND, "TIE": TIE}


@final
@dataclass(frozen=True)
class LLMJudge:
    """Sends every comparison to `endpoint` twice, in both orders."""

    card: JudgeCard
    endpoint: Endpoint
    concurrency: int = CONCURRENCY

    def cost(self, comparisons: int) -> str:
        requests = f"{2 * comparisons:,} requests ({comparisons:,} prompts, both orders)"
        return f"{requests} to {self.endpoint.url}"

    def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        requests = [
            (c.prompt, first, second)
            for c in comparisons
            for first, second in ((c.policy, c.against), (c.against, c.policy))
        ]
        answers = ask_all(
            lambda request: self._ask(*request), requests, self.endpoint, self.concurrency
        )
        return [
            by_order(
                [parse_verdict(one.text), parse_verdict(other.text)], one.retries + other.retries
            )
            for one, other in zip(answers[::2], answers[1::2], strict=True)
        ]

    def _ask(self, prompt: Prompt, first: Output, second: Output) -> Answer:
        return self.endpoint.ask(question(FORM, prompt.key, prompt.text, str(first), str(second)))


def parse_verdict(text: str | None) -> str:
    """Return which response an answer names, `tie`, `unparsable`, or `failed` for None."""
    if text is None:
        return FAILED
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = VERDICT.fullmatch(lines[-1]) if lines else None
    return MEANING[found[1].upper()] if found else UNPARSABLE


def open_llm(model: str, url: str | None, key: str | None) -> LLMJudge:
    """Open the judge of an endpoint. Raises UsageError without a URL."""
    if not url:
        raise UsageError(
            f"--judge llm={model} needs --endpoint",
            hint="Add --endpoint URL, for example http://127.0.0.1:8000/v1 of a vLLM server, and "
            "--key-env NAME if it needs a key.",
        )
    endpoint = Endpoint(url, model, key)
    fingerprint = digest("llm", model, url.rstrip("/"), str(WORDING))
    card = JudgeCard("llm", model, "its provider's terms", "text", fingerprint, is_pairwise=True)
    return LLMJudge(card, endpoint)
