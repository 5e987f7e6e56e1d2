"""Prompts with pictures for a vision-language model: tokens, pixels and what else it takes.

    encoder = VisionEncoder(processor, dataset.images, max_length=4096)
    encoder.encode(items)              # a prompt holds the tokens of its pictures
    encoder.inputs(items, width)       # what the model takes beside token ids, by name

A picture in a prompt is `<image:KEY>` (`pairs.PICTURE`): the template gets a content part of type
"image" in its place, and the processor the decoded pictures in that order. Prompts with pictures
are never cut; a response is cut at its end as without pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import DataError, ModelError, first_line
from noisescope.models import Item
from noisescope.models.rendering import Template, Unreadable
from noisescope.models.tokenize import Encoded, Encoder
from noisescope.models.vision_processor import Words
from noisescope.pairs import PICTURE, Message

if TYPE_CHECKING:
    import torch

    from noisescope.pairs import ImageStore

#: Bumped whenever the same model would read the same prompt otherwise.
VERSION = 1
#: Tokens of a text where the model allows them: one picture may take a thousand or more.
DEFAULT_LENGTH = 4096
UNCUT = 1 << 40

#: A prompt, and its turns where it has any.
Prompt = tuple[str, tuple[Message, ...] | None]


def _name(item: Item) -> Prompt:
    return item.prompt, item.turns


def pictures_of(item: Item) -> list[str]:
    """Content keys of the pictures in an item's prompt, in order."""
    texts = [turn.content for turn in item.turns] if item.turns else [item.prompt]
    return [key for text in texts for key in PICTURE.findall(text)]


@final
@dataclass(frozen=True)
class Shown:
    """Token ids of a prompt with its pictures, and the form of what else the processor makes of
    it (`_Made.shape`), which rows of a batch have in common."""

    ids: tuple[int, ...]
    shape: tuple[tuple[Any, ...], ...]


