"""`noisescope apply`: the corrected copy, the reviews it records, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.toy_run import rows, scored_run, toy, write_lines
from test_review_uses import judge

from noisescope import cli
from noisescope.datasets import load
from noisescope.export.removal import CleanPolicy, decide
from noisescope.scoring.reviews import reviews_of
from noisescope.scoring.run_scores import read_run_scores
from noisescope.storage.reviews import read_reviews
from noisescope.storage.sql import query


@pytest.fixture
def scored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return toy(tmp_path)


def ids(scored):
    return pq.read_table(scored.run.pairs_path).column("pair_id").to_pylist()


def decisions(scored, choices, name="decisions.csv", **more):
    """A file as the page writes it: decisions by row of the dataset."""
    names = ids(scored)
    shared = {"dataset": scored.manifest["dataset_fingerprint"]} | more
    items = [
        {"pair_id": names[row], "decision": choice, "note": f"row {row}"} | shared
        for row, choice in choices.items()
    ]
    if name.endswith(".csv"):
        with Path(name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(items[0]))
            writer.writeheader()
            writer.writerows(items)
    else:
        with Path(name).open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(item) + "\n" for item in items)


def apply(*arguments):
    return cli.run(["apply", *map(str, arguments), "--reviewer", "ann"])


CHOICES = {0: "flip", 3: "keep", 5: "drop", 7: "unsure", 12: "flip"}


def test_only_decided_rows_differ_from_the_source(scored, tmp_path, capsys):
    decisions(scored, CHOICES)
    assert apply("decisions.csv") == 0
    output = capsys.readouterr().out
    assert output.startswith("1 keep, 2 flip, 1 drop, 1 unsure\n")
    assert "5 added" in output
    source = (tmp_path / "toy.jsonl").read_bytes().splitlines(keepends=True)
    copy = (tmp_path / "exports" / "toy-1-applied" / "toy.jsonl").read_bytes()
    for row in (0, 12):
        pair = rows()[row]
        flipped = pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]}
        source[row] = json.dumps(flipped).encode() + b"\n"
    del source[5]
    assert copy == b"".join(source)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_untouched_records_of_a_csv_keep_their_bytes(tmp_path, monkeypatch, end):
    monkeypatch.chdir(tmp_path)
    quoted = ['p 2,"two\r\nlines",d', '"p 3","x\ny",e', "p 4,  f  ,g"]
    quoted += [f'"p {row}",first,"second"' for row in range(5, 14)]
    text = end.join(["\ufeffprompt,chosen,rejected", '"p 1","a ""b""",c', "", *quoted])
    (tmp_path / "a.csv").write_bytes(text.encode())
    scored = scored_run(load(tmp_path / "a.csv"), tmp_path / "runs" / "a-1", good=False)
    decisions(scored, {2: "flip"})
    assert apply("decisions.csv", "-o", "out") == 0
    expected = text.replace('"p 3","x\ny",e', 'p 3,e,"x\ny"')
    assert (tmp_path / "out" / "a.csv").read_bytes() == expected.encode()


def test_decisions_are_recorded_and_estimate_nothing(scored):
    judge(scored.run, 60)
    before = reviews_of(scored.run).to_json()
    answers = read_reviews(scored.run).answers
    decisions(scored, {row: "flip" for row in range(30)} | {40: "drop", 41: "unsure"})
    assert apply("decisions.csv") == 0
    log = read_reviews(scored.run)
    assert log.answers == answers  # also those that ann gave blind about the same pairs
    assert len(log.decisions) == 32
    assert reviews_of(scored.run).to_json() == before
    found = query(
        scored.run,
        "SELECT answer, wrong, weight, note FROM reviews WHERE purpose = 'decide' ORDER BY time",
    ).to_pylist()
    assert [row["answer"] for row in found] == ["rejected"] * 30 + ["drop", "skip"]
    assert {row["weight"] for row in found} == {None}
    assert found[0] == {"answer": "rejected", "wrong": True, "weight": None, "note": "row 0"}


def test_a_run_with_decisions_alone_has_no_share(scored):
    decisions(scored, {row: "flip" for row in range(100)})
    assert apply("decisions.csv", "--record-only") == 0
    assert reviews_of(scored.run) is None


def test_clean_follows_decisions(scored):
    decisions(scored, {0: "keep", 1: "flip", 2: "drop", 6: "unsure"})
    assert apply("decisions.csv", "--record-only") == 0
    actions, words = decide(read_run_scores(scored.run), CleanPolicy(drop_above=0.5))
    found = dict(zip(ids(scored), actions[scored.positions(ids(scored))].tolist(), strict=True))
    assert [found[ids(scored)[row]] for row in (0, 1, 2, 6)] == [0, 2, 1, 1]
    assert words.startswith("1 label that reviewers found wrong was flipped, 1 right one kept, 1")


