"""A `score` typed again shows its result at once; a change to any input makes it again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.lora import command, tiny_place

from noisescope.auditing import repeat
from noisescope.cli import run
from noisescope.storage.run import find_run

pytestmark = pytest.mark.slow

AGAIN = "has the result: nothing has changed since"
SMALL = ("--replicas", "2", "--folds", "2", "--json")

Score = Callable[..., tuple[dict[str, Any], bool]]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a model, and a finished run made there."""
    place = tiny_place(tmp_path_factory.mktemp("repeat"))
    before = Path.cwd()
    os.chdir(place)
    try:
        assert run(command("score", place, *SMALL)) in (0, 2)
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def score(
    scored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Score:
    """Type the same `score` with more options: what it printed, and whether it was reused."""
    monkeypatch.chdir(scored)
    capsys.readouterr()

    def typed(*more: str) -> tuple[dict[str, Any], bool]:
        words = [word for word in command("score", scored, *SMALL, *more) if word != "--json"]
        assert run(words) in (0, 2)
        reused = AGAIN in capsys.readouterr().err
        assert run([*words, "--json"]) in (0, 2)
        return json.loads(capsys.readouterr().out), reused

    return typed


def test_nothing_changed_and_nothing_is_computed(score: Score, monkeypatch: Any) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("an audit began")

    monkeypatch.setattr("noisescope.auditing.audit.audit", fail)
    first, reused = score()
    assert reused
    assert first == score()[0]
    assert first["pairs"] > 0


def test_other_constants_make_other_verdicts(score: Score, scored: Path) -> None:
    before = find_run(None, scored / "runs").scores_path.read_bytes()
    assert not score("--k1", "3")[1]
    assert find_run(None, scored / "runs").scores_path.read_bytes() != before
    assert not score()[1], "the scores of other constants were shown"
    assert find_run(None, scored / "runs").scores_path.read_bytes() == before


@pytest.mark.parametrize("change", ["data", "model", "scores", "margins", "reviews", "code"])
def test_a_changed_input_is_noticed(
    score: Score, scored: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    score()
    assert score()[1]
    made = find_run(None, scored / "runs")
    if change == "data":
        data = next(path for path in scored.glob("*.jsonl"))
        os.utime(data)
    elif change == "model":
        os.utime(next(scored.rglob("config.json")))
    elif change == "scores":
        made.scores_path.unlink()
    elif change == "margins":
        made.margin_parts()[0].write_bytes(b"x")
    elif change == "reviews":
        (made.directory / "reviews.jsonl").write_text("")
    else:
        monkeypatch.setattr(repeat, "_code", lambda: "other")
    assert not score()[1]
    assert score()[1]


def test_a_repeated_run_is_the_latest_again(score: Score, scored: Path) -> None:
    first, _ = score()
    other, _ = score("--seed", "1")
    assert find_run(None, scored / "runs").directory.name == Path(other["run"]).name
    assert score()[1]
    assert find_run(None, scored / "runs").directory.name == Path(first["run"]).name
    shutil.rmtree(scored / other["run"])
