"""Tables with renamed, added and dropped columns are read as the same pairs, or refused."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisescope.datasets.in_memory import load_table
from noisescope.errors import DataError

ROWS = 12
#: Spellings of a name that readers take for the same.
SPELLINGS = (str, str.upper, str.title, "{} ".format, " {}".format, lambda s: s.replace("_", "-"))
#: Columns that may stand beside the pairs, and how they are filled.
BESIDE = (
    "source", "id", "model_a", "system", "context", "history", "tools", "label", "score", "status",
    "winner", "question", "instruction", "input", "messages", "images", "category", "margin",
    "persona", "chosen_rating", "rejected_rating", "document",
)  # fmt: skip
FILLERS = (
    lambda i: None,
    lambda i: "",
    lambda i: "constant",
    lambda i: f"beside number {i} it says more",
    lambda i: i % 2,
    lambda i: float(i),
    lambda i: bool(i % 3),
    lambda i: [{"role": "user", "content": f"an earlier turn {i}"}],
)


def sides(i: int) -> dict[str, Any]:
    return {"prompt": f"ask {i}", "chosen": f"good answer {i}", "rejected": f"bad answer {i}"}


def labelled(i: int) -> dict[str, Any]:
    a, b = (f"good answer {i}", f"bad answer {i}")[:: 1 if i % 2 else -1]
    winner = "model_a" if i % 2 else "model_b"
    return {"prompt": f"ask {i}", "response_a": a, "response_b": b, "winner": winner}


def ranked(i: int) -> dict[str, Any]:
    answers = [f"good answer {i}", f"bad answer {i}"]
    return {"prompt": f"ask {i}", "responses": answers, "ranks": [1, 2]}


def conversation(i: int) -> dict[str, Any]:
    asked = {"role": "user", "content": f"ask {i}"}
    said = [{"role": "assistant", "content": f"{word} answer {i}"} for word in ("good", "bad")]
    return {"chosen": [asked, said[0]], "rejected": [asked, said[1]]}


unknown = st.text("qvxyz", min_size=3, max_size=6)
shapes = st.sampled_from([sides, labelled, ranked, conversation])


@settings(deadline=None, max_examples=600)
@given(
    shape=shapes,
    spelling=st.sampled_from(SPELLINGS),
    renamed=st.dictionaries(st.integers(0, 3), unknown, max_size=2),
    dropped=st.none() | st.integers(0, 3),
    beside=st.dictionaries(st.sampled_from(BESIDE) | unknown, st.sampled_from(FILLERS), max_size=3),
    order=st.randoms(use_true_random=False),
)
def test_the_same_pairs_or_a_refusal(
    shape: Any, spelling: Any, renamed: Any, dropped: Any, beside: Any, order: Any
) -> None:
    names = list(shape(0))
    new = {name: spelling(name) for name in names}
    new |= {names[at]: name for at, name in renamed.items() if at < len(names)}
    lost = names[dropped] if dropped is not None and dropped < len(names) else None
    columns = {new[name]: [shape(i)[name] for i in range(ROWS)] for name in names if name != lost}
    more = {name: [fill(i) for i in range(ROWS)] for name, fill in beside.items()}
    more = {name: cells for name, cells in more.items() if name not in columns}
    columns |= more
    shuffled = list(columns)
    order.shuffle(shuffled)
    try:
        dataset = load_table(pa.table({name: columns[name] for name in shuffled}))
    except DataError:
        return
    # Beside a column that is surely called a prompt, one of an unknown name need not be one.
    renamed_prompt = new.get("prompt", "prompt") not in {spell("prompt") for spell in SPELLINGS}
    sure = {"question", "instruction"} & set(more)
    has_prompt = lost != "prompt" and not (renamed_prompt and sure)
    for row in dataset.table.to_pylist():
        number = row["chosen"].rpartition(" ")[2]
        assert row["chosen"] == f"good answer {number}"
        assert row["rejected"] == f"bad answer {number}"
        if has_prompt:
            assert f"ask {number}" in row["prompt"]
        for name in ("system", "context", "history", "question", "instruction", "input", "persona"):
            cell = more.get(name, [""] * ROWS)[int(number)]
            if isinstance(cell, str) and " " in cell:
                assert cell in row["prompt"]


@pytest.mark.parametrize("spelling", range(len(SPELLINGS)))
@pytest.mark.parametrize("shape", [sides, labelled, ranked, conversation])
def test_spelling_changes_nothing(shape: Any, spelling: int) -> None:
    rows = [{SPELLINGS[spelling](name): cell for name, cell in shape(i).items()} for i in range(12)]
    table = load_table(pa.Table.from_pylist(rows)).table
    assert table["chosen"].to_pylist() == [f"good answer {i}" for i in range(12)]


def test_a_prompt_with_a_blank_in_its_name_is_joined_with_its_input() -> None:
    rows = [{"prompt ": f"ask {i}", "input": f"about {i}", **sides(i)} for i in range(12)]
    for row in rows:
        del row["prompt"]
    table = load_table(pa.Table.from_pylist(rows)).table
    assert table["prompt"].to_pylist() == [f"ask {i}\nabout {i}" for i in range(12)]


@pytest.mark.parametrize("name", ["context", "history", "messages", "input"])
def test_earlier_turns_are_not_the_prompt_while_another_column_may_be(name: str) -> None:
    turns = [{"role": "user", "content": "an earlier turn"}]
    rows = [{"asked": f"ask {i}", name: turns, **sides(i)} for i in range(12)]
    for row in rows:
        del row["prompt"]
    with pytest.raises(DataError, match="it may be asked"):
        load_table(pa.Table.from_pylist(rows))
