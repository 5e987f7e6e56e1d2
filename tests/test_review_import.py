"""Answers from spreadsheets, Label Studio and Argilla come back into a run's reviews."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.toy_run import rows, scored_run, toy, write_lines

from noisescope.cli import run as command
from noisescope.datasets import load
from noisescope.errors import DataError
from noisescope.export.answers import import_answers
from noisescope.export.review import export_review
from noisescope.storage.reviews import read_reviews, side_key


@pytest.fixture
def scored(tmp_path):
    return toy(tmp_path)


@pytest.fixture
def queue(scored, tmp_path):
    """The exported queue of twenty pairs, and which side a reviewer who knows the truth takes."""
    export_review(scored, tmp_path / "queue", number=20)
    with (tmp_path / "queue" / "answers.csv").open(newline="", encoding="utf-8") as stream:
        found = list(csv.DictReader(stream))
    return tmp_path / "queue", found


def truth(row):
    """a or b: pairs whose number is a multiple of six are labelled wrong."""
    number = int(row["prompt"].split()[1])
    wrong = number % 6 == 0
    chosen_first = row["a"].strip() == str(rows()[number]["chosen"]).strip()
    return "a" if chosen_first != wrong else "b"


def verdicts(scored):
    """Whether each answer sides with the label, by prompt number."""
    chosen = {side_key(row["chosen"]): number for number, row in enumerate(rows())}
    rejected = {side_key(row["rejected"]): number for number, row in enumerate(rows())}
    better = [answer.better for answer in read_reviews(scored.run).answers]
    return {(chosen | rejected)[key]: key in chosen for key in better if key}


def as_expected(scored):
    found = verdicts(scored)
    return len(found) == 20 and all(right == (number % 6 != 0) for number, right in found.items())


def test_the_spreadsheet_of_the_queue_round_trips(scored, queue):
    folder, found = queue
    path = folder / "filled.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, found[0].keys())
        writer.writeheader()
        writer.writerows(row | {"answer": truth(row).upper(), "reviewer": "eve"} for row in found)
    assert import_answers(scored.run, path, "ann")["imported"] == 20
    assert as_expected(scored)
    assert read_reviews(scored.run).reviewers == ["eve"]
    again = import_answers(scored.run, path, "ann")
    assert (again["imported"], again["known before"]) == (0, 20)


def test_label_studio_comes_back_in_three_formats(scored, queue, tmp_path):
    folder, found = queue
    tasks = json.loads((folder / "label-studio" / "tasks.json").read_text("utf-8"))
    answers = {row["pair_id"]: f"{truth(row).upper()} is better" for row in found}
    full = [
        task
        | {
            "annotations": [
                {
                    "completed_by": 7,
                    "result": [{"value": {"choices": [answers[task["data"]["pair_id"]]]}}],
                },
                {"was_cancelled": True, "result": []},
            ]
        }
        for task in tasks
    ]
    flat = [
        task["data"] | {"better": answers[task["data"]["pair_id"]], "annotator": 7}
        for task in tasks
    ]
    (tmp_path / "full.json").write_text(json.dumps(full), "utf-8")
    (tmp_path / "min.json").write_text(json.dumps(flat), "utf-8")
    with (tmp_path / "flat.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, flat[0].keys())
        writer.writeheader()
        writer.writerows(flat)
    assert import_answers(scored.run, tmp_path / "full.json", "ann")["imported"] == 20
    assert as_expected(scored)
    for name in ("min.json", "flat.csv"):
        done = import_answers(scored.run, tmp_path / name, "ann")
        assert (done["imported"], done["known before"]) == (0, 20)  # the same answers
    assert read_reviews(scored.run).reviewers == ["7"]


def test_argilla_comes_back(scored, queue, tmp_path):
    folder, found = queue
    lines = (folder / "argilla.jsonl").read_text("utf-8").splitlines()
    answers = {row["pair_id"]: truth(row) for row in found}
    records = [  # as Argilla's Dataset.to_disk writes them
        {
            "id": record["id"],
            "fields": {name: record[name] for name in ("prompt", "a", "b")},
            "metadata": {"value": record["value"]},
            "responses": {"better": [{"value": answers[record["id"]], "user_id": "u-1"}]},
        }
        for record in map(json.loads, lines)
    ]
    (tmp_path / "argilla").mkdir()
    (tmp_path / "argilla" / "records.json").write_text(json.dumps(records), "utf-8")
    assert import_answers(scored.run, tmp_path / "argilla", "ann")["imported"] == 20
    assert as_expected(scored)


@pytest.mark.parametrize(
    ("column", "wrong", "right"),
    [
        ("mislabelled", True, False),
        ("mislabelled", "1", "0"),
        ("mislabelled", 1, 0),
        ("mislabelled", "Yes", "no"),
        ("mislabelled", "TRUE", "FALSE"),
        ("decision", "flip", "keep"),
        ("better", "rejected", "chosen"),
    ],
)
def test_a_plain_table_of_decisions_is_enough(scored, queue, tmp_path, column, wrong, right):
    _, found = queue
    lines = [
        {
            "pair_id": row["pair_id"],
            column: wrong if int(row["prompt"].split()[1]) % 6 == 0 else right,
        }
        for row in found
    ]
    write_lines(tmp_path / "plain.jsonl", lines)
    assert import_answers(scored.run, tmp_path / "plain.jsonl", "ann")["imported"] == 20
    assert as_expected(scored)


@pytest.mark.parametrize("kept", [(), ("a",), ("b",)])
def test_a_and_b_need_the_texts_they_stand_for(scored, queue, tmp_path, kept):
    _, found = queue
    lines = [
        {"pair_id": row["pair_id"], "answer": truth(row)} | {side: row[side] for side in kept}
        for row in found
    ]
    write_lines(tmp_path / "short.jsonl", lines)
    with pytest.raises(DataError, match=r"short\.jsonl, row 1: [ab] needs the texts of both sides"):
        import_answers(scored.run, tmp_path / "short.jsonl", "ann")
    assert not read_reviews(scored.run).answers


@pytest.mark.parametrize(
    "columns",
    [
        {"better": "chosen", "decision": "flip"},
        {"better": "chosen", "mislabelled": "yes"},
        {"answer": "tie", "decision": "keep"},
    ],
)
def test_columns_that_contradict_each_other_are_refused(scored, queue, tmp_path, columns):
    _, found = queue
    lines = [{"pair_id": row["pair_id"], "decision": "keep"} for row in found]
    lines[2] = {"pair_id": found[2]["pair_id"]} | columns
    write_lines(tmp_path / "bad.jsonl", lines)
    with pytest.raises(DataError, match=r"1 answers .* bad\.jsonl, row 3: its columns contradict"):
        import_answers(scored.run, tmp_path / "bad.jsonl", "ann")
    assert not read_reviews(scored.run).answers


def test_shown_sides_and_decisions_are_compared(scored, queue, tmp_path):
    _, found = queue
    wrong = [int(row["prompt"].split()[1]) % 6 == 0 for row in found]
    lines = [
        row | {"answer": truth(row), "decision": "flip" if flip else "keep"}
        for row, flip in zip(found, wrong, strict=True)
    ]
    write_lines(tmp_path / "agreed.jsonl", lines)
    assert import_answers(scored.run, tmp_path / "agreed.jsonl", "ann")["imported"] == 20
    assert as_expected(scored)
    lines[4] |= {"decision": "keep" if wrong[4] else "flip"}
    write_lines(tmp_path / "bad.jsonl", lines)
    with pytest.raises(DataError, match=r"bad\.jsonl, row 5: its columns contradict"):
        import_answers(scored.run, tmp_path / "bad.jsonl", "bob")


def test_one_reviewer_cannot_give_two_answers_to_a_pair(scored, queue, tmp_path):
    _, found = queue
    one = found[0]["pair_id"]
    lines = [
        {"pair_id": one, "decision": "keep"},
        {"pair_id": one, "decision": "flip", "reviewer": "bob"},
        {"pair_id": one, "mislabelled": "no"},  # the same again
    ]
    write_lines(tmp_path / "fine.jsonl", lines)
    import_answers(scored.run, tmp_path / "fine.jsonl", "ann")
    assert len(read_reviews(scored.run).answers) == 2
    write_lines(tmp_path / "bad.jsonl", [*lines, {"pair_id": one, "better": "rejected"}])
    with pytest.raises(DataError, match=rf"bad\.jsonl, row 4: ann .*{one}.* in bad\.jsonl, row 1"):
        import_answers(scored.run, tmp_path / "bad.jsonl", "ann")


def test_an_answer_without_a_pair_is_refused(scored, queue, tmp_path):
    _, found = queue
    lines = [{"pair_id": row["pair_id"], "decision": "keep"} for row in found]
    lines[1]["pair_id"] = ""
    write_lines(tmp_path / "bad.jsonl", lines)
    with pytest.raises(DataError, match=r"bad\.jsonl, row 2: an answer without a pair_id"):
        import_answers(scored.run, tmp_path / "bad.jsonl", "ann")


def test_texts_decide_where_the_labels_have_changed(scored, queue, tmp_path):
    _, found = queue
    turned = [r | {"chosen": r["rejected"], "rejected": r["chosen"]} for r in rows()]
    write_lines(tmp_path / "turned.jsonl", turned)
    other = scored_run(load(tmp_path / "turned.jsonl"), tmp_path / "other" / "turned-1")
    write_lines(tmp_path / "filled.jsonl", [row | {"answer": truth(row)} for row in found])
    import_answers(other.run, tmp_path / "filled.jsonl", "ann")
    assert as_expected(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "maybe"}, "'maybe' is no answer"),
        ({"decision": "1"}, "decision '1' is no answer"),
        ({"mislabelled": "a"}, "mislabelled 'a' is no answer"),
        ({"a": "something else"}, "not those of the pair"),
        ({"reviewer": "a\nb"}, "is no name"),
    ],
)
def test_what_cannot_be_understood_is_refused_whole(scored, queue, tmp_path, change, message):
    _, found = queue
    lines = [row | {"answer": truth(row)} for row in found]
    lines[3] |= change
    write_lines(tmp_path / "bad.jsonl", lines)
    with pytest.raises(DataError, match=message):
        import_answers(scored.run, tmp_path / "bad.jsonl", "ann")
    assert not read_reviews(scored.run).answers


def test_answers_about_other_pairs_are_counted_or_refused(scored, queue, tmp_path):
    _, found = queue
    lines = [row | {"answer": truth(row)} for row in found]
    lines[0] |= {"pair_id": "unknown"}
    write_lines(tmp_path / "some.jsonl", lines)
    assert import_answers(scored.run, tmp_path / "some.jsonl", "ann")["of other pairs"] == 1
    write_lines(tmp_path / "none.jsonl", lines[:1])
    with pytest.raises(DataError, match="none of the 1 answers"):
        import_answers(scored.run, tmp_path / "none.jsonl", "ann")
    write_lines(tmp_path / "blank.jsonl", [row | {"answer": ""} for row in found])
    with pytest.raises(DataError, match="holds no answers"):
        import_answers(scored.run, tmp_path / "blank.jsonl", "ann")


def test_the_command_imports_and_reports(
    scored, queue, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch
):
    _, found = queue
    write_lines(tmp_path / "filled.jsonl", [row | {"answer": truth(row)} for row in found])
    monkeypatch.chdir(tmp_path)
    typed = ["review", str(Path("runs/toy-1")), "--import", "filled.jsonl"]
    assert command([*typed, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["imported"]["imported"] == 20
    assert told["wrong"] + told["right"] == 20
    assert told["wrong_share"] is None  # nobody drew these pairs at random
    assert command(typed) == 0
    assert "too little for a share of all labels" in capsys.readouterr().out
    assert command([*typed, "--terminal"]) == 2


def test_the_file_imported_last_counts(scored, tmp_path):
    (pair, *_) = pq.read_table(scored.run.pairs_path).to_pylist()
    for number, word in enumerate(("flip", "keep", "flip")):
        write_lines(tmp_path / f"{number}.jsonl", [{"pair_id": pair["pair_id"], "decision": word}])
        path = tmp_path / ("0.jsonl" if number == 2 else f"{number}.jsonl")
        assert import_answers(scored.run, path, "ann")["imported"] == 1
        (counted,) = read_reviews(scored.run).answers
        assert (counted.better == side_key(pair["rejected"])) == (word == "flip")
