"""Prompts beyond --max-length lose their oldest turns; pairs that end up equal are set aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_templates import NO_SYSTEM, TEMPLATES
from helpers.tiny_models import save, tiny_llama, tiny_tokenizer

from noisescope.auditing.audit import audit
from noisescope.datasets.in_memory import load_table
from noisescope.errors import DataError
from noisescope.models import Item
from noisescope.models.causal_lm import load_causal_lm
from noisescope.models.items import distinct_items, item_key
from noisescope.models.readable import judged_by
from noisescope.models.tokenize import Encoder
from noisescope.pairs import Message, Pair, response_key, to_table

TALK = (
    Message("system", "Be kind to the baker."),
    Message("user", "First question " * 12),
    Message("assistant", "First answer " * 12),
    Message("user", "Second question " * 6),
    Message("assistant", "Second answer " * 6),
    Message("user", "How do I bake bread?"),
)


def tokenizer(template: str | None) -> Any:
    made = tiny_tokenizer(None)
    made.add_special_tokens({"bos_token": "<s>"})
    made.chat_template = template
    return made


def encoded(template: str, length: int, longest: str = "Knead it.") -> tuple[str, int]:
    encoder = Encoder(tokenizer(template), length, True)
    (found,) = encoder.encode([Item("k", "p", TALK, "Knead it.", longest)])
    assert len(found.tokens) <= length
    return encoder.tokenizer.decode(found.prompt), found.cut_prompt


@pytest.mark.parametrize("length", [500, 300, 200])
def test_system_turn_and_last_question_stay(length: int) -> None:
    text = "{{ bos_token }}" + TEMPLATES["chatml"]
    whole, cut = encoded(text, 4096)
    assert cut == 0
    found, cut = encoded(text, length)
    assert cut > 0
    assert found.startswith(
        "<s><|im_start|>system\nBe kind to the baker.<|im_end|>\n<|im_start|>user"
    )
    assert found.endswith(
        "<|im_start|>user\nHow do I bake bread?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert found.count("First question") < whole.count("First question")
    roles = [part.split("\n")[0] for part in found.split("<|im_start|>")[1:]]
    assert roles[0] == "system"
    assert roles[1::2] == ["user"] * len(roles[1::2])  # the order of roles is what it was
    assert roles[2::2] == ["assistant"] * len(roles[2::2])


def test_the_oldest_words_go_first() -> None:
    whole, _ = encoded(TEMPLATES["chatml"], 4096)
    size = len(tokenizer(None)(whole)["input_ids"])
    found, cut = encoded(TEMPLATES["chatml"], size)  # the response needs a few of them
    assert 0 < cut < 40
    assert found.count("Second question") == whole.count("Second question")
    assert found.count("First answer") == whole.count("First answer")
    assert found.count("First question") < whole.count("First question")


def test_a_prompt_takes_what_its_longest_response_leaves() -> None:
    made = tokenizer(TEMPLATES["chatml"])
    prompt, short, long = "Wait, " * 40, "Knead it.", "Why? " * 30
    size = len(Encoder(made, 4096, True).encode([Item("k", prompt, None, short)])[0].prompt)
    length = size + 40
    encoder = Encoder(made, length, True)
    (alone,) = encoder.encode([Item("k", prompt, None, short, short)])
    assert (alone.cut_prompt, alone.cut_response) == (0, 0)
    both = encoder.encode([Item("k", prompt, None, text, long) for text in (short, long)])
    assert both[0].prompt == both[1].prompt
    assert both[0].cut_prompt > 0
    assert len(both[1].prompt) >= length // 2 - 1
    (unknown,) = encoder.encode([Item("k", prompt, None, short)])
    assert len(unknown.prompt) <= length // 2


def test_items_know_their_longest_response_and_short_ones_keep_their_key() -> None:
    pairs = [Pair("p", "a", "bb"), Pair("p", "ccc", "a"), Pair("long " * 500, "x" * 30, "y")]
    items, chosen, _ = distinct_items(to_table(pairs))
    assert [item.longest for item in items] == ["ccc"] * 3 + ["x" * 30] * 2
    assert [item.key for item in items[:3]] == [response_key("p", t) for t in ("a", "bb", "ccc")]
    assert items[3].key == item_key("long " * 500, "x" * 30, "x" * 30)
    assert items[3].key != response_key("long " * 500, "x" * 30)
    assert chosen.tolist() == [0, 2, 3]


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Question {n}?", "chosen": f"Good answer {n}.", "rejected": f"Bad one {n}."}
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("m"), tiny_llama(), tokenizer(NO_SYSTEM))


def test_a_refused_row_costs_itself(model: Path) -> None:
    import pyarrow as pa

    talks = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows(12)
    ]
    talks[4]["prompt"].insert(0, {"role": "assistant", "content": "Hello."})
    dataset = load_table(pa.Table.from_pylist(talks), name="talks")
    policy = load_causal_lm(str(model), device="cpu")
    found = judged_by(policy, dataset)
    assert (len(dataset), len(found)) == (12, 11)
    assert found.facts.rejected == {"unreadable": 1}
    assert "Conversation roles must alternate" in found.facts.examples[0].detail
    assert found.facts.examples[0].row == 4
    assert found.facts.notes[0].startswith("1 pair is set aside, first talks:5: the chat template")
    assert found.source_fingerprint == dataset.fingerprint != found.fingerprint
    assert judged_by(policy, found) == found


def test_sides_that_are_equal_once_cut_are_set_aside(model: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    table = rows(14)
    for row in table[:3]:
        row["chosen"], row["rejected"] = "Step. " * 99 + "Yes.", "Step. " * 99 + "No."
    dataset = load_table(pa.Table.from_pylist(table), name="steps")
    policy = load_causal_lm(str(model), device="cpu", max_length=128)
    done = audit(dataset, policy, runs_directory=tmp_path / "runs")
    assert done.summary.pairs == 11
    first, cut = done.summary.notes[-2:]
    assert first.startswith("3 pairs are set aside, first steps:1: both sides are the same within")
    assert cut.startswith(
        "cut to --max-length 128: 3 of 14 prompts (in their oldest turns) and 6 of 28"
    )
    facts = done.run.manifest()["facts"]
    assert facts["rejected"] == {"identical once cut": 3}
    assert (facts["pairs"], facts["set_aside"], facts["rows"]) == (11, 3, 14)
    again = audit(dataset, policy, runs_directory=tmp_path / "runs")
    assert again.summary == done.summary
    with pytest.raises(DataError, match="7 of 10 pairs can be judged"):
        judged_by(policy, load_table(pa.Table.from_pylist(table[:10]), name="few"))
    kept = judged_by(policy, dataset, keep_same=True)
    assert len(kept) == 14


def test_tools_go_to_trl_as_a_column(model: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from typer.testing import CliRunner

    from noisescope.cli import app

    tool = {"type": "function", "function": {"name": "f"}}
    talks = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
            "tools": [tool],
        }
        for row in rows(12)
    ]
    dataset = load_table(pa.Table.from_pylist(talks), name="talks")
    done = audit(dataset, load_causal_lm(str(model), device="cpu"), run_directory=tmp_path / "run")
    out = tmp_path / "trl.parquet"
    line = ["export", str(done.run.directory), "--format", "trl", "--output", str(out)]
    refused = CliRunner().invoke(app, line)
    assert refused.exit_code != 0
    assert not out.exists()
    result = CliRunner().invoke(app, [*line, "--force"])
    assert result.exit_code == 0, result.output
    first = pq.read_table(out).to_pylist()[0]
    assert first["prompt"] == talks[0]["prompt"]
    assert json.loads(first["tools"]) == [tool]
