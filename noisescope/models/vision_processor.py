"""Load the processor of a vision-language model, and render its chat template.

processor = load_processor(found)
Words(processor).apply_chat_template(messages)    # contents with `<image:KEY>` as parts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from noisescope.errors import ModelError, first_line
from noisescope.pairs import PICTURE

if TYPE_CHECKING:
    from noisescope.models.checkpoint import Checkpoint

#: What a template prints that takes content parts for text.
_PART = "'type': 'text'"


def load_processor(found: Checkpoint) -> Any:
    """The checkpoint's processor, with a chat template and a token for a picture's place.

    Raises ModelError.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(found.directory, trust_remote_code=False)
    except Exception as error:  # of many kinds, by processor
        raise ModelError(
            f"{found.name}: its processor, which prepares pictures, does not load: "
            f"{first_line(error)}",
            hint="Copy preprocessor_config.json and processor_config.json of the model it was made "
            "from; some processors need: pip install torchvision num2words",
        ) from error
    wanted = {"image_processor": "pictures", "tokenizer": "text", "image_token": "pictures in text"}
    absent = [what for name, what in wanted.items() if getattr(processor, name, None) is None]
    if not absent and _template_of(processor) is None:
        absent = ["chats (no chat_template.jinja)"]
    if absent:
        raise ModelError(
            f"{found.name}: {type(processor).__name__} prepares no {' and no '.join(absent)}",
            hint="Name an instruction-tuned vision-language model, such as "
            "HuggingFaceTB/SmolVLM-256M-Instruct.",
        )
    return processor


def _template_of(processor: Any) -> Any:
    return getattr(processor, "chat_template", None) or processor.tokenizer.chat_template


@final
class Words:
    """A tokenizer whose chat template is the processor's and gets content as parts."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        self.chat_template = _template_of(processor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        return self.tokenizer(*texts, **options)

    def get_chat_template(self, name: str | None = None, tools: Any = None) -> str:
        """Text of the template; of several the one of that name."""
        known = self.chat_template
        return str(known[name or "default"] if isinstance(known, dict) else known)

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The rendering with all content as parts, or where a template takes plain text for what
        shows no picture, with that as text."""
        own = sum(str(message.get("content", "")).count(_PART) for message in messages)
        fault: Exception | None = None
        for everywhere in (True, False):
            try:
                parts = [_in_parts(message, everywhere) for message in messages]
                text = str(self.tokenizer.apply_chat_template(parts, **options))
            except Exception as error:  # templates raise what Jinja and Python raise
                fault = fault or error
                continue
            if text.count(_PART) <= own:
                return text
        raise fault or ValueError("it writes content parts out as they are")


def _in_parts(message: Mapping[str, Any], everywhere: bool) -> dict[str, Any]:
    """A message whose content is a list of parts: texts and the places of pictures."""
    content = message.get("content")
    if not isinstance(content, str) or not (everywhere or PICTURE.search(content)):
        return dict(message)
    parts: list[dict[str, str]] = []
    pieces = PICTURE.split(content)  # text, key, text, key, ..., text
    for at in range(0, len(pieces), 2):
        text = pieces[at]
        text = text.removeprefix("\n") if at else text  # the line breaks are of the notation
        text = text.removesuffix("\n") if at + 1 < len(pieces) else text
        if text or len(pieces) == 1:
            parts.append({"type": "text", "text": text})
        if at + 1 < len(pieces):
            parts.append({"type": "image"})
    return {**message, "content": parts}
