"""noisescope export: every format from the command line, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.toy_run import PAIRS, rows, scored_run, toy, write_lines

from noisescope.cli import run as command
from noisescope.datasets import load
from noisescope.errors import NoisescopeError
from noisescope.scoring.run_scores import find_run_scores


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
    assert command(["export", "toy", "--output", "w.parquet"]) == 0
    assert "toy.jsonl --objective dpo --weights w.parquet" in capsys.readouterr().out


def test_a_dataset_that_is_not_found_from_here_names_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "home" / "data" / "pairs").mkdir(parents=True)
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    write_lines(Path("data/pairs/toy.jsonl"), rows())
    scored_run(load("data/pairs/toy.jsonl"), tmp_path / "runs" / "file")
    scored_run(load("data/pairs"), tmp_path / "runs" / "folder")
    monkeypatch.chdir(tmp_path / "away")
    for name in ("file", "folder"):  # the folder could also be the name of a Hub dataset
        run = str(tmp_path / "runs" / name)
        assert command(["export", run, "--format", "clean", "-o", name]) == 2
        message = " ".join(capsys.readouterr().err.split())
        assert f"noisescope export {run} --format clean --source PATH" in message
        assert not Path(name).exists()
        source = str(tmp_path / "home" / "data" / "pairs")
        typed = ["export", run, "--format", "clean", "-o", name, "--source", source]
        assert command(typed) == 0
        assert (tmp_path / "away" / name / "toy.jsonl").is_file()


def test_the_share_of_reviews_is_limited_and_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    scored = toy(tmp_path)
    monkeypatch.chdir(tmp_path)
    pairs = pq.read_table(scored.run.pairs_path).column("pair_id").to_pylist()
    write_lines(Path("all.jsonl"), [{"pair_id": p, "mislabelled": "yes"} for p in pairs])
    assert command(["review", "toy", "--import", "all.jsonl"]) == 0
    capsys.readouterr()
    for format in ("clean", "trl"):
        assert command(["export", "toy", "--format", format]) == 2
        message = " ".join(capsys.readouterr().err.split())
        assert "this would change 100.0% of 120 pairs, more than --most 0.3" in message
        assert "120 of these 120 changes are from reviews" in message
        assert command(["export", "toy", "--format", format, "--force"]) == 0
        assert "120 labels that reviewers found wrong were flipped" in capsys.readouterr().out


def test_scores_without_a_verdict_need_force(tmp_path: Path) -> None:
    path = tmp_path / "toy.jsonl"
    write_lines(path, rows())
    scored_run(load(path), tmp_path / "runs" / "x", good=False)
    with pytest.raises(NoisescopeError, match="chance"):
        find_run_scores("x", tmp_path / "runs")
    assert len(find_run_scores("x", tmp_path / "runs", force=True)) == PAIRS


@pytest.mark.parametrize("identifiable", [True, False])
def test_a_clean_copy_states_how_many_changes_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, identifiable: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    same = rows()[0] | {"rejected": rows()[0]["chosen"]}
    write_lines(Path("toy.jsonl"), [*rows(), same])
    run = scored_run(load("toy.jsonl"), Path("runs") / "toy-1").run
    manifest = run.manifest()
    manifest["summary"]["flip_rate"]["identifiable"] = identifiable
    run.write_manifest(manifest)
    line = ["export", "toy", "--format", "clean", "--drop-top", "0.1"]
    assert command(line) == 0
    shown = capsys.readouterr().out
    wrong = pq.read_table(run.scores_path, columns=["p_wrong", "rank"]).to_pylist()
    expected = sum(row["p_wrong"] for row in wrong if row["rank"] <= PAIRS // 10)
    assert 0 < expected < PAIRS // 10
    assert f"of the 12 about {expected:,.0f} are expected to be wrong (the sum of p_wrong" in shown
    assert ("not identifiable" in shown) != identifiable
    assert "copied unchanged, as they are no pairs to judge: 1 identical side" in shown
    assert command([*line, "-o", "again", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["expected_wrong"] == pytest.approx(expected)
    assert sum(found["unchanged_rows"].values()) == 1


def test_who_is_acted_on_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    run = toy(tmp_path).run
    manifest = run.manifest()
    one = {"labels": 13, "flip_rate": 0.7, "low": 0.55, "high": 0.8}
    worst = [one | {"name": "a6", "label": "votes backwards"}]
    people = {"kind": "annotator", "worst": worst, "others": {"count": 8, "flip_rate": 0.1}}
    run.write_manifest(manifest | {"summary": manifest["summary"] | {"annotators": people}})
    line = ["export", "--format", "clean", "--annotators"]
    assert command([*line, "drop", "-o", "dropped"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "a6 13 70% 55% to 80% votes backwards dropped" in shown
    assert "107 keep, 13 drop, 0 flip" in shown
    assert command([*line, "drop", "-o", "again", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["annotators"][0]["name"] == "a6"
    assert command([*line, "review"]) == 2
    assert "--format review --annotators review" in " ".join(capsys.readouterr().err.split())
    assert command(["export", "--format", "review", "--annotators", "review", "-o", "q"]) == 0
    assert "queued" in capsys.readouterr().out
    assert command(["export", "--annotators", "drop"]) == 2
    assert "takes no --annotators" in capsys.readouterr().err
