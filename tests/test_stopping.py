"""What a command says when it is stopped, runs out of memory, or its noisescope.toml is broken."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.planted_run import planted_run

from noisescope.cli import _explained
from noisescope.cli import console as stopping
from noisescope.cli import run as command
from noisescope.cli.console import SIGNALS, Stopped, Terminal, check, listen

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError("Unable to allocate 4.00 GiB for an array"),
)


@pytest.fixture
def listening() -> Iterator[None]:
    """Our own answer to the two signals, undone afterwards."""
    before = [(number, signal.getsignal(number)) for number in SIGNALS]
    listen()
    yield
    stopping._received.clear()
    for number, answer in before:
        signal.signal(number, answer)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_once_and_the_next_one_ends_the_process(number: signal.Signals) -> None:
    check()
    with pytest.raises(Stopped, match=number.name):
        os.kill(os.getpid(), number)
    assert {signal.getsignal(each) for each in SIGNALS} == {signal.SIG_DFL}


@pytest.mark.usefixtures("listening")
def test_a_query_that_is_stopped_prints_how_to_repeat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planted_run(tmp_path / "run", pairs=12)

    def query(*_: object, **__: object) -> None:
        """Raise as DuckDB does, which replaces the exception of a signal by its own."""
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        except Stopped:
            raise RuntimeError("Query interrupted") from None

    monkeypatch.setattr("noisescope.storage.sql.query", query)
    assert command(["query", "SELECT 1", str(run.directory)]) == 2
    shown = capsys.readouterr().err
    assert "Stopped." in shown
    assert "run it again: noisescope query" in shown
    assert "unexpected" not in shown


class Dying:
    """Is signalled while it is being destroyed, where Python drops exceptions."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("listening")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("quiet", [True, False])
def test_a_signal_that_python_drops_is_heard_at_the_next_progress(quiet: bool) -> None:
    thing = Dying()
    del thing
    with Terminal(quiet=quiet).stage("work") as advance, pytest.raises(Stopped, match="SIGTERM"):
        advance(1.0, 2.0, None)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_lack_of_memory_is_said_to_be_one(error: Exception) -> None:
    message, hint = _explained(error)
    assert message.startswith("out of memory: ")
    assert "bug in noisescope" not in hint
    assert _explained(RuntimeError("shapes differ"))[0] == "unexpected RuntimeError: shapes differ"


BROKEN = ("[score\n", "[scor]\n", "[score]\nreplicas = 'x'\n", "[score]\nkinds = 1\n", "\0")


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize(
    "words", [["score", "--help"], ["-h"], ["train", "-h"], ["query", "x", "-h"]]
)
def test_help_works_in_a_broken_workspace(
    text: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "noisescope.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert command(words) == 0
    shown = capsys.readouterr()
    assert "Usage: noisescope" in shown.out
    assert ("noisescope.toml" in shown.err) == (len(words) > 1)
    assert command(["query", "SELECT 1"]) == 2
    assert "noisescope.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command_", "setting", "typed", "told"),
    [
        ("score", 'kind = "heads"', [], "line 3: [score] kind heads: one of head"),
        ("fine-tune", 'kind = "heads"', [], "line 3: [score] kind heads: one of head"),
        ("score", "replicas = 1", [], "line 3: [score] replicas must be at least 2"),
        ("score", 'kind = "lora"', ["--kind", "heads"], "error: --kind heads: one of head"),
        ("score", 'kind = "lora"', ["--kind=heads"], "error: --kind heads: one of head"),
        ("score", "replicas = 4", ["--folds", "1"], "error: --folds must be at least 2"),
    ],
)
def test_a_bad_setting_is_blamed_on_its_line_and_a_bad_flag_on_the_flag(
    command_: str,
    setting: str,
    typed: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "noisescope.toml").write_text(f"# ours\n[score]\n{setting}\n")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    monkeypatch.chdir(tmp_path)
    assert command([command_, "pairs.jsonl", *typed]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert told in shown
    assert ("--help" in shown) or typed
