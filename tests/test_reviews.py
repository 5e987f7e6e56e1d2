"""reviews.jsonl: what a killed writer leaves, who may write, and how answers meet other runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime

import numpy as np
import pytest
from helpers.toy_run import rows, scored_run, toy, write_lines

from noisescope.datasets import load
from noisescope.errors import RunError
from noisescope.pairs import content_id
from noisescope.report.review.session import open_session
from noisescope.scoring.review_estimate import CENSUS
from noisescope.scoring.reviews import (
    cells_of,
    draw_sample,
    queue_of,
    reached,
    read_judged,
    read_population,
    read_run_reviews,
)
from noisescope.storage.reviews import (
    FILE,
    Answer,
    Draw,
    Journal,
    Log,
    new_id,
    read_log,
    read_reviews,
    side_key,
)
from noisescope.storage.run import Run


def answer(number, choice="first", reviewer="ann", draw="d", **more):
    """An answer about row `number` of the toy data set; the chosen side is shown first."""
    row = rows()[number]
    sides = side_key(row["chosen"]), side_key(row["rejected"])
    content = content_id(row["prompt"], row["chosen"], row["rejected"])
    return Answer(more.pop("pair_id", content), content, reviewer, choice, sides, draw, **more)


@pytest.fixture
def run(tmp_path):
    return toy(tmp_path).run


def write(run, *lines, reviewer="ann"):
    journal = Journal(run.directory, reviewer)
    for line in lines:
        journal.append(line)


def test_what_is_written_is_read(run):
    draw = Draw("d", "estimate", "p", 7, bytes(range(50)))
    given = answer(1), answer(2, "tie"), answer(3, "skip", reviewer="bob")
    write(run, draw.to_json(), *(one.to_json() for one in given))
    log = read_reviews(run)
    assert log.answers == given
    assert log.draws == {"d": draw}
    assert log.reviewers == ["ann", "bob"]
    assert [one.better for one in given] == [given[0].sides[0], None, None]


def test_the_latest_answer_counts_and_undo_takes_one_back(run):
    first, second, third = answer(1), answer(1, "second"), answer(2)
    write(run, first.to_json(), second.to_json(), third.to_json())
    assert read_reviews(run).answers == (second, third)
    write(run, {"kind": "undo", "answer": second.id}, {"kind": "undo", "answer": third.id})
    assert read_reviews(run).answers == (first,)


def test_many_lines_are_one_write_whose_times_rise(run, monkeypatch):
    write(run, answer(0).to_json())
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    long_ago = answer(1).to_json() | {"time": "2001-01-01T00:00:00.000000+00:00"}
    undo = {"kind": "undo", "answer": "none"}
    lines = (long_ago, undo, long_ago | {"id": "x"}, long_ago | {"id": "y"})
    Journal(run.directory, "ann").append(*lines)
    assert len(synced) == 1
    stored = [json.loads(line) for line in (run.directory / FILE).read_bytes().splitlines()]
    assert [line.get("id") for line in stored[1:]] == [long_ago["id"], None, "x", "y"]
    times = [line["time"] for line in stored if "time" in line]
    assert times == sorted(set(times))
    assert len(times) == 4


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_last_line_is_passed_by_and_then_removed(run, cut):
    write(run, answer(1).to_json(), answer(2).to_json())
    path = run.directory / FILE
    whole = path.read_bytes()
    torn = json.dumps(answer(3).to_json()).encode()[:cut]
    path.write_bytes(whole + torn)
    assert len(read_reviews(run).answers) == 2
    write(run, answer(4).to_json())
    assert path.read_bytes().startswith(whole)
    assert len(path.read_bytes().splitlines()) == 3
    assert len(read_reviews(run).answers) == 3


def test_a_last_line_that_only_lacks_its_end_is_kept(run):
    path = run.directory / FILE
    path.write_text(json.dumps(answer(1).to_json()), "utf-8")
    write(run, answer(2).to_json())
    assert len(read_reviews(run).answers) == 2


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"kind": "answer"}', '{"kind": "vote"}', '{"kind": "draw", "purpose": "x"}'],
)
def test_a_damaged_line_is_named(run, line):
    path = run.directory / FILE
    path.write_text(line + "\n" + json.dumps(answer(1).to_json()) + "\n", "utf-8")
    with pytest.raises(RunError, match=rf"{FILE}:1 is damaged"):
        read_reviews(run)


def test_cells_that_unpack_to_something_else_are_damage(tmp_path):
    line = Draw("d", "estimate", "p", 1, bytes(1000)).to_json()
    path = tmp_path / "run" / FILE
    path.parent.mkdir()
    path.write_text(json.dumps(line | {"cells": line["cells"][:8]}) + "\n{}\n", "utf-8")
    with pytest.raises(RunError, match="damaged"):
        read_log([path])


def test_a_link_is_not_written_through(run, tmp_path):
    (run.directory / FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="symbolic link"):
        Journal(run.directory, "ann")


WRITER = """
import sys
from pathlib import Path
from noisescope.storage.reviews import Answer, Journal
journal = Journal(Path(sys.argv[1]), sys.argv[2])
for number in range(10**6):
    journal.append(Answer(str(number), "c" * 4000, "ann", "tie", ("a", "b"), "d").to_json())
    print(number, flush=True)
