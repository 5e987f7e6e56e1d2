"""A pairs table as the models see it: distinct (prompt, response) items, and who meets whom.

items, chosen, rejected = distinct_items(dataset.table)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from noisescope.models import Item
from noisescope.pairs import Message, digest, response_key

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

#: Characters of a content key of an image (`pairs.digest`).
KEY_LENGTH = 20
#: Characters of prompt and response, some 512 tokens of English: longer ones may be cut.
SHORT = 2048


def distinct_items(table: pa.Table) -> tuple[list[Item], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct (prompt, response) of a pairs table, and each pair's two rows among them, [N]."""
    import numpy as np

    items: list[Item] = []
    rows: dict[str, int] = {}
    sides = np.empty((2, table.num_rows), np.int64)
    longest = longest_responses(table)
    columns = (table.column(name).to_pylist() for name in ("prompt", "turns", "chosen", "rejected"))
    for index, (prompt, turns, *responses) in enumerate(zip(*columns, strict=True)):
        for side, response in enumerate(responses):
            key = item_key(prompt, response, longest[prompt])
            row = rows.setdefault(key, len(items))
            if row == len(items):
                messages = turns and tuple(Message(t["role"], t["content"]) for t in turns)
                items.append(Item(key, prompt, messages or None, response, longest[prompt]))
            sides[side, index] = row
    return items, sides[0], sides[1]


def longest_responses(table: pa.Table) -> dict[str, str]:
    """The longest response to each prompt; of equally long ones the last in order of text."""
    longest: dict[str, str] = {}
    columns = (table.column(name).to_pylist() for name in ("prompt", "chosen", "rejected"))
    for prompt, *responses in zip(*columns, strict=True):
        known = longest.get(prompt, "")
        longest[prompt] = max(known, *responses, key=lambda text: (len(text), text))
    return longest


def item_key(prompt: str, response: str, longest: str) -> str:
    """Identity of a response: the key of what is cached for it.

    It covers the longest response to the prompt where that may decide how the prompt is cut: not
    for texts of at most SHORT characters in all, nor for content keys of images.
    """
    if len(longest) <= KEY_LENGTH or len(prompt) + len(longest) <= SHORT:
        return response_key(prompt, response)
    return digest("response", prompt, response, longest)


def fold_keys(table: pa.Table) -> NDArray[np.uint64]:
    """uint64 of each pair's content id, [N]: repeats of a pair share a fold."""
    import numpy as np

    return np.array(
        [int(key[:16], 16) for key in table.column("content_id").to_pylist()], np.uint64
    )
