"""Turn (prompt, response) items into token ids, with the exact border between the two.

Three renderings: the tokenizer's chat template where it has one (a plain prompt is then one
user message); "Human: ... Assistant:" for conversations without a template; else the prompt,
an empty line and the response. A response always ends with the end-of-turn token.

With a template, prompt and response together are what the template renders for the finished
conversation, white space after the end of the turn aside (`rendering.py`). What is longer than
`max_length` is cut (`cutting.py`), and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from noisescope.errors import ModelError
from noisescope.models import Item
from noisescope.models.cutting import kept_tokens
from noisescope.models.rendering import PLAIN_TEXT, Frame, Template, Unreadable
from noisescope.pairs import Message

NAMES = {
    "user": "Human",
    "assistant": "Assistant",
    "system": "System",
    "tool": "Tool",
    "tools": "Tools",
}
#: Between plain prompts and responses that bring no space of their own.
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


@final
@dataclass(frozen=True, slots=True)
class Rendered:
    """Text of a prompt and of a response with its end of turn; `turns` are those in the prompt."""

    prompt: str
    response: str
    turns: tuple[Message, ...] = ()


@final
@dataclass(frozen=True)
class Encoder:
    """Encodes items for one tokenizer. `template`: whether its chat template is used; `name`
    chooses one of several."""

    tokenizer: Any
    max_length: int
    template: bool
    name: str | None = None

    @cached_property
    def bos(self) -> list[int]:
        """What the tokenizer sets before any text by itself: [bos] or nothing."""
        alone = self.tokenizer("")["input_ids"]
        return alone[:1] if alone[:1] == [self.tokenizer.bos_token_id] else []

    @cached_property
    def chat(self) -> Template:
        """The chat template. Raises ModelError if it cannot render a plain exchange."""
        return Template(self.tokenizer, self.name)

    def encode(self, items: Sequence[Item], reserve: int | None = None) -> list[Encoded]:
        """Encode each item; a prompt gets the same tokens before each of its responses.

        (Without a template, the space between the two is the prompt's unless a response brings
        its own.) `reserve` keeps so many tokens for a response that is not known yet. Raises
        ModelError for an item that the chat template does not render.
        """
        encoded = []
        for item, found in zip(items, self.encode_readable(items, reserve), strict=True):
            if isinstance(found, Unreadable):
                shown = " ".join(item.prompt.split())[:60]
                raise ModelError(
                    f"{found}: prompt {shown!r}",
                    hint=PLAIN_TEXT,
                )
            encoded.append(found)
        return encoded

    def encode_readable(
        self, items: Sequence[Item], reserve: int | None = None
    ) -> list[Encoded | Unreadable]:
        """Encode each item, or return why the chat template does not render it."""
        texts = self._render_all(items)
        known = [text for text in texts if isinstance(text, Rendered)]
        leads = list(dict.fromkeys(text.prompt for text in known))
        whole = iter(self._ids([text.prompt + text.response for text in known]))
        prompts = dict(zip(leads, self._ids(leads), strict=True))
        sizes: dict[tuple[str, str], int] = {}

        def needed(item: Item, response: list[int]) -> int:
            """Tokens of the longest response to a prompt, all of them where that is unknown."""
            if item.longest in ("", item.response):
                return len(response) if item.longest else self.max_length
            if (item.prompt, item.longest) not in sizes:
                sizes[item.prompt, item.longest] = self._size(item)
            return sizes[item.prompt, item.longest]

        encoded: list[Encoded | Unreadable] = []
        for item, text in zip(items, texts, strict=True):
            if isinstance(text, Unreadable):
                encoded.append(text)
                continue
            prompt, ids = prompts[text.prompt], next(whole)
            # Where the tokenizer merges across the border, the two are encoded separately.
            separate = ids[: len(prompt)] != prompt
            response = self._ids([text.response])[0] if separate else ids[len(prompt) :]
            room = 0
            if len(prompt) > self.max_length // 2 - len(self.bos):  # else it is never cut
                room = reserve or needed(item, response)
            encoded.append(self._cut(text, prompt, response, room))
        return encoded

    def render(self, item: Item) -> tuple[str, str]:
        """(prompt text, response text with its end of turn). Raises Unreadable."""
        (text,) = self._render_all([item])
        if isinstance(text, Unreadable):
            raise text
        return text.prompt, text.response

    def _render_all(self, items: Sequence[Item]) -> list[Rendered | Unreadable]:
        """Texts of each item; a prompt's frame is made once."""
        frames: dict[tuple[Message, ...], Frame | Unreadable] = {}
        texts: list[Rendered | Unreadable] = []
        for item in items:
            if not self.template:
                texts.append(self._plain(item))
                continue
            turns = item.turns or (Message("user", item.prompt),)
            if turns not in frames:
                frames[turns] = self.chat.frame(turns)
            frame = frames[turns]
            if isinstance(frame, Frame):
                found = self.chat.response(frame, item.response)
                texts.append(
                    found
                    if isinstance(found, Unreadable)
                    else Rendered(_clean(frame.prompt), _clean(found), frame.turns)
                )
            else:
                texts.append(frame)
        return texts

    def _plain(self, item: Item) -> Rendered:
        """Texts without a template."""
        end = self.tokenizer.eos_token or ""
        if item.turns:
            lead = "".join(f"\n\n{NAMES.get(t.role, t.role)}: {t.content}" for t in item.turns)
            lead, tail = lead + "\n\nAssistant:", " " + item.response.strip() + end
        else:
            spaced = item.prompt[-1:].isspace() or item.response[:1].isspace()
            joined = spaced or not item.prompt
            lead, tail = item.prompt + ("" if joined else GAP), item.response.rstrip() + end
        return Rendered(_clean(lead), _clean(tail), item.turns or ())

    def _size(self, item: Item) -> int:
        """Tokens of the longest response to the item's prompt."""
        other = Item(item.key, item.prompt, item.turns, item.longest)
        (text,) = self._render_all([other])
        return 0 if isinstance(text, Unreadable) else len(self._ids([text.response])[0])

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids without special tokens of the tokenizer's own, except a leading bos."""
        if not texts:
            return []
        ids = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return list(ids)

    def _cut(self, text: Rendered, prompt: list[int], response: list[int], needed: int) -> Encoded:
        """Add bos and truncate to max_length.

        The prompt takes what the longest of its responses (`needed` tokens) leaves, but at least
        half, so it reads the same before each of them.
        """
        bos = [] if self.template else self.bos
        spare = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, 0
        filler = [next(token for token in spare if token is not None)]
        response = response or filler
        room = max(self.max_length // 2, self.max_length - needed) - len(bos)
        kept = prompt
        if len(prompt) > room:
            kept = kept_tokens(self.tokenizer, text.prompt, prompt, text.turns, room)
        whole = bos + kept or filler
        left = self.max_length - len(whole)
        return Encoded(
            tuple(whole),
            tuple(response[:left]),
            len(prompt) - len(kept),
            max(0, len(response) - left),
        )


def _clean(text: str) -> str:
    """Text without lone surrogates, which tokenizers cannot take."""
    return text.encode("utf-8", "replace").decode("utf-8")
