"""Old spellings of options still work, with a note; a run is an argument."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.toy_run import rows, scored_run, write_lines
from typer.main import get_command

from noisescope import cli
from noisescope.cli.query import told_apart
from noisescope.cli.renamed import ARGUMENT, RENAMED, current_settings, current_words
from noisescope.datasets import load


def options(command: str) -> set[str]:
    """All options of a command."""
    params = get_command(cli.app).commands[command].params  # type: ignore[attr-defined]
    return {option for parameter in params for option in parameter.opts}


@pytest.mark.parametrize("command", sorted({*RENAMED, *ARGUMENT}))
def test_every_new_name_exists_and_no_old_one(command: str) -> None:
    known = options(command)
    renamed = RENAMED.get(command, {})
    assert set(renamed.values()) <= known
    assert not {*renamed, ARGUMENT.get(command, "")} & known


@pytest.mark.parametrize(
    ("typed", "words", "notes"),
    [
        ("flip d --out x", "flip d --output x", 1),
        ("flip d --out=x --rate 0.1", "flip d --output=x --rate 0.1", 1),
        ("train d --lr 1 --batch 2", "train d --learning-rate 1 --batch-size 2", 2),
        ("show --run r --rank 1", "show --rank 1 r", 1),
        ("validate --run=r --rate 0.1", "validate --rate 0.1 r", 1),
        ("flip d --run r", "flip d --run r", 0),
        ("score d --batch-size 2", "score d --batch-size 2", 0),
        ("query -- --run", "query -- --run", 0),
    ],
)
def test_old_words_become_new_ones(typed: str, words: str, notes: int) -> None:
    found, said = current_words(typed.split())
    assert found == words.split()
    assert len(said) == notes


def test_old_settings_become_new_ones() -> None:
    assert current_settings("train", {"batch": 4, "steps": 2}) == (
        {"batch_size": 4, "steps": 2},
        ["noisescope.toml: [train] batch is now batch_size; the old name goes in the next version"],
    )
    assert current_settings("gate", {"max_growth": 1}) == ({"max_growth": 1}, [])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((None, None), (None, None)),
        (("SELECT 1", None), ("SELECT 1", None)),
        (("toy-1", None), (None, "toy-1")),
        (("SELECT 1", "toy-1"), ("SELECT 1", "toy-1")),
        (("toy-1", "SELECT 1"), ("SELECT 1", "toy-1")),
        (("s3://a/b", None), (None, "s3://a/b")),
    ],
)
def test_sql_and_run_in_either_order(
    words: tuple[str | None, str | None], told: tuple[str | None, str | None]
) -> None:
    assert told_apart(*words) == told


def test_the_old_words_do_what_the_new_ones_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(Path("toy.jsonl"), rows())
    scored_run(load("toy.jsonl"), Path("runs") / "toy-1")
    sql = "SELECT count(*) AS n FROM scores"
    assert cli.run(["query", sql, "toy-1", "--json"]) == 0
    new = capsys.readouterr()
    assert cli.run(["query", sql, "--run", "toy-1", "--json"]) == 0
    old = capsys.readouterr()
    assert old.out == new.out
    assert "--run is now an argument" in old.err
    assert "is now" not in new.err
    assert cli.run(["show", "--rank", "1", "toy-1", "--json"]) == 0
    assert cli.run(["flip", "toy.jsonl", "--out", "copy"]) == 0
    assert "--out is now --output" in capsys.readouterr().err
    assert (tmp_path / "copy").is_dir()
