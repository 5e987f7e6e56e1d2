"""What the rest of noisescope makes of reviews: query, export, gate, report and score."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from helpers.toy_run import rows, toy

from noisescope.cli import run as command
from noisescope.datasets import open_source
from noisescope.errors import UsageError
from noisescope.export.clean import export_clean
from noisescope.export.hub import export_hub
from noisescope.export.removal import CleanPolicy
from noisescope.export.trl import export_trl
from noisescope.gate.evaluate import check_gate
from noisescope.gate.input import Subject
from noisescope.gate.policy import Policy, read_policy
from noisescope.report.contents import gather
from noisescope.report.html import page
from noisescope.report.review.session import OutOfTurn, open_session
from noisescope.scoring.reviews import reviews_of
from noisescope.scoring.run_scores import read_run_scores
from noisescope.storage.reviews import FILE, read_log, side_key
from noisescope.storage.sql import describe, query

#: Labels that people find wrong: not those that the audit suspects (multiples of six).
WRONG = {1, 2, 6, 12, 13, 18, 24, 30, 36, 42}
CHOSEN = {side_key(row["chosen"]): number for number, row in enumerate(rows())}


def judge(run, count, reviewer="ann", purpose="estimate", wrong=WRONG):
    """Answer `count` pairs as somebody who knows WRONG would."""
    session = open_session(run, reviewer=reviewer, purpose=purpose, count=count, seed=3)
    while (task := session.current()) is not None:
        at = 0 if task.keys[0] in CHOSEN else 1
        right = CHOSEN[task.keys[at]] not in wrong
        session.answer(task.content_id, "first" if (at == 0) == right else "second")
    return session


@pytest.fixture
def scored(tmp_path):
    return toy(tmp_path)


def test_a_session_goes_on_where_it_stopped(scored):
    one = open_session(scored.run, reviewer="ann", count=40, seed=1)
    first = one.current()
    one.answer(first.content_id, "tie")
    with pytest.raises(OutOfTurn):
        one.answer(first.content_id, "first")
    second = one.current()
    one.answer(second.content_id, "skip")
    third = one.current()
    del one
    again = open_session(scored.run, reviewer="ann", count=40)
    assert (again.done, again.current()) == (2, third)
    assert again.undo()
    assert again.current() == second
    del again
    other = open_session(scored.run, reviewer="bob", count=40)
    assert (other.done, other.current().pair_id) == (0, first.pair_id)


def test_a_longer_sample_contains_the_shorter_one(scored):
    ids = [task.pair_id for task in judge(scored.run, 30).tasks]
    assert [task.pair_id for task in judge(scored.run, 80).tasks][:30] == ids
    assert len(read_log([scored.run.directory / FILE]).draws) == 1


def test_the_most_suspicious_pairs_come_first(scored):
    session = judge(scored.run, 20, purpose="fix")
    ps = [task.p_wrong for task in session.tasks]
    assert ps == sorted(ps, reverse=True)
    assert ps[0] > 0.5
    assert session.expected_wrong() == 0
    again = open_session(scored.run, reviewer="bob", purpose="fix", count=20)
    assert 5 < again.expected_wrong() < 20


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 101])
def test_a_reviewer_has_a_name(scored, name):
    with pytest.raises(UsageError, match="--reviewer"):
        open_session(scored.run, reviewer=name)


def test_query_has_a_table_of_reviews(scored):
    judge(scored.run, 40)
    judge(scored.run, 10, "bob")
    found = query(
        scored.run,
        "SELECT reviewer, count(*) AS n, sum(wrong::int) AS wrong FROM reviews JOIN pairs "
        "USING (pair_id) GROUP BY reviewer ORDER BY reviewer",
    ).to_pylist()
    assert [row["n"] for row in found] == [40, 10]
    answers = query(scored.run, "SELECT * FROM reviews WHERE reviewer = 'ann'").to_pylist()
    assert {row["answer"] for row in answers} == {"chosen", "rejected"}
    assert all(row["wrong"] == (row["answer"] == "rejected") for row in answers)
    assert sum(row["weight"] for row in answers) == pytest.approx(120, abs=1e-6)
    assert any(text.startswith("reviews(pair_id") for text in describe(scored.run))


def test_query_without_reviews_has_no_such_table(scored):
    with pytest.raises(UsageError, match="reviews"):
        query(scored.run, "SELECT * FROM reviews")


def test_clean_corrects_what_people_found_and_keeps_what_they_confirmed(scored, tmp_path):
    judge(scored.run, 120)
    scored = read_run_scores(scored.run)
    source = open_source(str(scored.manifest["resolved"]))
    counts = export_clean(scored, source, CleanPolicy(), tmp_path / "out")
    assert counts == {"keep": 110, "drop": 0, "flip": 10}
    lines = (tmp_path / "out" / "toy.jsonl").read_text("utf-8").splitlines()
    for number, (line, row) in enumerate(zip(lines, rows(), strict=True)):
        flipped = json.loads(line)["chosen"] == row["rejected"]
        assert flipped == (number in WRONG)


def test_clean_follows_the_policy_for_pairs_nobody_judged(scored, tmp_path):
    session = judge(scored.run, 30)
    scored = read_run_scores(scored.run)
    judged = {CHOSEN[key] for task in session.tasks for key in task.keys if key in CHOSEN}
    source = open_source(str(scored.manifest["resolved"]))
    export_clean(scored, source, CleanPolicy(), tmp_path / "out")
    decisions = pq.read_table(tmp_path / "out" / "decisions.parquet").to_pylist()
    for number, decision in enumerate(decisions):
        if number in judged:
            assert decision["action"] == ("flip" if number in WRONG else "keep")
        else:
            assert decision["action"] == ("drop" if decision["p_wrong"] >= 0.5 else "keep")
    marks = (tmp_path / "out" / ".export.json").read_text("utf-8")
    assert "1 label that reviewers found wrong was flipped" in marks


def test_trl_is_corrected_too(scored, tmp_path):
    judge(scored.run, 120)
    scored = read_run_scores(scored.run)
    export_trl(scored, tmp_path / "out.parquet")
    found = {
        row["prompt"].strip(): row for row in pq.read_table(tmp_path / "out.parquet").to_pylist()
    }
    for number, row in enumerate(rows()):
        assert (found[row["prompt"]]["chosen"] == row["rejected"]) == (number in WRONG)


def test_the_card_of_a_repository_states_who_checked_labels(scored, tmp_path):
    def written(folder):
        export_hub(read_run_scores(scored.run), folder, CleanPolicy())
        return (folder / "README.md").read_text("utf-8")

    assert "No label was checked by a person" in written(tmp_path / "before")
    judge(scored.run, 30)
    card = written(tmp_path / "after")
    assert "People judged the labels of 30 pairs, and no other." in card
    assert "No label was checked" not in card


def gated(run, limit, **settings):
    policy = Policy(max_wrong_share=limit, evidence="review", **settings)
    results = check_gate(Subject(run), policy).results
    return next(result for result in results if result.check == "wrong_share")


def test_a_gate_can_demand_a_review(scored):
    before = gated(scored.run, 0.05)
    assert before.status == "inconclusive"
    assert "noisescope review" in before.message
    judge(scored.run, 120)
    assert gated(scored.run, 0.05).status == "fail"
    met = gated(scored.run, 0.1)
    assert met.status == "pass"
    assert met.measured == pytest.approx(10 / 120)
    with pytest.raises(UsageError, match="evidence is set, but max_wrong_share is off"):
        read_policy(flags={"evidence": ["review"]})


def test_too_small_a_sample_is_inconclusive(scored):
    judge(scored.run, 20)
    result = gated(scored.run, 0.05, detect=0.01)
    assert result.status == "inconclusive"
    assert result.pairs_needed > 20


def test_the_page_states_the_review(scored):
    contents = gather(_complete(scored.run))
    assert contents.reviews is None
    assert 'id="reviewed"' not in page(contents)
    judge(scored.run, 60)
    html = page(gather(scored.run))
    assert "Reviewed: " in html
    assert "60 judgements by 1 reviewer" in html
    assert '"reviewed":"wrong"' in html


def _complete(run):
    """The toy run with everything that a report needs in its manifest."""
    manifest = run.manifest()
    needed = {"model_fingerprint": "0" * 20, "finished": "2026-01-01"}
    run.write_manifest(needed | manifest)
    return run


def test_two_reviewers_and_what_the_terminal_prints(scored, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    judge(scored.run, 60)
    judge(scored.run, 40, "bob", wrong=WRONG | {3, 4})
    people = reviews_of(scored.run)
    assert people.shared == 40
    assert people.error.known
    assert command(["review", "runs/toy-1", "--summary"]) == 0
    shown = capsys.readouterr().out
    assert "by 2 reviewers who agree on" in shown
    assert "a reviewer takes the wrong side in" in shown
    assert "next" in shown
    assert command(["review", "runs/toy-1", "--summary", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reviewers"] == ["ann", "bob"]
    assert told["wrong_share"]["low"] < told["wrong_share"]["high"]


def test_in_the_terminal(scored, monkeypatch, tmp_path, capsys):
    import io

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("1\nx\nt\ns\nu\n2\nq\n"))
    assert command(["review", "runs/toy-1", "--terminal", "--reviewer", "ann"]) == 0
    answers = [one.answer for one in read_log([scored.run.directory / FILE]).answers]
    assert answers == ["first", "tie", "second"]
    shown = capsys.readouterr().out
    assert "question" in shown
    assert "\x1b[31m" not in shown
