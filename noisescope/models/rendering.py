"""Render conversations through a tokenizer's chat template, split into prompt and response.

    template = Template(tokenizer)
    frame = template.frame(turns)                # what is the same before every response
    template.response(frame, "It is noon.")      # the rest, end of turn included

`frame.prompt` and the response together are the template's own rendering of the finished
conversation, white space after the end of the turn aside. Three things make that more than a
common prefix with the generation prompt (as in TRL):

    thinking     A generation prompt that opens <think> is left before the finished answers where
                 the template writes them without it, and reasoning that the template would drop
                 makes the response unreadable.
    refusals     A conversation that the template raises for, or leaves turns out of, is rendered
                 with the text of system and tool turns in the user's turn; failing that, it is
                 unreadable. So are single rows: a strict template costs a row, not an audit.
    dates        `strftime_now` is fixed at DATE, so that a rendering is the same on every day.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, final

from noisescope.datasets.conversations import TOOLS, has_field, template_input, template_message
from noisescope.errors import ModelError, first_line
from noisescope.pairs import PICTURE, Message

#: The day of every rendering: the date that Llama 3.2 assumes where it cannot ask for one.
DATE = datetime(2024, 7, 26)
#: Version of the rendering of templates that do more than put text between marks.
VERSION = 2
#: Directives of strftime that templates may ask for.
_DIRECTIVES = "aAbBcdDeFHIjmMpSTUuwxXyYZ"
#: What to do where a chat template cannot be used.
PLAIN_TEXT = "`noisescope score` and `noisescope train` read plain text: --chat-template never"
_PLAIN, _THOUGHT, _FUNCTION = "Q7plainQ7", "Q7thoughtQ7", "q7_function"
#: Reasoning and answer; generated after an open <think>, an answer has no opening tag.
_THINKING = re.compile(r"\s*(?:<think>)?(.*?)</think>(.*)", re.DOTALL)
_OPENED = re.compile(r"<think>\s*\Z")
_FOLDED = "\n\n"


@final
class Unreadable(Exception):
    """Why a conversation cannot be rendered as it is meant."""


@final
@dataclass(frozen=True)
class Frame:
    """A prompt as rendered, and what renders a response to it; `turns` are those it holds."""

    prompt: str
    messages: list[dict[str, Any]]
    tools: list[Any] | None
    turns: tuple[Message, ...]


@final
class Template:
    """A tokenizer's chat template. Raises ModelError if it renders no plain exchange at all."""

    def __init__(self, tokenizer: Any, name: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.text = _source(tokenizer, name)
        self.has_thinking = "think" in self.text or "reasoning" in self.text
        self.has_tools = "tool_calls" in self.text
        try:
            self._render([_message("user", _PLAIN), _message("assistant", _PLAIN)])
        except Unreadable as error:
            raise ModelError(
                f"the chat template cannot render a plain exchange: {error}",
                hint=PLAIN_TEXT,
            ) from error

    def settings(self) -> dict[str, object]:
        """What a model's fingerprint has to cover beside the template's text."""
        found: dict[str, object] = {} if self.is_plain() else {"rendering": VERSION}
        found |= {"chat_template": self.name} if self.name else {}
        return found | ({"date": f"{DATE:%Y-%m-%d}"} if "strftime_now" in self.text else {})

    def is_plain(self) -> bool:
        """Whether responses follow the generation prompt at once, and no turn is left out.

        Such templates were always rendered as they are now.
        """
        system, user = _message("system", "Q7system"), _message("user", "Q7user")
        generation = self._attempt([user], None, add_generation_prompt=True)
        found = self.frame((Message("user", "Q7user"),))
        whole = self._attempt([system, user], None)  # None where a system turn is refused
        reply = self._attempt([user, _message("assistant", _PLAIN)], None) or ""
        return (
            isinstance(found, Frame)
            and generation == found.prompt
            and (self._base([user], None) or "").rstrip() == generation.rstrip()
            and not reply.rstrip().endswith(_PLAIN)
            and (whole is None or "Q7system" in whole)
        )

    def frame(self, turns: Sequence[Message]) -> Frame | Unreadable:
        """What is the same before every response to `turns`, or why there is no such thing."""
        faults = []
        for given, structured in _readings(tuple(turns)):
            try:
                return self._frame(given, structured=structured)
            except Unreadable as error:
                faults.append(error)
        return faults[0]

    def response(self, frame: Frame, response: str) -> str | Unreadable:
        """The rest of the rendering where the answer is `response`, or why there is none."""
        fault: Unreadable | None = None
        for reply in _replies(response):
            try:
                whole = self._render([*frame.messages, reply.message], frame.tools)
            except Unreadable as error:
                fault = fault or error
                continue
            rest = whole[len(frame.prompt) :].rstrip()
            if not whole.startswith(frame.prompt):
                fault = fault or Unreadable(
                    "the chat template writes the prompt otherwise before this response"
                )
            elif _holds(rest, *reply.texts) and self._calls(frame, reply.message, whole):
                return rest
        thought = _THINKING.fullmatch(response) is not None
        what = "leaves out the reasoning of" if thought else "does not render all of"
        return fault or Unreadable(f"the chat template {what} the response")

    def _calls(self, frame: Frame, message: dict[str, Any], whole: str) -> bool:
        """Whether the tool calls of a reply, if any, change its rendering."""
        if "tool_calls" not in message:
            return True
        plain = _message("assistant", message.get("content", ""))
        return self._attempt([*frame.messages, plain], frame.tools) != whole

    def _frame(self, turns: tuple[Message, ...], *, structured: bool) -> Frame:
        """The frame of turns as they are given, tool calls as fields or as text.

        Raises Unreadable.
        """
        messages, tools = template_input(turns, structured=structured)
        plain = self._render([*messages, _message("assistant", _PLAIN)], tools)
        base = plain[: plain.rfind(_PLAIN)]
        if _PLAIN not in plain:
            raise Unreadable("the chat template leaves out the response")
        if tools is not None and base == self._base(messages, None):
            raise Unreadable("the chat template has no place for tools")
        for message in messages:
            answer = _THINKING.sub(r"\2", message.get("content", ""))  # earlier reasoning may go
            if not _holds(base, answer):
                raise Unreadable(f"the chat template leaves out a turn of {message['role']}")
        bare = [_without_calls(message) for message in messages]
        if bare != messages and base == self._base(bare, tools):
            raise Unreadable("the chat template leaves out tool calls")
        prompt = base
        for probe, mark in self._probes():
            other = self._base(messages, tools, probe, mark)
            if other is not None:
                prompt = _common(prompt, other)
        generation = self._attempt(messages, tools, add_generation_prompt=True)
        if generation is not None and not prompt.startswith(generation):
            prompt = _common(prompt, generation)
        if generation is not None and not prompt[len(generation) :].strip():
            prompt = prompt[: len(generation)]  # white space belongs to the word that follows it
        if prompt != base:  # a thinking block that only some responses fill is theirs
            prompt = _OPENED.sub("", prompt)
        return Frame(prompt, messages, tools, turns)

    def _probes(self) -> list[tuple[dict[str, Any], str]]:
        """Responses before which a template may write something else than before plain text."""
        probes = []
        if self.has_thinking:
            thought = f"<think>\n{_THOUGHT}\n</think>\n\n{_PLAIN}"
            probes.append((_message("assistant", thought), _THOUGHT))
            structured = _message("assistant", _PLAIN) | {"reasoning_content": _THOUGHT}
            probes.append((structured, _THOUGHT))
        if self.has_tools:
            call = {"type": "function", "function": {"name": _FUNCTION, "arguments": {}}}
            probes.append((_message("assistant", "") | {"tool_calls": [call]}, _FUNCTION))
        return probes

    def _base(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        reply: dict[str, Any] | None = None,
        mark: str = _PLAIN,
    ) -> str | None:
        """What is written before `mark` in a reply, or None where the mark is not written."""
        reply = reply or _message("assistant", _PLAIN)
        whole = self._attempt([*messages, reply], tools)
        return None if whole is None or mark not in whole else whole[: whole.rfind(mark)]

    def _attempt(self, messages: list[dict[str, Any]], tools: Any, **more: bool) -> str | None:
        try:
            return self._render(messages, tools, **more)
        except Unreadable:
            return None

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """The template's own rendering, on DATE. Raises Unreadable with the template's reason."""
        template = dated(self.tokenizer.get_chat_template(self.name, tools))

        def render(messages: list[dict[str, Any]]) -> str:
            found = self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
            return str(found)

        try:
            try:
                return render(messages)
            except Exception:  # some templates need the content of a tool call, though empty
                whole = [{"content": ""} | message for message in messages]
                if whole == messages:
                    raise
                return render(whole)
        except Exception as error:  # templates raise what Jinja and Python raise
            reason = first_line(error)
            roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
            fault = f"the chat template refuses a conversation of {roles}: {reason}"
            raise Unreadable(fault) from error


@final
@dataclass(frozen=True)
class _Reply:
    """A response as a message, and the texts that its rendering has to hold."""

    message: dict[str, Any]
    texts: tuple[str, ...]


def _replies(response: str) -> list[_Reply]:
    """A response as messages that a template may take, the one that it was read from first."""
    given = template_message(Message("assistant", response))
    content = given.get("content", "")
    found = [_Reply(given, (content,))]
    if thought := _THINKING.fullmatch(content):
        reasoning, answer = thought[1].strip(), thought[2].strip()
        fields = given | {"content": answer, "reasoning_content": reasoning}
        tagged = given | {"content": f"<think>\n{reasoning}\n</think>\n\n{answer}"}
        found = [_Reply(one, (reasoning, answer)) for one in (given, fields, tagged)]
        if has_field(content):  # the file has the reasoning in a field of its own
            found = found[1:]
    return [*found, _Reply(_message("assistant", response), (response,))]


def finished(tokenizer: Any, turns: Sequence[Message]) -> str:
    """The template's own rendering of a whole conversation, on DATE. Raises ModelError."""
    messages, tools = template_input(turns)
    try:
        text = dated(tokenizer.get_chat_template(None, tools))
        return str(
            tokenizer.apply_chat_template(messages, tools=tools, chat_template=text, tokenize=False)
        )
    except Exception as error:  # templates raise what Jinja and Python raise
        reason = first_line(error)
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path} refuses a conversation: {reason}",
            hint="Leave out prompts of that kind, or use a judge that reads plain text.",
        ) from error