def test_a_second_time_adds_nothing_and_writes_the_same(scored, tmp_path, capsys):
    decisions(scored, CHOICES)
    assert apply("decisions.csv") == 0
    copy = tmp_path / "exports" / "toy-1-applied"
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    log = (scored.run.directory / "reviews.jsonl").read_bytes()
    assert apply("decisions.csv") == 0
    assert "0 added, 5 known before" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert (scored.run.directory / "reviews.jsonl").read_bytes() == log


def test_the_last_file_applied_counts(scored):
    for choice in ("flip", "keep", "flip"):
        decisions(scored, {0: choice})
        assert apply("decisions.csv", "--record-only") == 0
        (only,) = read_reviews(scored.run).decisions
        assert (only.answer == "second") == (choice == "flip")


def test_the_copy_of_other_decisions_is_not_overwritten(scored, tmp_path, capsys):
    decisions(scored, CHOICES)
    assert apply("decisions.csv") == 0
    copy = (tmp_path / "exports" / "toy-1-applied" / "toy.jsonl").read_bytes()
    decisions(scored, {0: "flip"}, "other.csv")
    assert apply("other.csv") == 2
    assert "holds the export of other decisions" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert apply("other.csv", "-o", "mine") == 2
    assert "holds a file that no export made" in capsys.readouterr().err
    assert (tmp_path / "exports" / "toy-1-applied" / "toy.jsonl").read_bytes() == copy
    assert len(read_reviews(scored.run).decisions) == 5


def test_json_lines_and_several_reviewers(scored):
    decisions(scored, {0: "flip", 1: "keep"}, "a.jsonl", reviewer="bob")
    assert apply("a.jsonl", scored.run.directory) == 0
    assert read_reviews(scored.run).reviewers == ["bob"]


def refused(capsys, *arguments):
    assert apply(*arguments) == 2
    return capsys.readouterr().err


def test_what_cannot_be_applied_is_refused(scored, tmp_path, capsys):
    decisions(scored, {0: "flip"}, dataset="f" * 20)
    assert "no run under runs has the dataset" in refused(capsys, "decisions.csv")
    assert "about another dataset" in refused(capsys, "decisions.csv", scored.run.directory)
    decisions(scored, {0: "flip"}, dataset="")
    assert "Name their run" in refused(capsys, "decisions.csv")
    for text, message in {
        "pair_id,decision\nnobody,flip\n": "that .* does not have: nobody (row 1)",
        "pair_id,decision\n{0},flip\n{0},keep\n": "keep contradicts flip in row 1",
        "pair_id,decision\n{0},flop\n": "'flop' is none of keep, flip, drop, unsure",
        "pair_id,decision\n{0},\n": "contains no decision",
        "pair_id;decision\n{0};flip\n": "separated by ';'",
        "id,decision\n{0},flip\n": "has no column pair_id",
        "pair_id,decision,dataset\n{0},flip,a\n{1},flip,b\n": "2 datasets",
    }.items():
        (tmp_path / "bad.csv").write_text(text.format(*ids(scored)))
        error = " ".join(refused(capsys, "bad.csv", scored.run.directory).split())
        assert all(part in error for part in message.split(" .* ")), error
    assert "does not exist" in refused(capsys, "nowhere.csv")
    assert not (tmp_path / "exports").exists()
    assert not read_reviews(scored.run).decisions


def test_copies_of_a_pair_are_named_and_may_not_contradict_each_other(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    twice = [*rows(20), rows(20)[4]]
    write_lines(tmp_path / "toy.jsonl", twice)
    scored = scored_run(load(tmp_path / "toy.jsonl"), tmp_path / "runs" / "toy-1")
    decisions(scored, {4: "flip", 20: "keep"})
    assert "about the same two responses" in " ".join(refused(capsys, "decisions.csv").split())
    decisions(scored, {4: "flip"})
    assert apply("decisions.csv") == 0
    assert "1 pairs repeat a changed one" in " ".join(capsys.readouterr().err.split())


def test_a_changed_source_is_refused(scored, tmp_path, capsys):
    decisions(scored, CHOICES)
    write_lines(tmp_path / "toy.jsonl", rows()[:-1])
    assert "is not what" in refused(capsys, "decisions.csv")
    assert not read_reviews(scored.run).decisions


def test_decisions_are_no_blind_answers(scored, capsys):
    decisions(scored, CHOICES)
    command = ["review", str(scored.run.directory), "--import", "decisions.csv"]
    assert cli.run(command) == 2
    assert "noisescope apply" in capsys.readouterr().err
    assert not read_reviews(scored.run).answers


def test_reviewers_whose_names_share_a_lock_are_recorded_together(scored, tmp_path):
    names = ids(scored)
    with (tmp_path / "both.jsonl").open("w") as stream:
        for pair_id, who in zip(names, ("ann b", "ann-b"), strict=False):
            row = {"pair_id": pair_id, "decision": "flip", "reviewer": who}
            stream.write(json.dumps(row) + "\n")
    assert apply("both.jsonl", scored.run.directory, "--record-only") == 0
    assert read_reviews(scored.run).reviewers == ["ann b", "ann-b"]
    lines = (scored.run.directory / "reviews.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["draw", "answer", "answer"]
