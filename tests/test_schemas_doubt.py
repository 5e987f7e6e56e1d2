"""Tables whose columns disagree, or that would lose a meaning, are refused with a flag to type."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pytest

from noisescope.datasets.adapters.mapping import parsed_columns
from noisescope.datasets.adapters.table import ADAPTERS
from noisescope.datasets.in_memory import load_table
from noisescope.errors import DataError
from noisescope.pairs import PreferenceDataset

ROWS = 12
#: A cell for each row, as text with the row's number.
GOOD, BAD, ASKED = "good and long answer {}", "bad and short answer {}", "what about {} please?"
TWO = {"prompt": ASKED, "response_a": GOOD, "response_b": BAD}
SIDES = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}


def table(cells: dict[str, Any]) -> pa.Table:
    """Rows of the same cells; a list alternates, `{}` in text is the row's number."""

    def cell(found: Any, at: int) -> Any:
        found = found[at % len(found)] if isinstance(found, list) else found
        if isinstance(found, dict):
            return {name: cell(inner, at) for name, inner in found.items()}
        return found.replace("{}", str(at)) if isinstance(found, str) else found

    return pa.Table.from_pylist(
        [{name: cell(found, at) for name, found in cells.items()} for at in range(ROWS)]
    )


def read(cells: dict[str, Any], columns: str = "") -> PreferenceDataset:
    return load_table(table(cells), columns=parsed_columns(columns) if columns else None)


def offered(error: DataError) -> list[str]:
    """The mappings that a hint offers."""
    return re.findall(r"--columns '?([^\s';]+)", str(error.hint))


def better(dataset: PreferenceDataset) -> set[str]:
    return {text.partition(" ")[0] for text in dataset.table["chosen"].to_pylist()}


def test_a_named_label_comes_before_win_rates() -> None:
    cells = TWO | {"winner": "a", "win_rate_a": 0.3, "win_rate_b": 0.9}
    assert better(read(cells)) == {"good"}


#: cells -> the columns that the message names.
DISAGREE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "shares": (TWO | {"preference": "a", "label_a": 0, "label_b": 1}, ("preference", "label_b")),
    "votes": (
        TWO | {"winner": "a", "model_a_vote": 1, "model_b_vote": 4},
        ("winner", "model_a_vote"),
    ),
    "two labels": (TWO | {"winner": "A", "preference": "B"}, ("winner", "preference")),
    "ranks": (TWO | {"score_a": 1, "score_b": 2, "rank_a": 1, "rank_b": 2}, ("score_a", "rank_a")),
    "verdict": (SIDES | {"verdict": "rejected"}, ("verdict",)),
    "preference": (SIDES | {"human_preference": "rejected"}, ("human_preference",)),
    "judgement": (SIDES | {"judgement": ["A", "B"]}, ("judgement",)),
    "boolean": (SIDES | {"is_chosen_better": False}, ("is_chosen_better",)),
    "better": (SIDES | {"a_better": [True, False]}, ("a_better",)),
}


@pytest.mark.parametrize("name", DISAGREE)
def test_columns_that_disagree_are_refused(name: str) -> None:
    cells, named = DISAGREE[name]
    with pytest.raises(DataError) as caught:
        read(cells)
    assert all(column in str(caught.value) for column in named)
    mappings = offered(caught.value)
    assert mappings
    assert "VALUE" not in str(caught.value.hint)
    seen = [frozenset(better(read(cells, mapping))) for mapping in mappings]
    assert len(set(seen)) == min(len(mappings), 2)


def test_a_label_that_confirms_the_sides_is_no_doubt() -> None:
    for cells in (
        {"verdict": "chosen"},
        {"is_chosen_better": True},
        {"status": [*["ok"] * 5, "tie"]},
    ):
        assert better(read(SIDES | cells)) == {"good"}


def test_a_flip_leaves_a_row_with_one_nested_side_unchanged() -> None:
    for row in ({"rejected_response": []}, {"messages": [{"content": "a"}]}):
        assert ADAPTERS["ms_swift"].flip(row) == row


