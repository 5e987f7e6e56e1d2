"""Conversations as turns: what a chat template takes survives the way into text and back."""

from __future__ import annotations

import pytest

from noisescope.datasets.adapters.cells import RowFault
from noisescope.datasets.conversations import (
    has_field,
    messages,
    rendered,
    template_input,
    template_message,
    tools_turn,
    with_calls,
    with_reasoning,
)
from noisescope.pairs import Message

CALL = {"type": "function", "function": {"name": "f", "arguments": {"z": "\u00e4", "a": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d"}}


def test_reasoning_of_a_message_is_part_of_its_content() -> None:
    row = {"chosen": [{"role": "assistant", "content": "Yes.", "reasoning_content": "Crumbs.\n"}]}
    (turn,) = messages(row, "chosen")
    assert turn.content == "<think>\nCrumbs.\n</think>\nYes."
    assert has_field(turn.content)
    assert not has_field("<think>\nCrumbs.\n</think>\n\nYes.")
    assert with_reasoning("  ", "Yes.") == "Yes."


@pytest.mark.parametrize("content", ["", "Let me see.", "Two\n\nlines"])
def test_tool_calls_come_back_as_they_were(content: str) -> None:
    turn = Message("assistant", with_calls(content, [CALL, CALL]))
    found = template_message(turn)
    assert (found.pop("content", ""), found.pop("tool_calls")) == (content, [CALL, CALL])
    assert found == {"role": "assistant"}
    flat = Message("assistant", with_calls(content, [CALL["function"]]))
    assert template_message(flat)["tool_calls"] == [CALL]


def test_text_that_only_looks_like_a_call_stays_text() -> None:
    for text in ("<tool_call>\n{not JSON}\n</tool_call>", '<tool_call>\n{"name": 1}\n</tool_call>'):
        assert template_message(Message("assistant", text)) == {
            "role": "assistant",
            "content": text,
        }
    assert with_calls("", [1]) == "[1]"


def test_tools_are_the_first_turn_and_nulls_of_parquet_go() -> None:
    padded = {"type": "function", "function": {**TOOL["function"], "strict": None}}
    turns = (tools_turn([padded]), Message("system", "Be brief."), Message("user", "Is it?"))
    assert tools_turn(str([TOOL]).replace("'", '"')) == turns[0]
    assert rendered(turns).startswith('Tools: [{"type": "function"')
    assert template_input(turns) == (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}],
        [TOOL],
    )
    assert template_input(turns[1:])[1] is None


@pytest.mark.parametrize("tools", ["{", "7", 7, None, ["f"]])
def test_tools_of_another_kind_are_a_fault(tools: object) -> None:
    with pytest.raises(RowFault, match="tools is"):
        tools_turn(tools)


def test_tool_results_get_name_and_id_of_their_call() -> None:
    calls = [CALL | {"id": "a1"}, {"function": {"name": "g"}}]
    turns = (
        Message("assistant", with_calls("", calls)),
        Message("tool", "1"),
        Message("tool", "2"),
        Message("tool", "3"),
    )
    _, *results = template_input(turns)[0]
    assert [result.get("name") for result in results] == ["f", "g", None]
    assert [result.get("tool_call_id") for result in results] == ["a1", None, None]
    assert template_input(turns, structured=False)[0][0]["content"] == turns[0].content
