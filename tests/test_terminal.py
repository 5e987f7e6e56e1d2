"""What a terminal shows: progress, numbers in words, errors nobody foresaw, and harmless text."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import noisescope.cli as cli
from noisescope.cli import console
from noisescope.cli.console import ERR, Terminal, duration, finite, json_text, short
from noisescope.cli.evaluate_table import remarks
from noisescope.evaluate.comparison import (
    FAILED,
    FIRST,
    SECOND,
    UNPARSABLE,
    JudgeCard,
    by_order,
    by_score,
)
from noisescope.evaluate.results import summarise_verdicts
from noisescope.progress import Pace, advance, inside
from noisescope.storage.printable import printable


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.44, "0.4 s"), (35.2, "35 s"), (240, "4 min"), (9000, "2.5 h")]
)
def test_durations_are_told_in_the_unit_people_use(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@given(st.text())
def test_no_text_controls_the_terminal(text: str) -> None:
    assert json.loads(json_text({"text": text})) == {"text": text}
    for shown in (printable(text), short(text, 9), json_text(text)):
        assert shown.isprintable() or not set(shown) & set("\x1b\r\x9b\u202e\u200f\n\t")


def test_numbers_that_json_lacks_become_null() -> None:
    value: Any = {"a": float("nan"), "b": [float("inf"), 1.5], "c": ("x", None, 2)}
    assert finite(value) == {"a": None, "b": [None, 1.5], "c": ["x", None, 2]}


def test_a_log_gets_a_line_at_most_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = chain([0.0, 1.0, 5.0, 12.0, 13.0], repeat(40.0))  # the first is the stage's beginning
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with Terminal().stage("features") as advance:
        advance(10, 100, None)
        advance(20, 100, None)
        advance(30, 100, "a batch was halved")
        advance(40, 100, None)
        advance(100, 100, None)
    assert capsys.readouterr().err.splitlines() == [
        "features: 20%, about 32 s left",
        "a batch was halved",
    ]


def test_a_terminal_gets_a_bar_and_notes_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    shown = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setitem(vars(ERR), "console", shown)
    with Terminal().stage("features") as advance:
        advance(50, 100, "a batch was halved")
    assert "features" in screen.getvalue()
    assert "50%" in screen.getvalue()
    assert "a batch was halved" in screen.getvalue()


def test_quiet_means_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(quiet=True)
    terminal.note("nothing")
    with terminal.stage("features") as advance:
        advance(1, 2, "nothing")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "told", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left", "df -h"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error", "df -h"),
        (MemoryError("8 GiB"), "out of memory: 8 GiB", "kept"),
        (KeyError("x"), "unexpected KeyError: 'x'", "--debug"),
    ],
)
def test_an_error_nobody_foresaw_is_one_message_and_exit_two(
    error: Exception,
    told: str,
    hint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", failing)
    assert cli.run(["score", "x"]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert hint in shown
    assert "Traceback" not in shown
    with pytest.raises(type(error)):
        cli.run(["--debug", "score", "x"])


def test_a_judge_that_stumbles_is_told_of_in_words() -> None:
    card = JudgeCard("llm", "qwen", "its provider's", "text", "f", is_pairwise=True)
    told = [(FIRST, SECOND), (FIRST, FIRST), (FAILED, FIRST), (UNPARSABLE, SECOND)]
    lines = remarks(summarise_verdicts(card, [by_order(answers, retries=1) for answers in told]))
    assert lines[0].startswith("llm: the same answer in both orders on 1 of 4; names the first 75%")
    assert "4 requests repeated, 1 failed, 1 answers could not be read" in lines[1]
    assert lines[2:] == [
        "llm: repeat the command to send the failed ones again",
        "llm: 2 of 4 prompts unjudged and omitted",
    ]
    scored = JudgeCard("mine", "rules.py", "your own", "text", "f")
    assert remarks(summarise_verdicts(scored, by_score([1.0, 2.0], [0.0, 2.0]))) == []


def test_ctrl_c_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stopped)
    assert cli.run(["score", "a b.jsonl"]) == 2
    assert "run it again: noisescope score 'a b.jsonl'" in capsys.readouterr().err


def test_the_module_is_the_command() -> None:
    words = [sys.executable, "-m", "noisescope", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("noisescope ")


def test_the_time_left_is_a_mean_over_the_whole_stage() -> None:
    pace = Pace()
    assert pace.left(0, 100, 0.0) is None
    assert pace.left(10, 100, 5.0) is None  # how long the first took is not known
    assert pace.left(20, 100, 10.0) == pytest.approx(40.0)
    assert pace.left(20, 100, 70.0) == pytest.approx(520.0)  # a minute without news
    assert pace.left(100, 100, 80.0) is None
    assert pace.left(10, 50, 90.0) is None  # another stage begins
    assert pace.left(20, 50, 91.0) == pytest.approx(3.0)


def test_a_chunk_shows_progress_before_it_ends() -> None:
    shares: list[float] = []
    with inside(shares.append):
        advance(0.5)
    advance(1.0)
    assert shares == [0.5]
