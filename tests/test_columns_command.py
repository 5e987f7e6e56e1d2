"""`--columns` and `--pairs` on the command line, in noisescope.toml and in the records of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.toy_run import scored_run, write_lines

from noisescope.cli import run as command
from noisescope.datasets import load
from noisescope.storage.workspace import find_workspace

FLAG = "prompt=q,a=one,b=two,preference=verdict,a_wins=1,b_wins=2,tie=0"


def judged(count: int = 40) -> list[dict[str, Any]]:
    return [
        {"q": f"ask {n}", "one": f"first {n}", "two": f"second {n}", "verdict": n % 3,
         "source": "x", "votes": n % 5 + 1}
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_lines(tmp_path / "odd.jsonl", judged())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_look_shows_how_rows_are_read(folder: Path, capsys: Any) -> None:
    assert command(["datasets", "odd.jsonl"]) == 2
    assert "--columns" in capsys.readouterr().err
    assert command(["datasets", "odd.jsonl", "--columns", FLAG, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pairs"], found["rejected"], found["labels"]) == (
        26, {"tie": 14}, {"0": 14, "1": 13, "2": 13},
    )  # fmt: skip
    assert found["unused_columns"] == ["source", "votes"]
    assert found["sample"][1]["prompt"] == "ask 2"
    assert (found["sample"][1]["chosen"], found["sample"][1]["rejected"]) == ("second 2", "first 2")
    assert command(["datasets", "odd.jsonl", "--columns", FLAG]) == 0
    shown = capsys.readouterr().out
    assert "not used" in shown
    assert "0: 14, 1: 13, 2: 13; the first side is better in 13 of 26" in shown
    assert f"noisescope score odd.jsonl --columns {FLAG}" in " ".join(shown.split())


def test_the_workspace_names_columns(folder: Path, capsys: Any) -> None:
    parts = (part.split("=") for part in FLAG.split(","))
    table = ", ".join(f'{role} = "{path}"' for role, path in parts)
    (folder / "noisescope.toml").write_text(
        f'[datasets.odd]\npath = "odd.jsonl"\ncolumns = {{ {table} }}\n'
    )
    by_name = load("odd", workspace=find_workspace())
    by_flag = load("odd.jsonl", columns=FLAG)
    assert by_name.fingerprint == by_flag.fingerprint
    assert by_name.columns == by_flag.columns
    turned = load("odd.jsonl", columns=FLAG.replace("a_wins=1,b_wins=2", "a_wins=2,b_wins=1"))
    assert turned.fingerprint != by_flag.fingerprint
    (folder / "noisescope.toml").write_text('[datasets.odd]\npath = "odd.jsonl"\ncolumns = "q"\n')
    assert command(["datasets", "odd"]) == 2
    assert 'columns must be a table of role = "column"' in capsys.readouterr().err


def test_a_run_is_written_back_by_the_columns_it_was_read_by(folder: Path, capsys: Any) -> None:
    dataset = load("odd.jsonl", columns=FLAG)
    scored_run(dataset, folder / "runs" / "odd")
    assert command(["export", "odd", "--format", "clean", "--flip-top", "0.1", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    copy = load(done["output"], columns=FLAG)
    before, after = (d.table["chosen"].to_pylist() for d in (dataset, copy))
    changed = sum(one != other for one, other in zip(before, after, strict=True))
    assert 0 < changed <= 4
    assert copy.table["prompt"].to_pylist() == dataset.table["prompt"].to_pylist()
    rows = pq.read_table(folder / "runs" / "odd" / "pairs.parquet")
    assert {"strength", "votes", "agreement", "group", "origin"} <= set(rows.column_names)


def test_a_flip_reverses_the_mapped_label(folder: Path, capsys: Any) -> None:
    arguments = ["flip", "odd.jsonl", "--rate", "1", "--columns", FLAG, "--output", "copy"]
    assert command(arguments) == 0
    assert f"--columns {FLAG}" in " ".join(capsys.readouterr().out.split())
    lines = (folder / "copy" / "odd.jsonl").read_text().splitlines()
    assert [json.loads(line)["verdict"] for line in lines[:6]] == [0, 2, 1, 0, 2, 1]


def test_ranked_answers_are_not_cleaned_row_by_row(folder: Path, capsys: Any) -> None:
    rows = [
        {"prompt": f"ask {n}", "responses": [f"{n} a", f"{n} b", f"{n} c"], "ranks": [1, 2, 3]}
        for n in range(12)
    ]
    write_lines(folder / "ranked.jsonl", rows)
    counts = {}
    for mode in ("all", "best", "adjacent"):
        assert command(["datasets", "ranked.jsonl", "--pairs", mode, "--json"]) == 0
        counts[mode] = json.loads(capsys.readouterr().out)["pairs"]
    assert counts == {"all": 36, "best": 24, "adjacent": 24}
    assert command(["datasets", "ranked.jsonl", "--pairs", "some"]) == 2
    assert "One of: all, best, adjacent" in capsys.readouterr().err
    scored_run(load("ranked.jsonl"), folder / "runs" / "ranked")
    assert command(["export", "ranked", "--format", "clean", "--drop-top", "0.1"]) == 2
    assert "several pairs" in capsys.readouterr().err
    assert command(["export", "ranked", "--format", "trl", "--output", "t.parquet"]) == 0


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("prompt", "'prompt' is not role=column"),
        ("prompt=q,prompt=one", "prompt is given twice"),
        ("question=q", "no such role: question"),
        ("prompt=absent", "no column absent for prompt"),
    ],
)
def test_wrong_mappings_are_named(flag: str, message: str, folder: Path, capsys: Any) -> None:
    assert command(["datasets", "odd.jsonl", "--columns", flag]) == 2
    assert message in capsys.readouterr().err
