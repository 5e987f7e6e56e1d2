"""Conversations: splitting two of them into a common prompt and two responses.

The prompt is the turns common to both, up to the last assistant turn that both reach. Cutting
by characters instead swallows response text wherever two responses begin alike, and cutting at
one side's last assistant turn is wrong where the conversations part earlier.
"""

from __future__ import annotations

from collections.abc import Sequence

from noisescope.datasets.adapter import RawRow, RowFault, as_json, kind, unexpected
from noisescope.pairs import Message

#: How a role is written in a readable prompt.
SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System", "tool": "Tool"}


def split(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[tuple[Message, ...], str, str]:
    """Return (prompt turns, chosen response, rejected response).

    Where the conversations part before their last turn, the responses are all that follows,
    written out. Raises RowFault where no assistant turn follows a common prompt.
    """
    if list(chosen) == list(rejected):
        raise RowFault("identical sides", f"the same {len(chosen)} turns")
    common = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        common += 1
    cut = common
    while cut >= 0 and not _both_answer(chosen, rejected, cut):
        cut -= 1
    if cut < 0:
        raise RowFault("unreadable", "no assistant turn that both sides reach")
    return tuple(chosen[:cut]), written(chosen[cut:]), written(rejected[cut:])


def _both_answer(chosen: Sequence[Message], rejected: Sequence[Message], turn: int) -> bool:
    return all(turn < len(side) and side[turn].role == "assistant" for side in (chosen, rejected))


def written(turns: Sequence[Message]) -> str:
    """A response as text: one turn is its content, more are written out after the first."""
    if not turns:
        return ""
    if turns[0].role != "assistant":
        return rendered(turns)
    rest = rendered(turns[1:])
    return turns[0].content + (f"\n\n{rest}" if rest else "")


def rendered(turns: Sequence[Message]) -> str:
    """Readable text of turns: "Human: ...", blank line, "Assistant: ..."."""
    return "\n\n".join(f"{SPEAKERS.get(turn.role, turn.role)}: {turn.content}" for turn in turns)


def messages(row: RawRow, column: str) -> tuple[Message, ...]:
    """Turns from a column's list of {"role", "content"}. Raises RowFault for any other value."""
    value = row.get(column)
    if not isinstance(value, (list, tuple)):
        raise unexpected(row, "a list of messages", column)
    return tuple(_message(item, column) for item in value)


def _message(item: object, column: str) -> Message:
    if not isinstance(item, dict):
        raise RowFault("unreadable", f"{column} is a list that holds {kind(item)}, not messages")
    role = item.get("role")
    if not isinstance(role, str):
        raise RowFault("unreadable", f"a message of {column} has no role")
    content, calls = item.get("content"), item.get("tool_calls")
    if content is None and calls is None:
        raise RowFault("unreadable", f"a message of {column} has no content")
    parts = [] if content is None else [_content(content, column)]
    if calls:
        parts.append(as_json(calls))
    return Message(role, "\n".join(part for part in parts if part))


def _content(content: object, column: str) -> str:
    """Plain text, or the text parts of a content list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise RowFault("unreadable", f"content in {column} is {kind(content)}, expected text")
    texts = []
    for part in content:
        value = part.get("text") if isinstance(part, dict) else part
        if not isinstance(value, str):
            raise RowFault("unreadable", f"content in {column} is not only text")
        texts.append(value)
    return "\n".join(texts)