#: cells -> (what the message names, how often a flag of the hint reads the good answer as better).
LOST: dict[str, tuple[dict[str, Any], str]] = {
    "instructions": (SIDES | {"instructions": "You are X {} now"}, "instructions"),
    "previous turn": (SIDES | {"previous_turn": "what {} then"}, "previous_turn"),
    "passages": (SIDES | {"passages": "Facts about {} and more"}, "passages"),
    "evidence": (SIDES | {"evidence": "Facts about {} and more"}, "evidence"),
    "criteria": (SIDES | {"criteria": "be short {} please"}, "criteria"),
    "unknown": (SIDES | {"qqq": "some words about {} here"}, "qqq"),
    "source": (SIDES | {"prompt": "Translate it", "source": "Ein Satz {} hier"}, "source"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_the_responses_answer_to_is_not_dropped(name: str) -> None:
    cells, named = LOST[name]
    with pytest.raises(DataError, match=named) as caught:
        read(cells)
    for mapping in offered(caught.value):
        assert better(read(cells, mapping)) == {"good"}


def test_a_flag_for_the_sides_does_not_drop_the_context() -> None:
    cells = SIDES | {"document_text": "A document {} to read"}
    with pytest.raises(DataError, match="document_text"):
        read(cells, "chosen=chosen,rejected=rejected")
    labelled = TWO | {"label": [0, 1], "document_text": "A document {} to read"}
    with pytest.raises(DataError, match="label holds") as caught:
        read(labelled)
    for mapping in offered(caught.value):
        with pytest.raises(DataError, match="document_text"):
            read(labelled, mapping)


def test_an_unknown_word_beside_two_sides_is_offered_as_a_tie() -> None:
    cells = {"Antwort_A": "good {}", "Antwort_B": "bad {}", "Frage": "why is {} so"} | {
        "besser": [*["A", "B"] * 5, "Gleich", ""]
    }
    with pytest.raises(DataError, match=r"besser holds A, B, Gleich, \(blank\), which") as caught:
        read(cells, "prompt=Frage,a=Antwort_A,b=Antwort_B,preference=besser")
    first, second = offered(caught.value)
    assert first == (
        "prompt=Frage,a=Antwort_A,b=Antwort_B,preference=besser,a_wins=A,b_wins=B,tie=Gleich"
    )
    assert "if A means that Antwort_A is better and Gleich a tie" in str(caught.value.hint)
    facts = read(cells, first).facts
    assert facts.rejected["tie"] == facts.rejected["unlabelled"]
    assert better(read(cells, second)) == {"good", "bad"}


@pytest.mark.parametrize(
    ("cells", "named", "wins"),
    [
        (TWO | {"worse": ["a", "b"]}, "worse names the worse side", {"good", "bad"}),
        (TWO | {"loser": "b"}, "loser names the worse side", {"good"}),
        (TWO | {"rejected": "a"}, "rejected names the worse side", {"bad"}),
        (TWO | {"response_c": "third {}", "winner": "a"}, "more than two answers", {"good"}),
    ],
)
def test_the_worse_side_or_a_third_one_is_refused_with_a_true_flag(
    cells: dict[str, Any], named: str, wins: set[str]
) -> None:
    with pytest.raises(DataError, match=named) as caught:
        read(cells)
    (mapping,) = offered(caught.value)
    assert better(read(cells, mapping)) == wins
    if "worse" in cells:
        rows = read(cells, mapping).table["chosen"].to_pylist()
        assert [text.partition(" ")[0] for text in rows[:2]] == ["bad", "good"]


@pytest.mark.parametrize(
    ("cells", "columns", "message"),
    [
        (TWO | {"choice": [1, 2]}, "a_wins=2,b_wins=1", "without preference"),
        (SIDES | {"points": 1}, "score_chosen=points", "needs score_rejected"),
        (TWO | {"points": 1}, "share_a=points", "needs share_b"),
    ],
)
def test_half_a_mapping_is_refused_by_name(
    cells: dict[str, Any], columns: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(cells, columns)
    assert offered(caught.value)


def test_texts_for_a_missing_answer_are_no_answers() -> None:
    texts = [*["bad {} text"] * 10, "N/A", "[deleted]"]
    assert read(SIDES | {"rejected": [*texts]}).facts.rejected == {"empty response": 2}


def test_a_label_of_nothing_but_ties_is_refused_as_such() -> None:
    with pytest.raises(DataError, match=r"winner is a tie \(tie\) in all of the first") as caught:
        read(TWO | {"winner": "tie"})
    assert "a_wins=VALUE,b_wins=VALUE,tie=tie" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("cells", "ties"),
    [
        (TWO | {"winner": "a", "is_tie": [True, *[False] * 5]}, 2),
        (TWO | {"winner": "a", "is_tie": ["True", *["False"] * 5]}, 2),
        (TWO | {"score_a": 2, "score_b": 1, "tied": [1, *[0] * 5]}, 2),
        (SIDES | {"tie": [True, *[False] * 5]}, 2),
        (SIDES | {"chosen_score": 2, "rejected_score": 1, "is_tie": [1, *[0] * 5]}, 2),
        (TWO | {"votes_a": 3, "votes_b": 2, "votes_tie": [4, *[1] * 5]}, 2),
        (TWO | {"winner_a": 1, "winner_b": 0, "winner_tie": 0}, 0),
    ],
)
def test_a_column_of_ties_is_read_in_every_shape(cells: dict[str, Any], ties: int) -> None:
    dataset = read(cells)
    assert dataset.facts.rejected.get("tie", 0) == ties
    assert better(dataset) == {"good"}


def test_votes_for_a_tie_count_in_the_agreement() -> None:
    row = read(TWO | {"votes_a": 3, "votes_b": 2, "votes_tie": 1}).table.to_pylist()[0]
    assert (row["votes"], row["agreement"]) == (6, 0.5)


#: cells -> (what the message names, the mappings, the prompt or chosen text that each reads).
NESTED: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "prompt object": (
        SIDES | {"prompt": {"question": "ask {}", "system": "S{}"}},
        "may answer to system",
        ("S0\nask 0", "ask 0"),
    ),
    "prompt as JSON": (
        SIDES | {"prompt": '{"instruction": "ask {}", "context": "a text"}'},
        "may answer to context",
        ("a text\nask 0", "ask 0"),
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_keys_beside_the_prompt_of_an_object_are_not_dropped(name: str) -> None:
    cells, message, prompts = NESTED[name]
    with pytest.raises(DataError, match=message) as caught:
        read(cells)
    found = [read(cells, each).table["prompt"].to_pylist()[0] for each in offered(caught.value)]
    assert tuple(found) == prompts


def test_responses_as_json_text_of_objects_are_refused() -> None:
    cells = SIDES | {"chosen": '{"text": "good {}"}', "rejected": '{"text": "bad {}"}'}
    with pytest.raises(DataError, match="JSON text of objects with text") as caught:
        read(cells)
    found = [read(cells, each).table["chosen"].to_pylist()[0] for each in offered(caught.value)]
    assert found == ["good 0", '{"text": "good 0"}']


def test_ranks_against_ratings_of_a_list_are_refused() -> None:
    rows = [
        {"prompt": f"ask {at}", "responses": [f"good {at}", f"bad {at}"], "ranks": [1, 2],
         "scores": [1, 2]}
        for at in range(ROWS)
    ]  # fmt: skip
    with pytest.raises(DataError, match="ranks and scores order the answers differently") as caught:
        load_table(pa.Table.from_pylist(rows))
    seen = [
        better(load_table(pa.Table.from_pylist(rows), columns=parsed_columns(each)))
        for each in offered(caught.value)
    ]
    assert seen == [{"good"}, {"bad"}]


def test_rated_answers_in_rows_get_the_flag_that_reads_them() -> None:
    rows = [
        {"prompt": f"ask {at // 2}", "response": f"{'bad' if at % 2 else 'good'} {at}",
         "rating": 2 - at % 2}
        for at in range(24)
    ]  # fmt: skip
    with pytest.raises(DataError, match="one answer a row, with its rating") as caught:
        load_table(pa.Table.from_pylist(rows))
    (mapping,) = offered(caught.value)
    dataset = load_table(pa.Table.from_pylist(rows), columns=parsed_columns(mapping))
    assert (len(dataset), better(dataset)) == (12, {"good"})


def test_a_row_with_an_empty_prompt_is_counted() -> None:
    facts = read(SIDES | {"prompt": ["", *[ASKED] * 5]}).facts
    assert (facts.pairs, facts.rejected) == (10, {"unreadable": 2})
    assert facts.examples[0].detail == "prompt is empty"


@pytest.mark.parametrize(
    ("columns", "format", "missing"),
    [
        ("chosen=one,rejected=", None, "rejected"),
        ("a=one,b=two", "columnar", "preference or share_a or votes_a or score_a"),
        ("responses=one", "columnar", "ranks or ratings"),
    ],
)
def test_a_mapping_without_a_role_that_it_needs_is_refused(
    columns: str, format: str | None, missing: str
) -> None:
    rows = [
        {"prompt": f"p {i}?", "chosen": "c", "rejected": "r", "one": f"x {i}", "two": f"y {i}"}
        for i in range(12)
    ]
    with pytest.raises(DataError, match=f"no column has the role {missing}, which"):
        load_table(rows, columns=columns, format=format)


def test_a_format_of_pictures_read_without_them_is_plain_text() -> None:
    rows = [
        {"prompt": f"p {i}?", "chosen": f"c {i}", "rejected": f"r {i}", "images": f"{i}.png"}
        for i in range(12)
    ]
    dataset = load_table(rows, columns={"images": ""}, format="trl_vision")
    assert (dataset.modality, len(dataset)) == ("text", 12)


def test_pictures_can_be_read_without_prompts() -> None:
    from helpers.tiny_diffusion import picture

    rows = [{"chosen": picture(i), "rejected": picture(i + 20)} for i in range(12)]
    dataset = load_table(rows, columns={"prompt": "", "chosen": "chosen", "rejected": "rejected"})
    assert (dataset.modality, set(dataset.table["prompt"].to_pylist())) == ("image", {""})
