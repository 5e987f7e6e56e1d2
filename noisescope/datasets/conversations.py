"""Read messages as turns, write turns as text, and give them back to a chat template.

What a chat template takes beside role and content is kept in these two, so that pairs, files and
identities need no further fields (`template_input` is the way back):

    tools            the first turn, Message("tools", <JSON list of the functions>): `tools_turn`
    system           Message("system", <text>), after the tools and before everything else
    reasoning        "<think>\n{reasoning}\n</think>\n{content}": `with_reasoning`
    tool calls       content, then one "<tool_call>\n{JSON}\n</tool_call>" a call: `with_calls`
    tool results     Message("tool", <text>)

A response is the content of an assistant turn, in the same form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from noisescope.datasets.adapters.cells import RawRow, RowFault, as_json, decoded, kind, unexpected
from noisescope.datasets.adapters.names import MEDIA
from noisescope.pairs import Message

#: How a role is written in a readable prompt.
SPEAKERS = {
    "user": "Human",
    "assistant": "Assistant",
    "system": "System",
    "tool": "Tool",
    "tools": "Tools",
}
#: Role of the turn that lists the functions an assistant may call.
TOOLS = "tools"
#: What a message calls the reasoning before its content; the first that is text counts.
REASONING = ("reasoning_content", "reasoning", "thinking")
_FIELD = re.compile(r"<think>\n(?:(?!</think>).)*\n</think>\n(?!\s)", re.DOTALL)
#: A text, or the turns of a conversation.
Spoken = str | tuple[Message, ...]
#: What other tools call the roles.
_ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "ai": "assistant",
    "chatgpt": "assistant", "model": "assistant", "observation": "tool", "function": "tool",
}  # fmt: skip
_ENCODED = re.compile(r"\s*\[?\s*\{\s*['\"](?:role|from|content|value)['\"]")
_CALL = re.compile(r"\n?<tool_call>\n(\{.*\})\n</tool_call>")


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
    return tuple(message(item, column) for item in value)


def spoken(found: Any, column: str) -> Spoken:
    """A cell as text, or as turns if it holds messages, one message, or JSON text of these."""
    if isinstance(found, str):
        if not _ENCODED.match(found):
            return found
        found = decoded(found)
        if isinstance(found, str):
            raise RowFault("unreadable", f"{column} holds text of messages that is not valid JSON")
    if isinstance(found, Mapping) and ("content" in found or "value" in found):
        return (message(found, column),)
    if found is None:
        raise RowFault("unreadable", f"{column} is missing or null")
    if not isinstance(found, (list, tuple)):
        raise RowFault("unreadable", f"{column} is {kind(found)}, expected text")
    return tuple(message(item, column) for item in found)


def message(item: object, column: str) -> Message:
    """A turn from {"role", "content"}, or {"from", "value"} as ShareGPT has it."""
    if not isinstance(item, Mapping):
        raise RowFault("unreadable", f"{column} is a list that holds {kind(item)}, not messages")
    role = item.get("role", item.get("from"))
    if not isinstance(role, str):
        raise RowFault("unreadable", f"a message of {column} has no role")
    content, calls = item.get("content", item.get("value")), item.get("tool_calls")
    reasoning = next((item[name] for name in REASONING if isinstance(item.get(name), str)), "")
    if content is None and calls is None and not reasoning:
        raise RowFault("unreadable", f"a message of {column} has no content")
    text = "" if content is None else _content(content, column)
    if "<think>" in text:
        reasoning = ""
    role = _ROLES.get(role.strip().lower(), role)
    return Message(role, with_reasoning(reasoning, with_calls(text, calls)))


def with_reasoning(reasoning: str, content: str) -> str:
    """Content with the reasoning that came before it, in the tags that most models use."""
    if not reasoning.strip():
        return content
    return f"<think>\n{reasoning.strip()}\n</think>\n{content.lstrip()}"


def has_field(content: str) -> bool:
    """Whether reasoning in the content comes from a field of its own (`with_reasoning`).

    Models write an empty line after their reasoning, and so do files that keep it in the content.
    """
    return _FIELD.match(content) is not None


def with_calls(content: str, calls: object) -> str:
    """Content with the tool calls that follow it; calls of an unknown shape as plain JSON."""
    if not calls:
        return content
    known = [_call(call) for call in calls] if isinstance(calls, (list, tuple)) else [None]
    if None in known:
        return "\n".join(part for part in (content, as_json(calls)) if part)
    texts = [f"<tool_call>\n{_json(call)}\n</tool_call>" for call in known]
    return "\n".join([content, *texts] if content else texts)


def _call(call: object) -> dict[str, Any] | None:
    """A tool call as {"type", "function": {"name", "arguments"}}, or None if it is not one."""
    if not isinstance(call, dict):
        return None
    whole = call if isinstance(call.get("function"), dict) else {"function": call}
    if not isinstance(whole["function"].get("name"), str):
        return None
    return {"type": "function"} | whole


def tools_turn(tools: object) -> Message:
    """The turn that lists the functions of a `tools` column (a list, or JSON text of one)."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise RowFault("unreadable", "tools is text, but not JSON") from error
    if not isinstance(tools, (list, tuple)) or not all(isinstance(tool, dict) for tool in tools):
        raise RowFault("unreadable", f"tools is {kind(tools)}, expected a list of functions")
    return Message(TOOLS, _json(list(tools)))


