"""Prompt and response together are what the chat template renders for the finished conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.chat_templates import TEMPLATES
from helpers.tiny_models import tiny_tokenizer
from trl.data_utils import apply_chat_template

from noisescope.datasets.conversations import messages, template_input, tools_turn
from noisescope.errors import ModelError
from noisescope.models import Item
from noisescope.models.rendering import DATE, Frame, Template, Unreadable, dated, fold_turns
from noisescope.models.tokenize import Encoder
from noisescope.pairs import Message

USER = {"role": "user", "content": "How do I bake?"}
SYSTEM = {"role": "system", "content": "Be kind."}
BEFORE = [USER, {"role": "assistant", "content": "Ask again."}, {"role": "user", "content": "How?"}]
THOUGHT = "<think>\nFlour, water.\n</think>\n\nKnead it."
TOOL = {"type": "function", "function": {"name": "oven", "description": "Heats."}}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "oven", "arguments": {"c": 9}}}
RESULT = {"role": "tool", "content": 'a "b"', "tool_call_id": "abcdefghi", "name": "oven"}
CALLED = [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT]


def said(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


#: Name -> prompt, chosen reply, rejected reply, tools.
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any], list[Any] | None]] = {
    "plain": ([USER], said("Knead it."), said("<b>No.</b>"), None),
    "system": ([SYSTEM, USER], said("Knead it."), said("No."), None),
    "turns": ([SYSTEM, *BEFORE], said("Knead it."), said("No.\n\nNo."), None),
    "thinking": ([USER], said(THOUGHT), said("No."), None),
    "thinking twice": ([USER], said(THOUGHT), said(THOUGHT.replace("Knead", "Eat")), None),
    "thought before": (
        [USER, said(THOUGHT), *BEFORE[2:]],
        said("Wait for it."),
        said("No."),
        None,
    ),
    "reasoning": ([USER], said("Knead it.", reasoning_content="Flour."), said("No."), None),
    "tools": ([USER], {"role": "assistant", "tool_calls": [CALL]}, said("No."), [TOOL]),
    "tool turn": (CALLED, said("It is hot."), said("No."), [TOOL]),
}
#: The template drops the reasoning of a finished answer: such a response cannot be judged with it.
DROPPED = {
    (name, case)
    for name in ("distilled", "closed")
    for case in ("thinking", "thinking twice", "reasoning")
}
#: The template refuses the conversation, or leaves part of it out: that part is written as text.
FOLDED = {
    ("no system", "system"),
    ("no system", "turns"),
    ("strict", "system"),
    ("strict", "turns"),
    *((name, case) for name in ("no system", "forgetful") for case in ("tools", "tool turn")),
    ("forgetful", "system"),
    ("forgetful", "turns"),
    *(
        (name, case)
        for name in ("chatml", "dated", "distilled", "thinking", "opened", "questioning")
        for case in ("tools", "tool turn")
    ),
    *(
        (name, case)
        for name in ("switched", "unended", "closed")
        for case in ("tools", "tool turn")
    ),
    *(
        (name, "reasoning")
        for name in ("chatml", "dated", "questioning", "no system", "strict", "tools", "unended")
    ),
    ("forgetful", "reasoning"),
}


def tokenizer(template: str | dict[str, str] | None) -> Any:
    made = tiny_tokenizer(None)
    made.add_special_tokens({"bos_token": "<s>"})
    made.chat_template = template
    return made


def turns_of(prompt: list[dict[str, Any]], tools: list[Any] | None) -> tuple[Message, ...]:
    first = () if tools is None else (tools_turn(tools),)
    return (*first, *messages({"prompt": prompt}, "prompt"))


def content_of(reply: dict[str, Any]) -> str:
    return messages({"reply": [reply]}, "reply")[0].content


def own(made: Any, turns: list[dict[str, Any]], tools: list[Any] | None) -> str:
    text = dated(made.get_chat_template(None, tools))
    return str(made.apply_chat_template(turns, tools=tools, chat_template=text, tokenize=False))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_and_response_are_the_finished_conversation(name: str, case: str) -> None:
    made = tokenizer(TEMPLATES[name])
    prompt, *replies, tools = CASES[case]
    template = Template(made)
    frame = template.frame(turns_of(prompt, tools))
    assert isinstance(frame, Frame)
    found = [template.response(frame, content_of(reply)) for reply in replies]
    if (name, case) in DROPPED:
        assert "leaves out the reasoning" in str(found[0])
        return
    if (name, case) in FOLDED:  # nothing is lost: every text is there, and rendered by the template
        for reply, one in zip(replies, found, strict=True):
            assert isinstance(one, str)
            kept = [turn.content for turn in frame.turns]
            texts = [reply.get("content", "oven"), reply.get("reasoning_content", "")]
            assert all(text in one for text in texts)
            assert all(text.split("</think>")[-1].strip() in frame.prompt for text in kept)
            parts = {part for text in kept for part in (text, *text.split("\n\n"))}
            parts |= {part.removeprefix("Tools: ") for part in parts}
            assert {turn.content for turn in turns_of(prompt, tools)} <= parts
        return
    for reply, one in zip(replies, found, strict=True):
        assert isinstance(one, str)
        assert frame.prompt + one == own(made, [*prompt, reply], tools).rstrip()


def test_the_table_covers_twelve_templates_of_four_kinds() -> None:
    equal = {(name, case) for name in TEMPLATES for case in CASES} - FOLDED - DROPPED
    assert len(TEMPLATES) >= 12
    assert {name for name, case in equal if case == "plain"} == set(TEMPLATES)
    assert {case for name, case in equal} == set(CASES)


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"channels", "dated"}))
def test_trl_renders_the_same(name: str) -> None:
    """TRL has no fixed date, and takes the border at the first differing letter of the sides."""
    made = tokenizer(TEMPLATES[name])
    template = Template(made)
    for case, (prompt, chosen, rejected, tools) in CASES.items():
        if (name, case) in FOLDED | DROPPED:
            continue
        row = {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}
        theirs = apply_chat_template(row, made, tools=tools)
        frame = template.frame(turns_of(prompt, tools))
        assert isinstance(frame, Frame)
        for side, reply in (("chosen", chosen), ("rejected", rejected)):
            whole = frame.prompt + str(template.response(frame, content_of(reply)))
            assert whole == (theirs["prompt"] + theirs[side]).rstrip()
        if name in ("chatml", "no system", "strict", "tools", "unended", "closed"):
            assert frame.prompt == theirs["prompt"]


TRL_TEMPLATES = (
    "llama3", "llama3_2", "qwen2_5", "qwen3", "qwen3_5_think", "deepseek_r1_distill", "gptoss",
    "gemma", "gemma3", "glm4moe", "nemotron_3_nano", "phi3", "cohere",
)  # fmt: skip


@pytest.mark.parametrize("name", TRL_TEMPLATES)
def test_public_templates_as_trl_ships_them(name: str) -> None:
    import trl

    path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    made = tokenizer(path.read_text("utf-8"))
    template = Template(made)
    equal = 0
    for prompt, *replies, tools in CASES.values():
        frame = template.frame(turns_of(prompt, tools))
        for reply in replies:
            if not isinstance(frame, Frame):
                continue
            one = template.response(frame, content_of(reply))
            if isinstance(one, Unreadable):
                assert "reasoning" in str(one)
                continue
            given, given_tools = template_input(turns_of(prompt, tools))
            if (frame.messages, frame.tools) == (given, given_tools) and set(reply) == {
                "role",
                "content",
            }:
                assert frame.prompt + one == own(made, [*prompt, reply], tools).rstrip()
                equal += 1
    assert equal >= 7


@pytest.mark.parametrize("name", TEMPLATES)
def test_both_sides_are_encoded_after_the_same_prompt(name: str) -> None:
    made = tokenizer(TEMPLATES[name])
    encoder = Encoder(made, 4096, True)
    for prompt, *replies, tools in CASES.values():
        turns = turns_of(prompt, tools)
        items = [Item("k", "p", turns, content_of(reply)) for reply in replies]
        found = encoder.encode_readable(items)
        if any(isinstance(one, Unreadable) for one in found):
            continue
        one, other = encoder.encode(items)
        assert one.prompt == other.prompt
        assert made.decode(one.tokens) == "".join(encoder.render(items[0]))


def test_an_open_block_is_no_part_of_the_prompt_where_answers_lack_it() -> None:
    for name, end in (("distilled", "<|Assistant|>"), ("questioning", "<|im_start|>assistant\n")):
        frame = Template(tokenizer(TEMPLATES[name])).frame((Message("user", "How?"),))
        assert isinstance(frame, Frame)
        assert frame.prompt.endswith(f"How?{'<|im_end|>' if name != 'distilled' else ''}"
                                     f"{chr(10) if name != 'distilled' else ''}{end}")  # fmt: skip


def test_today_is_a_fixed_day_and_part_of_the_fingerprint() -> None:
    for name, day in (("dated", "26 Jul 2024"), ("channels", "2024-07-26")):
        template = Template(tokenizer(TEMPLATES[name]))
        frame = template.frame((Message("user", "How?"),))
        assert isinstance(frame, Frame)
        assert f"{DATE:%Y}" in day
        assert day in frame.prompt
        assert template.settings()["date"] == "2024-07-26"


def test_plain_templates_keep_their_fingerprint() -> None:
    settings = {name: Template(tokenizer(text)).settings() for name, text in TEMPLATES.items()}
    assert {name for name, found in settings.items() if not found} >= {"chatml", "tools", "strict"}
    for name in ("distilled", "opened", "questioning", "switched", "forgetful", "unended"):
        assert settings[name] == {"rendering": 2}


def test_templates_by_name() -> None:
    made = tokenizer({"short": "{{ messages[-1].content }}!", "long": TEMPLATES["chatml"]})
    with pytest.raises(ModelError, match="long, short and no default") as caught:
        Template(made)
    assert caught.value.hint == "Choose one: --chat-template long"
    assert Template(made, "long").settings() == {"chat_template": "long"}
    with pytest.raises(ModelError, match="not brief"):
        Template(made, "brief")
    with pytest.raises(ModelError, match="one template, without a name"):
        Template(tokenizer(TEMPLATES["chatml"]), "long")
    with pytest.raises(ModelError, match="no chat template"):
        Template(tokenizer(None), "long")


@pytest.mark.parametrize(
    "broken", ["{% if %}", "{{ messages[0]['content'] + 1 }}", "{{ nothing.at.all }}", "always"]
)
def test_a_template_that_renders_nothing_is_refused_before_the_pass(broken: str) -> None:
    if broken == "always":
        template = Template(tokenizer(broken))
        assert "leaves out the response" in str(template.frame((Message("user", "How?"),)))
        return
    with pytest.raises(ModelError, match="cannot render a plain exchange") as caught:
        Template(tokenizer(broken))
    assert "--chat-template never" in str(caught.value.hint)


def test_folding_keeps_every_text() -> None:
    turns = turns_of([SYSTEM, *CALLED], [TOOL])
    for folded in (fold_turns(turns), fold_turns(turns, system=True)):
        whole = "\n".join(turn.content for turn in folded)
        assert all(turn.content in whole for turn in turns)
        assert {turn.role for turn in folded} <= {"system", "user", "assistant"}
