"""Two processes of one launch (gloo): the files of one process, whole after a kill, one voice."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from helpers.ranks import Launcher
from helpers.runs import files, manifest, score_line, the_run

from noisescope.auditing.ranks import World, joined
from noisescope.storage.files import locked

pytestmark = pytest.mark.slow


def parts_of(runs: Path) -> dict[Path, int]:
    """Feature parts and when they were written."""
    found = runs.glob(".cache/features/*/*.safetensors")
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def alone(launch: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes."""
    runs = tmp_path_factory.mktemp("alone")
    assert launch(score_line(runs)) == [0]
    return runs


def test_two_ranks_write_what_one_process_does_and_one_speaks(
    launch: Launcher, alone: Path, tmp_path: Path
) -> None:
    line = score_line(tmp_path)
    assert launch(line, line) == [0, 0]
    assert files(tmp_path) == files(alone)
    assert manifest(tmp_path) == manifest(alone)
    assert "How far to trust this" in launch.said(0)
    assert launch.said(1) == ""


def test_a_killed_rank_ends_the_others_and_the_same_launch_continues(
    launch: Launcher, alone: Path, tmp_path: Path
) -> None:
    line = score_line(tmp_path)
    assert launch(line, line, dies=1) == [2, -9]
    assert "rank 0 of 2 lost the others" in launch.said(0)
    assert "Run the same launch command again" in launch.said(0)
    before = parts_of(tmp_path)
    assert 0 < len(before) < len(parts_of(alone))
    assert not the_run(tmp_path).complete
    assert launch(line) == [0]  # the number of ranks may be another one
    assert files(tmp_path) == files(alone)
    assert {path: when for path, when in parts_of(tmp_path).items() if path in before} == before
    leftovers = list(tmp_path.rglob(".partial-*"))
    assert leftovers == []


def test_the_first_rank_killed_is_noticed_by_the_others(launch: Launcher, tmp_path: Path) -> None:
    line = score_line(tmp_path)
    assert launch(line, line, dies=0) == [-9, 2]
    assert "rank 1 of 2 lost the others" in launch.said(1)


def test_a_stopped_launch_names_the_launch_not_one_process(
    launch: Launcher, tmp_path: Path
) -> None:
    line = score_line(tmp_path)
    assert launch(line, line, dies=0, by=signal.SIGINT) == [2, 2]
    assert "Stopped." in launch.said(0)
    assert "Run the same launch command again" in launch.said(0)
    assert "noisescope score" not in launch.said(0)


def test_a_rank_without_work_says_nothing_of_it(
    launch: Launcher, alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(alone / ".cache", tmp_path / ".cache")
    gone = min(parts_of(tmp_path))
    gone.unlink()
    line = score_line(tmp_path)
    assert launch(line, line) == [0, 0]  # one chunk: rank 1 computes it
    assert files(tmp_path) == files(alone)
    assert "of all 0 distinct" not in launch.said(0)


def test_an_error_of_one_rank_is_told_by_the_first_and_ends_all(
    launch: Launcher, tmp_path: Path
) -> None:
    lost = score_line(tmp_path)
    lost[1] = str(tmp_path / "gone.jsonl")
    assert launch(score_line(tmp_path), lost) == [2, 2]
    assert "error: rank 1 of 2: " in launch.said(0)
    assert "gone.jsonl" in launch.said(0)
    assert launch.said(1) == ""
    assert launch(lost, lost) == [2, 2]
    assert "rank 1" not in launch.said(0)
    assert launch.said(1) == ""


def test_ranks_with_another_model_are_refused(launch: Launcher, tmp_path: Path) -> None:
    assert launch(score_line(tmp_path), score_line(tmp_path, "--max-length", "64")) == [2, 2]
    assert "rank 1 has another model than rank 0" in launch.said(0)
    assert list(tmp_path.iterdir()) == []


def test_what_ranks_cannot_share_is_refused(launch: Launcher, tmp_path: Path) -> None:
    shard = score_line(tmp_path, "--shard", "1/2")
    assert launch(shard, shard) == [2, 2]
    assert "--shard with a launcher" in launch.said(0)
    patient = ("--checkpoints", "3", "--early-stopping", "1")
    lora = score_line(tmp_path, "--kind", "lora", *patient)
    assert launch(lora, lora) == [2, 2]
    assert "--early-stopping needs all replicas" in launch.said(0)
    assert launch.said(1) == ""


def test_two_jobs_never_share_a_run(launch: Launcher, alone: Path) -> None:
    line = score_line(alone)
    with locked(the_run(alone).directory):
        assert launch(line, line) == [2, 2]
    assert "is being written by another process" in launch.said(0)
    before = parts_of(alone)
    assert launch(line, line) == [0, 0]
    assert "only verdicts are made again" in launch.said(0)
    assert parts_of(alone) == before


def test_without_a_launcher_the_world_is_one_process() -> None:
    with joined() as world:
        assert world == World(0, 1)
        assert world.first
        assert world.exchange("a") == ["a"]
        assert world.from_first("b") == "b"