"""


def writer(run, reviewer="ann"):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, run.directory, reviewer], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_writer_loses_at_most_the_answer_in_flight(run):
    with writer(run) as process:
        confirmed = [int(process.stdout.readline()) for _ in range(30)]
        process.kill()
        confirmed += [int(line) for line in process.stdout.read().split()]
    lines = (run.directory / FILE).read_bytes().split(b"\n")
    kept = [json.loads(line)["pair_id"] for line in lines[:-1]]
    assert kept[: len(confirmed)] == [str(number) for number in confirmed]
    assert len(kept) - len(confirmed) <= 1
    write(run, answer(1).to_json())  # the lock died with its process


def test_a_second_process_of_the_same_reviewer_is_refused(run):
    with writer(run) as process:
        process.stdout.readline()
        with pytest.raises(RunError, match="in another process") as refused:
            Journal(run.directory, "ann")
        assert "--reviewer" in str(refused.value.hint)
        write(run, answer(1).to_json(), reviewer="bob")
        process.kill()
    assert read_log([run.directory / FILE]).answers


def scores(run, population):
    rng = np.random.default_rng(0)
    return rng.random(len(population)) ** 3


def judge_sample(run, count, wrong=lambda row: row % 6 == 0, reviewer="ann"):
    """Draw a sample, or go on with the one there is, and answer its first `count` pairs."""
    population = read_population(run)
    log = read_reviews(run)
    draws = [draw for draw in log.draws.values() if draw.purpose == "estimate"]
    journal = Journal(run.directory, reviewer)
    if not draws:
        judged = read_judged(run, log, population)
        draws = [draw_sample(log, judged, population, np.full(120, 0.2), count=count, seed=5)]
        journal.append(draws[0].to_json())
    order = queue_of(draws[0], population)[:count]
    numbers = {content_id(r["prompt"], r["chosen"], r["rejected"]): i for i, r in enumerate(rows())}
    at = {int(population.places([name])[0]): i for name, i in numbers.items()}
    for place in order.tolist():
        number = at[place]
        choice = "second" if wrong(number) else "first"
        journal.append(answer(number, choice, reviewer, draws[0].id).to_json())
    return draws[0]


def test_a_sample_estimates_the_share(run):
    judge_sample(run, 60)
    population = read_population(run)
    people = read_run_reviews(run, scores(run, population), population)
    assert people is not None
    share = people.share()
    assert share.low < 20 / 120 < share.high
    assert people.sampled == 60
    assert people.sentence().startswith("reviewed: ")
    assert "60 judgements by 1 reviewer)" in people.sentence()
    assert json.loads(json.dumps(people.to_json()))["pairs_judged"] == 60


def test_all_pairs_judged_leave_no_doubt(run):
    judge_sample(run, 120)
    population = read_population(run)
    share = read_run_reviews(run, scores(run, population), population).share()
    assert (share.low, share.estimate, share.high) == pytest.approx((1 / 6, 1 / 6, 1 / 6))


def test_few_answers_give_no_share(run):
    judge_sample(run, 10)
    population = read_population(run)
    people = read_run_reviews(run, scores(run, population), population)
    assert people.share() is None
    assert "10 of a random sample: too little" in people.sentence()


def test_answers_about_listed_pairs_represent_themselves(run):
    draw = judge_sample(run, 40)
    worst = [number for number in range(120) if number % 6 == 0]
    names = [answer(number).pair_id for number in worst]
    listed = Draw(new_id(), "fix", draw.population, pairs=tuple(names))
    log = read_reviews(run)
    known = {one.content_id for one in log.answers}
    new = [answer(n, "second", draw=listed.id) for n in worst]
    write(run, listed.to_json(), *(one.to_json() for one in new if one.content_id not in known))
    population = read_population(run)
    people = read_run_reviews(run, scores(run, population), population)
    cells = people.reviewed.cells
    assert (cells[population.places(names)] == CENSUS).all()  # those judged before as well
    share = people.share()
    assert share.estimate == pytest.approx(1 / 6, abs=0.02)
    assert share.low <= 1 / 6 + 0.01
    alone = people.reviewed.share(cells == CENSUS).share
    assert alone.estimate > 0.5


def test_a_flipped_copy_finds_the_reviews_and_turns_them(run, tmp_path):
    judge_sample(run, 60)
    turned = [r | {"chosen": r["rejected"], "rejected": r["chosen"]} for r in rows()]
    write_lines(tmp_path / "turned.jsonl", turned)
    other = scored_run(load(tmp_path / "turned.jsonl"), tmp_path / "runs" / "turned-1").run
    population = read_population(other)
    people = read_run_reviews(other, scores(other, population), population)
    assert people.share().estimate == pytest.approx(5 / 6, abs=0.1)


def test_a_sample_of_other_pairs_is_no_sample_of_these(run, tmp_path):
    judge_sample(run, 60)
    write_lines(tmp_path / "more.jsonl", rows(130))
    other = scored_run(load(tmp_path / "more.jsonl"), tmp_path / "runs" / "more-1").run
    population = read_population(other)
    people = read_run_reviews(other, np.full(130, 0.1), population)
    assert people.share() is None
    assert len(people.judged) == 60


def test_the_population_does_not_depend_on_the_order_of_rows(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    here, there = toy(tmp_path / "a").run, tmp_path / "b"
    write_lines(there / "toy.jsonl", rows()[::-1])
    other = scored_run(load(there / "toy.jsonl"), there / "runs" / "toy-1").run
    one, two = read_population(here), read_population(other)
    assert one.digest == two.digest
    assert (one.place == two.place[::-1]).all()


def test_copies_of_a_judged_pair_are_no_part_of_the_sample(tmp_path):
    twice = [row | {"annotator": name} for row in rows() for name in ("a", "b")]
    write_lines(tmp_path / "twice.jsonl", twice)
    run = scored_run(load(tmp_path / "twice.jsonl"), tmp_path / "runs" / "twice-1").run
    population = read_population(run)
    journal = Journal(run.directory, "ann")
    draw = draw_sample(Log(), [], population, np.full(240, 0.2), count=30, seed=5)
    journal.append(draw.to_json())
    order = queue_of(draw, population)[:30]
    names = {}
    for number, row in enumerate(rows()):
        content = content_id(row["prompt"], row["chosen"], row["rejected"])
        names |= {content: number, f"{content}~2": number}
    places = {int(population.places([name])[0]): name for name in names}
    for place in order.tolist():
        name = places[place]
        journal.append(answer(names[name], draw=draw.id, pair_id=name).to_json())
    people = read_run_reviews(run, np.full(240, 0.2), population)
    seen = reached(draw, people.judged, population)
    assert seen.sum() == 30
    assert people.sampled == 30
    assert len(people.judged) > 40  # both copies are judged
    counted = people.to_json()
    assert counted["pairs_judged"] == counted["right"] == people.judgements <= 30
    assert (cells_of(draw)[order] != CENSUS).all()


def test_one_answer_about_copies_counts_once(tmp_path):
    lines = [row for row in rows() for _ in range(3)]
    lines[5] = lines[5] | {"chosen": lines[5]["rejected"], "rejected": lines[5]["chosen"]}
    write_lines(tmp_path / "thrice.jsonl", lines)
    run = scored_run(load(tmp_path / "thrice.jsonl"), tmp_path / "runs" / "thrice-1").run
    write(run, answer(0, "second").to_json(), answer(1, "second").to_json())
    people = read_run_reviews(run, np.full(360, 0.2))
    assert people.sentence().startswith("reviewed: 2 of 3 judged pairs are wrong (1 reviewer")
    counted = people.to_json()
    assert [counted[key] for key in ("pairs_judged", "wrong", "right")] == [3, 2, 1]


def test_a_run_without_reviews_has_none(tmp_path):
    run = Run(tmp_path / "runs" / "toy-1")
    assert read_reviews(run) == Log()
    assert read_run_reviews(run, np.empty(0)) is None


def test_the_last_answer_counts_though_the_clock_was_set_back(run):
    late = answer(1, time="2040-01-01T00:00:00.000000+00:00")
    early = answer(1, "second", time="2020-01-01T00:00:00.000000+00:00")
    write(run, late.to_json(), {"kind": "undo", "answer": "none"}, early.to_json())
    (counted,) = read_reviews(run).answers
    assert (counted.id, counted.time) == (early.id, "2040-01-01T00:00:00.000001+00:00")


class SetBack(datetime):
    """A clock that stays in 2020."""

    @classmethod
    def now(cls, tz=None):
        return cls(2020, 1, 1, tzinfo=tz)


def test_undo_takes_back_the_last_answer_though_the_clock_was_set_back(run, monkeypatch):
    session = open_session(run, reviewer="ann", purpose="fix", count=3)
    session.answer(session.current().content_id, "first")
    monkeypatch.setattr("noisescope.storage.reviews.datetime", SetBack)
    session.answer(session.current().content_id, "first")
    assert session.undo()
    assert session.current() is session.tasks[1]
    (counted,) = read_reviews(run).answers
    assert counted.content_id == session.tasks[0].content_id
