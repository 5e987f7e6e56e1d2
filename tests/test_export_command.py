"""noisescope export: every format from the command line, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.toy_run import PAIRS, rows, scored_run, toy, write_lines

from noisescope.cli import run as command
from noisescope.datasets import load
from noisescope.errors import NoisescopeError
from noisescope.export.run_scores import find_run_scores


def test_the_command_writes_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    toy(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for arguments in (
        ["--format", "weights"],
        ["toy", "--format", "trl", "--weight", "p_flip"],
        ["toy", "--format", "clean", "--drop-top", "0.1"],
        ["--format", "review", "--count", "5"],
        ["--format", "hub", "--repo-id", "a/b", "--dry-run"],
    ):
        assert command(["export", *arguments, "--json"]) == 0
        done = json.loads(capsys.readouterr().out)
        assert Path(done["output"]).exists()
    assert command(["export", "--format", "clean", "--drop-above", "0"]) == 2
    assert "--force" in capsys.readouterr().err
    assert command(["export", "--count", "5"]) == 2
    assert "takes no --count" in capsys.readouterr().err
    assert command(["export", "nothing-here"]) == 2
    assert command(["export", "toy.jsonl"]) == 0  # the dataset's path names its run
    assert capsys.readouterr().out.startswith("120 pairs")
    assert command(["export", "toy", "--weight", "margin", "--output", "m.parquet"]) == 0
    following = capsys.readouterr().out
    assert "toy.jsonl --objective distilled-dpo --weights m.parquet --model /a/tiny" in following


def test_scores_without_a_verdict_need_force(tmp_path: Path) -> None:
    path = tmp_path / "toy.jsonl"
    write_lines(path, rows())
    scored_run(load(path), tmp_path / "runs" / "x", good=False)
    with pytest.raises(NoisescopeError, match="chance"):
        find_run_scores("x", tmp_path / "runs")
    assert len(find_run_scores("x", tmp_path / "runs", force=True)) == PAIRS
