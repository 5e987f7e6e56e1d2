"""Turn (prompt, response) items into token ids, knowing exactly which tokens are the response.

Three renderings: the tokenizer's chat template where it has one (a plain prompt is then one
user message); "Human: ... Assistant:" for conversations without a template; else the prompt,
an empty line and the response. A response always ends with the end-of-turn token.
Prompts lose tokens on the left, responses on the right, both counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from noisescope.errors import ModelError
from noisescope.models import Item
from noisescope.pairs import Message

NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}
#: Plain prompts and responses that do not bring their own space are set apart by this.
GAP = "\n\n"


@final
@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of prompt and response; `cut_*` counts the tokens truncation took from each."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    cut_prompt: int = 0
    cut_response: int = 0

    @property
    def tokens(self) -> tuple[int, ...]:
        """The whole sequence."""
        return self.prompt + self.response

    @property
    def response_start(self) -> int:
        """Index in `tokens` of the first response token; at least 1."""
        return len(self.prompt)


@final
@dataclass(frozen=True)
class Encoder:
    """Encodes items for one tokenizer. `template` says whether its chat template is used."""

    tokenizer: Any
    max_length: int
    template: bool

    @cached_property
    def bos(self) -> list[int]:
        """What the tokenizer sets before any text by itself: [bos] or nothing."""
        alone = self.tokenizer("")["input_ids"]
        return alone[:1] if alone[:1] == [self.tokenizer.bos_token_id] else []

    def encode(self, items: Sequence[Item]) -> list[Encoded]:
        """Encode each item; a prompt gets the same tokens before each of its responses.

        (Without a template, the space between the two is the prompt's unless a response brings
        its own.)
        """
        if not items:
            return []
        leads, tails = zip(*(self.render(item) for item in items), strict=True)
        whole = self._ids([lead + tail for lead, tail in zip(leads, tails, strict=True)])
        distinct = list(dict.fromkeys(leads))
        prompts = dict(zip(distinct, self._ids(distinct), strict=True))
        encoded = []
        for lead, tail, ids in zip(leads, tails, whole, strict=True):
            prompt = prompts[lead]
            # Where the tokenizer merges across the border, prompt and response are encoded apart.
            apart = ids[: len(prompt)] != prompt
            response = self._ids([tail])[0] if apart else ids[len(prompt) :]
            encoded.append(self._cut(prompt, response))
        return encoded

    def render(self, item: Item) -> tuple[str, str]:
        """(prompt text, response text with its end-of-turn) of an item."""
        end = self.tokenizer.eos_token or ""
        if self.template:
            turns = item.turns or (Message("user", item.prompt),)
            lead, tail = self._fill_template(turns, item.response)
        elif item.turns:
            lead = "".join(f"\n\n{NAMES.get(t.role, t.role)}: {t.content}" for t in item.turns)
            lead, tail = lead + "\n\nAssistant:", " " + item.response.strip() + end
        else:
            spaced = item.prompt[-1:].isspace() or item.response[:1].isspace()
            joined = spaced or not item.prompt
            lead, tail = item.prompt + ("" if joined else GAP), item.response.rstrip() + end
        return _clean(lead), _clean(tail)

    def _fill_template(self, turns: tuple[Message, ...], response: str) -> tuple[str, str]:
        """Apply the chat template; turns it refuses are folded into strict user/assistant order."""
        from jinja2.exceptions import TemplateError

        try:
            return self._apply(turns, response)
        except TemplateError:
            pass
        try:
            return self._apply(fold_turns(turns), response)
        except TemplateError as error:
            raise ModelError(
                f"the chat template refuses a conversation of {[t.role for t in turns]}: {error}",
                hint="Use plain text instead of the template: --chat-template never",
            ) from error

    def _apply(self, turns: tuple[Message, ...], response: str) -> tuple[str, str]:
        """Render prompt and whole; what the template sets before the response joins the prompt."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        reply = {"role": "assistant", "content": response}
        lead = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        whole = self.tokenizer.apply_chat_template([*messages, reply], tokenize=False)
        core, end = response.strip(), self.tokenizer.eos_token or ""
        if not whole.startswith(lead):  # the reply changed how earlier turns are written
            return lead, core + end
        tail = whole[len(lead) :].rstrip()
        if not core or core not in tail:
            return lead, core + end
        before, _, after = tail.partition(core)
        if before.isspace():
            before, core = "", before + core
        return lead + before, core + (after or end)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without special tokens of the tokenizer's own, except a leading bos."""
        ids = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return list(ids)

    def _cut(self, prompt: list[int], response: list[int]) -> Encoded:
        """Add bos, truncate to max_length: a prompt may take half of it, whatever the response.

        So a prompt reads the same before each of its responses.
        """
        bos = [] if self.template else self.bos
        spare = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0
        filler = [next(token for token in spare if token is not None)]
        response = response or filler
        room = self.max_length // 2 - len(bos)
        kept = (bos + prompt[-room:]) or filler
        left = self.max_length - len(kept)
        return Encoded(
            tuple(kept),
            tuple(response[:left]),
            max(0, len(prompt) - room),
            max(0, len(response) - left),
        )


def fold_turns(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Turns with system text told by the user and neighbours of one role joined."""
    folded: list[Message] = []
    for turn in turns:
        role = "user" if turn.role == "system" else turn.role
        if folded and folded[-1].role == role:
            folded[-1] = Message(role, folded[-1].content + GAP + turn.content)
        else:
            folded.append(Message(role, turn.content))
    return tuple(folded)


def _clean(text: str) -> str:
    """Text without lone surrogates, which tokenizers cannot take."""
    return text.encode("utf-8", "replace").decode("utf-8")