@final
@dataclass
class VisionEncoder:
    """Encodes items whose prompts may show pictures; used as an `Encoder`."""

    processor: Any
    images: ImageStore
    max_length: int
    name: str | None = None
    template: bool = True
    _known: dict[Prompt, Shown | Unreadable] = field(default_factory=dict, repr=False)

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @cached_property
    def text(self) -> Encoder:
        """The encoder of the texts, in which a picture is a single token; it cuts nothing."""
        return Encoder(Words(self.processor), UNCUT, True, self.name)

    @property
    def chat(self) -> Template:
        """The chat template."""
        return self.text.chat

    def encode(self, items: Sequence[Item], reserve: int | None = None) -> list[Encoded]:
        """Encode each item. Raises ModelError for one that cannot be read."""
        found = self.encode_readable(items, reserve)
        for item, one in zip(items, found, strict=True):
            if isinstance(one, Unreadable):
                shown = " ".join(item.prompt.split())[:60]
                raise ModelError(f"{one}: prompt {shown!r}", hint="Leave the pair out.")
        return [one for one in found if isinstance(one, Encoded)]

    def encode_readable(
        self, items: Sequence[Item], reserve: int | None = None
    ) -> list[Encoded | Unreadable]:
        """Encode each item, or return why the model cannot read it as it is."""
        return [
            one if isinstance(one, Unreadable) else self._whole(item, one)
            for item, one in zip(items, self.text.encode_readable(items), strict=True)
        ]

    def _whole(self, item: Item, text: Encoded) -> Encoded | Unreadable:
        """The item with the tokens of its pictures, its response cut to max_length."""
        shown = self.shown(item)
        if isinstance(shown, Unreadable):
            return shown
        if self._places.intersection(text.response):
            return Unreadable(f"the response holds {self.processor.image_token}, a picture's place")
        size, response = len(shown.ids), text.response
        if size + len(response) > self.max_length and size > self.max_length // 2:
            return Unreadable(
                f"with its pictures the prompt takes {size:,} of {self.max_length:,} tokens "
                f"(--max-length), and the response {len(response):,}"
            )
        left = self.max_length - size
        return Encoded(shown.ids, response[:left], 0, max(0, len(response) - left))

    @cached_property
    def _places(self) -> frozenset[int]:
        """Ids of tokens that the model reads as pictures."""
        word = self.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        more = getattr(self.processor, "image_token_ids", None) or ()
        return frozenset([word, *more])

    def shown(self, item: Item) -> Shown | Unreadable:
        """The item's prompt as the processor makes it, or why it cannot; kept."""
        name = _name(item)
        if name not in self._known:
            try:
                made = self._process(item)
            except Unreadable as fault:
                self._known[name] = fault
            else:
                self._known[name] = Shown(made.ids, made.shape)
        return self._known[name]

    def _process(self, item: Item) -> _Made:
        """Run the processor on an item's prompt. Raises Unreadable."""
        from noisescope.datasets.images import decode

        lead = self.text.render(item)[0]
        keys, places = pictures_of(item), lead.count(self.processor.image_token)
        if places != len(keys):
            raise Unreadable(
                f"the rendered prompt has {places} places for its {len(keys)} pictures"
            )
        try:
            pictures = [decode(self.images.get(key)) for key in keys]
        except DataError as error:
            raise Unreadable(error.message) from error
        given = {"images": [pictures]} if pictures else {}
        try:
            made = self.processor(
                text=[lead], return_tensors="pt", add_special_tokens=False, **given
            )
        except Exception as error:  # of many kinds, by processor
            raise Unreadable(f"the processor refuses the prompt: {first_line(error)}") from error
        return _Made.of(dict(made))

    def divided(
        self, items: Sequence[Item], parts: Iterable[Sequence[int]], *, alone: bool
    ) -> Iterator[list[int]]:
        """Parts of `items` divided further: pictures of one form, or `alone` one item each."""
        for part in parts:
            forms: dict[object, list[int]] = {}
            for at in part:
                found = self.shown(items[at])
                form = at if alone or isinstance(found, Unreadable) else found.shape
                forms.setdefault(form, []).append(at)
            yield from forms.values()

    def inputs(self, items: Sequence[Item], width: int) -> dict[str, torch.Tensor]:
        """What the model takes for rows of `width` tokens, one an item, beside their ids.

        Items are of one `Shown.shape`; an equal prompt is processed once. Raises ModelError.
        """
        import torch

        made: dict[Prompt, _Made] = {}
        for item in items:
            try:
                if _name(item) not in made:
                    made[_name(item)] = self._process(item)
            except Unreadable as fault:
                raise ModelError(str(fault), hint="Run the same command again.") from fault
        each = [made[_name(item)] for item in items]
        pad = torch.nn.functional.pad
        rows = {
            name: torch.stack(
                [pad(torch.tensor(one.rows[name]), (0, width - len(one.ids))) for one in each]
            )
            for name in each[0].rows
        }
        pixels = {name: torch.cat([one.pixels[name] for one in each]) for name in each[0].pixels}
        return rows | pixels


@final
@dataclass(frozen=True)
class _Made:
    """What a processor made of one prompt: ids, further rows of one number a token, and pixels."""

    ids: tuple[int, ...]
    rows: dict[str, list[int]]
    pixels: dict[str, torch.Tensor]

    @classmethod
    def of(cls, made: dict[str, Any]) -> _Made:
        """Sort a processor's output for one text into its parts. Raises Unreadable."""
        import torch

        ids = made.pop("input_ids")
        made.pop("attention_mask", None)
        rows = {name: value for name, value in made.items() if value.shape == ids.shape}
        pixels = {name: value for name, value in made.items() if name not in rows}
        odd = [name for name, value in pixels.items() if not isinstance(value, torch.Tensor)]
        if odd:
            raise Unreadable(f"the processor returns {odd[0]} in a form of its own")
        listed = {name: value[0].tolist() for name, value in rows.items()}
        return cls(tuple(ids[0].tolist()), listed, pixels)

    @property
    def shape(self) -> tuple[tuple[Any, ...], ...]:
        """Names and inner sizes of the pixels, and names of the rows."""
        inner = [(name, *value.shape[1:]) for name, value in sorted(self.pixels.items())]
        return (*inner, tuple(sorted(self.rows)))