def _source(tokenizer: Any, name: str | None) -> str:
    """Text of the template. Raises ModelError where there are several and none is chosen."""
    known = tokenizer.chat_template
    if known is None:
        raise ModelError(
            f"--chat-template {name}: the tokenizer has no chat template",
            hint="Leave --chat-template out.",
        )
    if isinstance(known, dict) and name not in known and (name or "default" not in known):
        raise ModelError(
            f"the tokenizer has the chat templates {', '.join(sorted(known))}"
            + (f", not {name}" if name else " and no default"),
            hint=f"Choose one: --chat-template {min(known)}",
        )
    if name is not None and not isinstance(known, dict):
        raise ModelError(
            f"--chat-template {name}: the tokenizer has one template, without a name",
            hint="Leave --chat-template out. " + PLAIN_TEXT,
        )
    return str(tokenizer.get_chat_template(name))


def dated(template: str) -> str:
    """The template with today fixed at DATE."""
    if "strftime_now" not in template:
        return template
    changes = "".join(
        f"|replace({json.dumps('%' + letter)}, {json.dumps(DATE.strftime('%' + letter))})"
        for letter in _DIRECTIVES
    )
    macro = "{% macro strftime_now(format) %}{{ format|replace('%-', '%')" + changes + " }}"
    return macro + "{% endmacro %}{{ '' }}" + template


