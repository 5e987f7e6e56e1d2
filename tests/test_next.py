"""What a command suggests to type next can be typed as it stands; a mistake is answered so too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers.toy_run import rows, scored_run, write_lines
from typer.main import get_command

from noisescope.audited import in_python
from noisescope.cli import app
from noisescope.cli import run as command
from noisescope.cli.evaluate_table import with_limit
from noisescope.cli.summary import ceiling
from noisescope.datasets import load
from noisescope.storage.run import Run

RUN = "runs/toy-1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a dataset, its finished run, and votes of three people on each pair."""
    folder = tmp_path_factory.mktemp("place")
    write_lines(folder / "toy.jsonl", rows())
    with pytest.MonkeyPatch.context() as there:
        there.chdir(folder)  # the dataset's path as a person types it
        scored_run(load("toy.jsonl"), Path(RUN))
    votes = [{**row, "annotator": person} for row in rows(20) for person in "abc"]
    write_lines(folder / "votes.jsonl", votes)
    return folder


def suggested(shown: str) -> list[str]:
    """The words after `next`, of which there is one."""
    (line,) = re.findall(r"^next +(.+)$", shown, re.MULTILINE)
    return shlex.split(line.rpartition("&& ")[2])


def parse(words: list[str]) -> dict[str, Any]:
    """The parameters of a suggested command line. Raises where the command cannot read it."""
    program, name, *rest = words
    assert program == "noisescope"
    group: Any = get_command(app)
    with group.commands[name].make_context(name, rest) as context:
        return dict(context.params)


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("flip toy.jsonl --output copy", {"dataset": "copy", "model": "/a/tiny"}),
        ("flip votes.jsonl -o votes-copy", {"dataset": "votes-copy", "model": "MODEL"}),
        ("export --format weights", {"model": "/a/tiny"}),
        ("export --format trl", {"name": "exports/toy-1-trl.parquet"}),
        ("export --format clean", {"dataset": "exports/toy-1-clean", "model": "/a/tiny"}),
        ("export --format review", {"run": RUN}),
        ("export --format hub --repo-id a/b --dry-run", {"run": RUN, "repo_id": "a/b"}),
        ("report", {"run": RUN}),
        ("show --rank 1", {"rank": 2}),  # beside --rank the one argument is the run
        ("show --rank 2 toy", {"rank": 3, "pair_id": "toy"}),
        ("show --rank 2 --runs-dir ./runs/../runs", {"rank": 3, "pair_id": "runs/../runs/toy-1"}),
        ("show --rank 120", {"run": RUN}),
        ("diff toy toy", {"run": RUN}),
        ("datasets", {"name": "NAME"}),
        ("datasets toy.jsonl", {"dataset": "toy.jsonl", "model": "/a/tiny"}),
        ("datasets votes.jsonl --format columnar", {"format": "columnar", "model": "MODEL"}),
        ("query", {"run": None}),
        ("query toy", {"run": "toy"}),
        ("query --runs-dir ./runs/../runs", {"run": "runs/../runs/toy-1"}),
        ("agreement votes.jsonl", {"dataset": "votes.jsonl"}),
        ("sample fresh", {"dataset": "hh-rlhf"}),
        ("doctor", {"directory": Path("noisescope-sample")}),
    ],
)
def test_what_is_suggested_can_be_typed(
    typed: str,
    wanted: dict[str, Any],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    assert command(shlex.split(typed)) == 0
    found = parse(suggested(capsys.readouterr().out))
    assert {name: found[name] for name in wanted} == wanted


def test_a_workspace_with_a_model_needs_none_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place / "workspace"
    folder.mkdir()
    (folder / "noisescope.toml").write_text('[models]\ntext = "a/b"\n')
    monkeypatch.chdir(folder)
    assert command(["datasets", "../toy.jsonl"]) == 0
    assert suggested(capsys.readouterr().out) == ["noisescope", "score", "../toy.jsonl"]


def test_a_reader_can_type_what_a_trl_export_shows(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    monkeypatch.chdir(place)
    for output in ("trl.parquet", "trl"):
        assert command(["export", "--format", "trl", "--output", output]) == 0
        (shown,) = re.findall(r"train_dataset=([^\n]+)\)$", capsys.readouterr().out, re.MULTILINE)
        assert len(eval(shown, {"datasets": datasets})) == 120


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("evaluate", "Missing option '--policy'"),
        ("score toy.jsonl --limit 0", "greater than or equal to 1"),
        ("export --format csv", "'csv' is not one of"),
    ],
)
def test_a_mistyped_option_is_answered_by_the_example(
    typed: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(shlex.split(typed)) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert f"Example: noisescope {typed.partition(' ')[0]} " in shown


@pytest.mark.parametrize(
    "typed", ["-n 8 --output here", "-n8 --out=here", "--limit 8", "--limit=8", ""]
)
def test_more_prompts_are_asked_by_the_same_words(typed: str) -> None:
    words = ["evaluate", "--policy", "a b", *typed.split()]
    found = parse(shlex.split(with_limit(words, 400)))
    assert (found["policy"], found["limit"], found["output"]) == ("a b", 400, None)


def test_an_expectation_above_its_ceiling_is_explained() -> None:
    result = {"pairs": 58, "expected_auroc": 0.952, "bayes_auroc": 0.916}
    assert ceiling(result) == "ceiling 0.916 (both are estimates from 58 pairs)"
    assert ceiling(result | {"expected_auroc": 0.9}) == "ceiling 0.916"
    assert ceiling(result | {"bayes_auroc": None}) == "ceiling –"


def test_several_runs_of_a_dataset_are_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dataset's name takes its latest run: which that is, and the others, in one line."""
    monkeypatch.chdir(place)
    scored_run(load("toy.jsonl"), Path("more/toy-1"))
    scored_run(load("toy.jsonl"), Path("more/toy-2"))
    count = ["query", "SELECT count(*) FROM pairs"]
    assert command([*count, "toy", "--runs-dir", "more"]) == 0
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith("run: more/toy-2 (")
    assert "more/toy-1 (" in line
    assert command([*count, "toy-1", "--runs-dir", "more"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == "run: more/toy-1"


def test_a_run_that_is_not_there_names_the_directory_searched(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert command(["report", "toy", "--runs-dir", "elsewhere"]) == 2
    shown = capsys.readouterr().err
    assert f"no finished run called 'toy' under {place / 'elsewhere'}" in shown
    assert "--runs-dir DIRECTORY" in shown


def test_a_dataset_is_found_from_its_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A dataset named relative to the directory of the score command, from another directory."""
    monkeypatch.chdir(place)
    run = Run(Path(RUN))
    manifest = run.manifest()
    run.write_manifest({**manifest, **run.beside(manifest["resolved"])})
    assert run.dataset_path() == "toy.jsonl"
    monkeypatch.chdir(tmp_path)
    moved = Run(place / RUN)
    assert Path(moved.dataset_path()) == place / "toy.jsonl"
    (tmp_path / "toy.jsonl").write_text("another file of the same name")
    assert Path(moved.dataset_path()) == place / "toy.jsonl"


def test_an_error_in_python_names_arguments() -> None:
    shown = in_python("--drop-top 0.3 changes only the worst; --force changes them all.")
    assert shown == "drop_top=0.3 changes only the worst; force=True changes them all."