def without_nulls(value: Any) -> Any:
    """The value without null fields: in Parquet every row has the fields of all rows."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(item) for item in value]
    return value


def template_input(
    turns: Sequence[Message], *, structured: bool = True
) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """(messages, tools) as `apply_chat_template` takes them; reasoning stays in the content.

    Tool calls become fields if `structured`, and tool results get the name and id of
    the call that they answer, in order.
    """
    tools = None
    if turns and turns[0].role == TOOLS:
        tools, turns = json.loads(turns[0].content), turns[1:]
    if not structured:
        return [{"role": turn.role, "content": turn.content} for turn in turns], tools
    messages: list[dict[str, Any]] = []
    open_calls: list[dict[str, Any]] = []
    for turn in turns:
        message = template_message(turn)
        open_calls = message.get("tool_calls", open_calls)
        if turn.role == "tool" and open_calls:
            call, *open_calls = open_calls
            message["name"] = call["function"]["name"]
            message |= {"tool_call_id": call["id"]} if "id" in call else {}
        messages.append(message)
    return messages, tools


def template_message(turn: Message) -> dict[str, Any]:
    """A turn as a message, its tool calls as a field; content that is nothing but calls is left
    out, as in the files of most tool data."""
    plain: dict[str, Any] = {"role": turn.role, "content": turn.content}
    texts = _CALL.findall(turn.content) if turn.role == "assistant" else []
    try:
        calls = [json.loads(text) for text in texts]
    except ValueError:
        return plain
    if not calls or not all(_is_ours(call) for call in calls):
        return plain
    content = _CALL.sub("", turn.content)
    found = {"role": turn.role} | ({"content": content} if content else {})
    return found | {"tool_calls": calls}


def _is_ours(call: dict[str, Any]) -> bool:
    """Whether a call is written by `with_calls`; others are text of the dataset's own."""
    function = call.get("function")
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _content(content: object, column: str) -> str:
    """Plain text, or the text parts of a content list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise RowFault("unreadable", f"content in {column} is {kind(content)}, expected text")
    texts = []
    for part in content:
        value = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(value, str) or _is_media(part):
            raise RowFault("unreadable", f"content in {column} is not only text")
        texts.append(value)
    return "\n".join(texts)


def _is_media(part: object) -> bool:
    """Whether a part of a content list is a picture, a film or sound, whatever text it has too."""
    return isinstance(part, Mapping) and MEDIA.search(str(part.get("type"))) is not None


def _json(value: object) -> str:
    """JSON without null fields and with the order of keys kept: a chat template writes them out."""
    try:
        return json.dumps(without_nulls(value), ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowFault("unreadable", "structured content that is not JSON") from error
