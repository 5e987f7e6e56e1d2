"""p_wrong of a run that people have reviewed: recalibrated, in the same order, not fed back."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.planted_run import planted_run

from noisescope.auditing.validation import validate_truth
from noisescope.cli import run as command
from noisescope.errors import RunError
from noisescope.export.hub import card
from noisescope.gate.input import Subject
from noisescope.report.review.session import open_session
from noisescope.scoring.metrics import calibration
from noisescope.scoring.reviews import (
    chance_wrong,
    draw_sample,
    read_latest,
    read_p_wrong,
    read_population,
    reviews_of,
)
from noisescope.scoring.run_scores import find_run_scores
from noisescope.scoring.score import score_run
from noisescope.storage.reviews import Log, side_key

PAIRS = 1500
#: Half of the wrong labels look right to the replicas: they have learned the error.
WRONG = np.arange(PAIRS) % 5 <= 1


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return planted_run(tmp_path_factory.mktemp("original") / "run", pairs=PAIRS)


@pytest.fixture
def run(original, tmp_path):
    shutil.copytree(original.directory, tmp_path / "runs" / "run")
    return type(original)(tmp_path / "runs" / "run")


def judge(run, count, *, ties=False, purpose="estimate"):
    """Answer `count` pairs as somebody who knows WRONG would; the rows that were judged."""
    rows = pq.read_table(run.pairs_path, columns=["pair_id", "chosen", "row"]).to_pylist()
    pairs = {row["pair_id"]: row for row in rows}
    session = open_session(run, reviewer="ann", purpose=purpose, count=count, seed=3)
    while (task := session.current()) is not None:
        pair = pairs[task.pair_id]
        chosen_first = task.keys[0] == side_key(pair["chosen"])
        side = "first" if chosen_first != WRONG[pair["row"]] else "second"
        session.answer(task.content_id, "tie" if ties else side)
    return [pairs[task.pair_id]["row"] for task in session.tasks]


def scores(run):
    """Columns of scores.parquet by the row of each pair."""
    rows = pq.read_table(run.pairs_path, columns=["pair_id", "row"])
    joined = rows.join(pq.read_table(run.scores_path), "pair_id").sort_by("row")
    names = ("p_wrong", "p_wrong_audit", "p_prior", "rank", "p_flip", "W")
    return {name: joined[name].to_numpy() for name in names}


def log_loss(p, wrong):
    return -np.log(np.where(wrong, p, 1 - p)).mean()


def test_without_reviews_both_columns_are_equal(run):
    found = scores(run)
    assert np.array_equal(found["p_wrong"], found["p_wrong_audit"])
    assert score_run(run.directory).to_json()["recalibration"] is None


def test_pairs_that_nobody_judged_are_better_calibrated(run):
    before = scores(run)
    rest = np.ones(PAIRS, bool)
    rest[judge(run, 100)] = False
    summary = score_run(run.directory)
    after = scores(run)
    assert rest.sum() == PAIRS - 100
    assert summary.recalibration["judgements"] == 100
    assert "p_wrong is recalibrated on 100 judgements" in " ".join(summary.notes)
    p, audit = after["p_wrong"][rest], after["p_wrong_audit"][rest]
    assert calibration(audit, WRONG[rest]).ece > 0.1  # badly calibrated, as planted
    assert calibration(p, WRONG[rest]).ece < calibration(audit, WRONG[rest]).ece / 2
    assert log_loss(p, WRONG[rest]) < 0.8 * log_loss(np.clip(audit, 1e-3, 0.999), WRONG[rest])
    for name in ("p_wrong_audit", "rank", "p_flip", "W"):
        assert np.array_equal(after[name], before[name]), name
    assert (np.diff(after["p_wrong"][np.argsort(after["rank"])]) <= 0).all()


def test_what_training_learns_from_has_the_reviewed_share(run):
    before = scores(run)["p_prior"]
    judge(run, 100)
    score_run(run.directory)
    after, share = scores(run)["p_prior"], reviews_of(run).share().estimate
    assert abs(before.mean() - share) > 0.01
    assert after.mean() == pytest.approx(share, abs=1e-4)


def test_only_what_shows_p_wrong_changes_in_the_summary(run):
    before = score_run(run.directory).to_json()
    judge(run, 100)
    after = score_run(run.directory).to_json()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"recalibration", "histogram", "suspects", "notes"}
    assert sum(after["histogram"]["counts"]) == PAIRS
    assert np.isclose(after["suspects"][0]["p_wrong"], scores(run)["p_wrong"].max())


def test_the_review_never_sees_its_own_result(run):
    judge(run, 100)
    population = read_population(run)

    def cells():
        p = read_p_wrong(run, population)
        return draw_sample(Log(), [], population, p, count=100, seed=1).cells

    estimate, drawn = reviews_of(run).to_json(), cells()
    for _ in range(2):
        recalibration = score_run(run.directory).recalibration
        assert recalibration == estimate["recalibration"]
        assert reviews_of(run).to_json() == estimate
        assert cells() == drawn


@pytest.mark.parametrize(
    "answers",
    [{"count": 19}, {"count": 40, "ties": True}, {"count": 60, "purpose": "fix"}],
    ids=["too few", "ties", "no random sample"],
)
def test_too_little_to_recalibrate_on_changes_nothing(run, answers):
    before = run.scores_path.read_bytes()
    judge(run, **answers)
    assert score_run(run.directory).recalibration is None
    assert run.scores_path.read_bytes() == before


def test_listed_pairs_count_among_the_judgements(run):
    sampled = set(judge(run, 40))
    listed = set(judge(run, 30, purpose="fix"))
    assert score_run(run.directory).recalibration["judgements"] == len(sampled | listed)


def test_validate_uses_no_reviews(run, tmp_path):
    truth = tmp_path / "truth.parquet"
    table = pq.read_table(run.pairs_path, columns=["pair_id"])
    pq.write_table(table.append_column("mislabelled", [WRONG]), truth)
    before = validate_truth(run, truth)
    rows = pq.read_table(run.directory / "validation.parquet")
    judge(run, 100)
    assert score_run(run.directory).recalibration is not None
    assert validate_truth(run, truth) == before
    assert pq.read_table(run.directory / "validation.parquet").equals(rows)
    assert rows["p_wrong"].equals(rows["p_wrong_audit"])


def test_gate_and_export_read_the_recalibrated_column(run):
    judge(run, 100)
    summary = score_run(run.directory).to_json()
    run.write_manifest(run.manifest() | {"summary": summary})
    expected = np.sort(scores(run)["p_wrong"])
    scored = find_run_scores(str(run.directory), run.directory.parent)
    assert np.array_equal(np.sort(Subject(run).columns["p_wrong"]), expected)
    latest = read_latest(run)  # 100 pairs have their own answers in exports
    names, p = [one.pair_id for one in latest], chance_wrong(latest)
    assert set(p.round(6)) == {0.02, 0.98}
    assert len(names) == 100
    judged = scored.positions(names)
    assert np.array_equal(scored.columns["p_wrong"][judged], p)
    table = pq.read_table(run.scores_path, columns=["pair_id", "p_wrong"])
    others = ~np.isin(table["pair_id"].to_numpy(), names)
    rest = np.delete(scored.columns["p_wrong"], judged)
    assert np.array_equal(np.sort(rest), np.sort(table["p_wrong"].to_numpy()[others]))
    facts = {"dataset": "d", "model": "m", "policy": "none", "dataset_fingerprint": "0"}
    facts |= {"model_fingerprint": "0", "counts": {"keep": PAIRS, "drop": 0, "flip": 0}}
    assert "recalibrated on 100 judgements of reviewers" in card(scored, facts, "*")


def test_review_prints_whether_the_scores_use_the_answers(run, capsys):
    shown = ["review", str(run.directory), "--summary"]
    judge(run, 50)
    assert command(shown) == 0
    stale = "p_wrong in scores.parquet does not use these answers yet"
    assert stale in capsys.readouterr().out
    run.write_manifest(run.manifest() | {"summary": score_run(run.directory).to_json()})
    assert command(shown) == 0
    printed = capsys.readouterr().out
    assert stale not in printed
    assert "pairs with p_wrong_audit >= 0.5" in printed


def test_scores_of_an_older_version_are_refused(run):
    judge(run, 50)
    table = pq.read_table(run.scores_path)
    pq.write_table(table.drop_columns(["p_wrong_audit"]), run.scores_path)
    with pytest.raises(RunError, match="older version: no p_wrong_audit") as refused:
        reviews_of(run)
    assert "noisescope score" in str(refused.value.hint)
