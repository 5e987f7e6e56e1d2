"""A JSON array of rows, rewritten: tokens keep their bytes. Held whole in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from noisescope.datasets import readers
from noisescope.datasets.rewrite.json_lines import rewrite_lines
from noisescope.datasets.rewrite.tables import Change, Decoded, SwapTexts
from noisescope.datasets.rewrite.tokens import (
    BOM,
    after_space,
    decode,
    items,
    members,
    object_of,
    opened,
    recoded,
)
from noisescope.errors import DataError


def rewrite_json(
    source: Path, target: Path, change: Change, swap_texts: SwapTexts | None = None
) -> None:
    """A JSON array of rows, or an object that holds one; JSON lines under the same ending."""
    with opened(source, "rb") as stream:
        first = next((line for line in readers.bounded_lines(stream, source) if line.strip()), b"")
    if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") and object_of(first)[0] is not None:
        rewrite_lines(source, target, change, swap_texts)
        return
    with opened(source, "rb") as stream:
        text = readers.bounded_read(stream, source).decode("utf-8")
    spans = list(items(text, _array_start(text, source)))
    values = [decode(text, begin)[0] for begin, _ in spans]
    rows: list[Decoded] = [
        (number, value, "") if isinstance(value, dict) else (number, None, "not a JSON object")
        for number, value in enumerate(values)
    ]
    with opened(target, "wb") as out:
        out.write(_spliced(text, spans, values, change(rows)).encode())


def _spliced(
    text: str,
    spans: Sequence[tuple[int, int]],
    values: Sequence[Any],
    changes: Mapping[int, Mapping[str, Any] | None],
) -> str:
    """`text` with the values at `spans` changed; one that goes takes the comma before it along."""
    if not spans:
        return text
    pieces, at, kept = [text[: spans[0][0]]], spans[0][0], False
    for index, (begin, end) in enumerate(spans):
        new = changes.get(index, values[index])
        if new is not None:
            pieces.append(text[at:begin] if kept else "")
            same = index not in changes
            pieces.append(
                text[begin:end] if same else recoded(text, begin, end, values[index], new)
            )
            kept = True
        at = end
    return "".join([*pieces, text[at:]])


def _array_start(text: str, source: Path) -> int:
    """Where the one array of rows begins: at the top, or as the only array of an object."""
    begin = after_space(text, 1 if text.startswith(BOM) else 0)
    if text[begin] == "{":
        arrays = [at for _, at, _ in members(text, begin) if text[at] == "["]
        if len(arrays) == 1:
            return arrays[0]
    if text[begin] != "[":
        raise DataError(f"{source}: holds no single JSON array of rows")
    return begin