def _readings(turns: tuple[Message, ...]) -> list[tuple[tuple[Message, ...], bool]]:
    """Turns as a template may take them, as given first; whether tool calls are fields."""
    readings = [
        (turns, True),
        (turns, False),
        (fold_turns(turns, system=True), False),
        (fold_turns(turns), False),
    ]
    return list(dict.fromkeys(readings))


def fold_turns(turns: Sequence[Message], *, system: bool = False) -> tuple[Message, ...]:
    """Turns of user and assistant alone, in alternation: text of other roles joins the user's.

    With `system` a system turn is kept and takes the list of tools.
    """
    folded: list[Message] = []
    for turn in turns:
        content = f"Tools: {turn.content}" if turn.role == TOOLS else turn.content
        role = turn.role if turn.role == "assistant" else "user"
        if system and not any(earlier.role != "system" for earlier in folded):
            role = "system" if turn.role in (TOOLS, "system", "developer") else role
        if folded and folded[-1].role == role:
            folded[-1] = Message(role, folded[-1].content + _FOLDED + content)
        else:
            folded.append(Message(role, content))
    return tuple(folded)


def _without_calls(message: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != "tool_calls"}


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _holds(text: str, *parts: str) -> bool:
    """Whether every part is in the text, as it is or as JSON writes it; pictures are not text."""
    pieces = [piece.strip() for part in parts for piece in PICTURE.sub("\0", part).split("\0")]
    return all(
        piece in text or json.dumps(piece, ensure_ascii=False)[1:-1] in text for piece in pieces
    )


def _common(one: str, other: str) -> str:
    """The longest common beginning."""
    limit = min(len(one), len(other))
    return one[: next((i for i in range(limit) if one[i] != other[i]), limit)]
