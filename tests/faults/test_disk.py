"""Disks that are full and directories that cannot be written: said in words, nothing is lost.

The limits are real: a small file system in memory where this user may mount one, a limit on the
size of files everywhere.
"""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers.planted_run import planted_run
from helpers.toy_run import rows, scored_run, write_lines

from noisescope.cli import run as command
from noisescope.datasets import load
from noisescope.errors import RunError
from noisescope.replicas.answers import Answers
from noisescope.report.review.session import open_session
from noisescope.storage.files import TEMPORARY_PREFIX, read_sealed, write_atomic, write_sealed
from noisescope.storage.reviews import read_reviews

pytestmark = pytest.mark.slow

JOBS = {
    "flip": ["flip", "toy.jsonl", "--rate", "0.2", "--output", "PLACE/copy"],
    "export clean": ["export", "toy", "--format", "clean", "--output", "PLACE/clean"],
    "export weights": ["export", "toy", "--output", "PLACE/weights.parquet"],
    "export review": ["export", "toy", "--format", "review", "--output", "PLACE/review"],
    "query": ["query", "FROM pairs", "--format", "parquet", "--output", "PLACE/found.parquet"],
}


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """A place that holds `size` bytes: a mounted one, or (no right to mount) by RLIMIT_FSIZE."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield place
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a dataset and a finished run over it."""
    folder = tmp_path_factory.mktemp("disk")
    write_lines(folder / "toy.jsonl", rows())
    scored_run(load(folder / "toy.jsonl"), folder / "runs" / "toy-1")
    return folder


def words(name: str, place: Path) -> list[str]:
    return [word.replace("PLACE", str(place)) for word in JOBS[name]]


def contents(place: Path) -> dict[str, str]:
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    return {str(p.relative_to(place)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("name", JOBS)
def test_a_full_disk_is_said_and_leaves_nothing_half(
    work: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(work)
    before = contents(work)
    with small_disk(tmp_path / "full", 4096) as place:
        assert command(words(name, place)) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert "cannot write" in told
        assert "unexpected" not in told
        left = [path for path in place.rglob("*") if path.name.startswith(TEMPORARY_PREFIX)]
        assert left == []
    assert contents(work) == before
    (tmp_path / "free").mkdir()
    assert command(words(name, tmp_path / "free")) == 0
    assert contents(tmp_path / "free")


@pytest.mark.parametrize("name", JOBS)
def test_a_place_that_cannot_be_written_is_named(
    work: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    assert command(words(name, Path("/proc/noisescope"))) == 2  # not even root may write there
    told = " ".join(capsys.readouterr().err.split())
    assert "/proc/noisescope" in told
    assert "unexpected" not in told


def test_a_run_on_a_full_disk_stays_as_it_was(tmp_path: Path) -> None:
    run = planted_run(tmp_path / "runs", pairs=40)
    before = contents(run.directory)
    with limited(64), pytest.raises(RunError, match=r"cannot write .*manifest.json"):
        run.write_manifest(run.manifest())
    assert contents(run.directory) == before


@pytest.mark.parametrize("size", [0, 100, 4000])
def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with limited(size), pytest.raises(RunError, match="cannot write"):
        write_atomic(path, b"x" * 5000)
    with limited(size), pytest.raises(RunError, match="cannot write"):
        write_sealed(tmp_path / "file", {"a": torch.ones(5000)}, {})
    assert contents(tmp_path) == {"file": hashlib.sha256(b"before").hexdigest()}


def test_every_byte_of_sealed_tensors_counts(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.tensor(7, dtype=torch.int8)}
    path = tmp_path / "state.safetensors"
    write_sealed(path, tensors, {"step": 3})
    found, facts = read_sealed(path)
    assert facts == {"step": 3}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    content = path.read_bytes()
    del found
    harmless = 0
    for at in range(len(content)):
        for bit in (1, 8, 64):
            path.unlink()
            path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            with suppress(RunError):
                same = read_sealed(path)  # white space of the header may become another one
                assert same[1] == facts
                assert all(torch.equal(same[0][name], tensors[name]) for name in tensors)
                harmless += 1
    assert harmless < 20


def test_what_a_killed_write_left_does_not_keep_a_flip_out(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / f"{TEMPORARY_PREFIX}abc.json").write_text("{")
    assert command(words("flip", tmp_path)) == 0
    assert command(words("flip", tmp_path)) == 0
    (tmp_path / "copy" / "mine.txt").write_text("mine")
    (tmp_path / "copy" / ".flip.json").unlink()
    assert command(words("flip", tmp_path)) == 2


def test_a_judgement_is_recorded_whole_or_not_at_all(tmp_path: Path) -> None:
    run = planted_run(tmp_path / "runs", pairs=40)
    session = open_session(run, reviewer="ann", purpose="fix", count=3)
    kept = Answers(tmp_path / "answers.jsonl")
    kept.add({"key": "a", "log_odds": 1.0})
    reviews, odds = run.directory / "reviews.jsonl", tmp_path / "answers.jsonl"
    before = reviews.read_bytes(), odds.read_bytes()
    first = session.current()
    assert first is not None
    with (
        limited(len(before[0]) + 20),  # room for a part of the line
        pytest.raises(RunError, match=r"cannot write .*reviews\.jsonl"),
    ):
        session.answer(first.content_id, "first")
    with (
        limited(len(before[1]) + 5),
        pytest.raises(RunError, match=r"cannot write .*answers\.jsonl"),
    ):
        kept.add({"key": "b", "log_odds": -1.0})
    assert (reviews.read_bytes(), odds.read_bytes()) == before
    assert session.current() is first
    session.answer(first.content_id, "first")
    kept.add({"key": "b", "log_odds": -1.0})
    assert len(read_reviews(run).answers) == 1
    assert Answers(odds).odds == {"a": 1.0, "b": -1.0}


@pytest.mark.parametrize("name", ["review", "apply"])
def test_judgements_that_cannot_be_recorded_are_refused(
    name: str, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)
    run = work / "runs" / "toy-1"
    (pair_id, *_) = pq.read_table(run / "pairs.parquet")["pair_id"].to_pylist()
    (work / "file.csv").write_text(f"pair_id,decision\n{pair_id},flip\n")
    before = contents(run)
    lines = {
        "review": ["review", str(run), "--import", "file.csv"],
        "apply": ["apply", "file.csv", str(run), "--record-only"],
    }
    with limited(0):
        assert command(lines[name]) == 2
    assert "cannot write" in " ".join(capsys.readouterr().err.split())
    empty = hashlib.sha256(b"").hexdigest()
    after = {name: sha for name, sha in contents(run).items() if sha != empty}
    assert after.items() <= before.items()
