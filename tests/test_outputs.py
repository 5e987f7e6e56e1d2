"""Where results go: never through a link, never beside another process, never with a secret."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
from helpers.planted_run import planted_run
from helpers.toy_run import rows, scored_run, write_lines

from noisescope.auditing.audit import Origin
from noisescope.auditing.shards import Record, read_record
from noisescope.cli import run as command
from noisescope.cli.console import print_lines
from noisescope.cli.doctor import examine
from noisescope.datasets import load, open_source
from noisescope.datasets.flip.copy import plant
from noisescope.datasets.flip.plan import FlipPlan
from noisescope.errors import RunError
from noisescope.evaluate.directory import open_directory
from noisescope.replicas.partition import Share
from noisescope.storage.files import LOCK, TEMPORARY_PREFIX
from noisescope.storage.redact import masked, without_secrets
from noisescope.training.policy.output import TrainPlan, open_trained

TRAINING = TrainPlan("toy", "d" * 20, "tiny", "m" * 20, "text", "none", "", {"beta": 0.1})
HUB = "hf_" + "aB3" * 11
COMMANDS = {
    "flip": ["flip", "toy.jsonl", "--output", "PLACE"],
    "export clean": ["export", "toy", "--format", "clean", "--output", "PLACE"],
    "export review": ["export", "toy", "--format", "review", "--output", "PLACE"],
    "export weights": ["export", "toy", "--output", "PLACE.parquet"],
    "report": ["report", "toy-1", "--output", "PLACE.html"],
    "query": ["query", "FROM pairs", "--format", "csv", "--output", "PLACE.csv"],
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a dataset and a finished run over it."""
    folder = tmp_path_factory.mktemp("outputs")
    write_lines(folder / "toy.jsonl", rows())
    scored_run(load(folder / "toy.jsonl"), folder / "runs" / "toy-1")
    return folder


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on both streams."""
    shown = capsys.readouterr()
    return " ".join((shown.out + shown.err).split())


# Links


#: Where a link leads; the page of a report is made before its place is looked at.
LEADS = [(name, lead) for name in COMMANDS for lead in ("a file", "a directory", "nowhere")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lead"), [case for case in LEADS if case[0] != "report" or case[1] == "a file"]
)
def test_no_command_writes_through_a_link_or_in_its_place(
    work: Path,
    tmp_path: Path,
    name: str,
    lead: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(work)
    words = [word.replace("PLACE", str(tmp_path / "out")) for word in COMMANDS[name]]
    (tmp_path / "a directory").mkdir()
    (tmp_path / "a file").write_text("mine")
    link = Path(words[-1])
    link.symlink_to(tmp_path / lead)
    assert command(words) == 2
    assert f"{link} is a symbolic link" in told(capsys)
    assert link.is_symlink()
    assert (tmp_path / "a file").read_text() == "mine"
    assert list((tmp_path / "a directory").iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


def test_nor_do_trainings_and_evaluations(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "mine")
    with pytest.raises(RunError, match="is a symbolic link"):
        open_trained(TRAINING, tmp_path / "out").__enter__()
    with pytest.raises(RunError, match="is a symbolic link"):
        open_directory(cast(Any, None), tmp_path / "out")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_flip_follows_no_link_inside_its_copy(work: Path, tmp_path: Path) -> None:
    source, plan, copy = open_source(work / "toy.jsonl"), FlipPlan(0.2), tmp_path / "copy"
    plant(source, plan, copy)
    (tmp_path / "mine").write_text("mine")
    for name in (LOCK, "toy.jsonl"):
        (copy / name).unlink()
        (copy / name).symlink_to(tmp_path / "mine")
        with pytest.raises(RunError, match=rf"{name} is a symbolic link"):
            plant(source, plan, copy)
        (copy / name).unlink()
    assert (tmp_path / "mine").read_text() == "mine"


# Two at once, and what killed ones leave


def test_a_second_flip_into_the_same_place_is_refused(work: Path, tmp_path: Path) -> None:
    source, plan, copy = open_source(work / "toy.jsonl"), FlipPlan(0.2), tmp_path / "copy"
    done = plant(source, plan, copy)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with (copy / LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as another process would hold it
        other.write("4711")
        other.flush()
        with pytest.raises(RunError, match=r"another process \(4711\)") as refused:
            plant(source, plan, copy)
        assert "--output" in str(refused.value.hint)
    assert plant(source, plan, copy) == done
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_the_next_flip_takes_away_what_a_killed_one_left(work: Path, tmp_path: Path) -> None:
    source, plan, copy = open_source(work / "toy.jsonl"), FlipPlan(0.2), tmp_path / "copy"
    copy.mkdir()
    (copy / f"{TEMPORARY_PREFIX}abc.jsonl").write_text('{"prompt": "half a')
    plant(source, plan, copy)
    assert [path for path in copy.iterdir() if path.name.startswith(TEMPORARY_PREFIX)] == []
    (copy / f"{TEMPORARY_PREFIX}abc.jsonl").write_text('{"prompt": "half a')
    assert len(load(copy).table) == len(rows())  # no row of it is read
    (other := tmp_path / "other").mkdir()
    (other / "mine.txt").write_text("mine")
    (other / f"{TEMPORARY_PREFIX}not-ours").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        plant(source, plan, other)
    assert (other / f"{TEMPORARY_PREFIX}not-ours").exists()
    assert len(list(other.iterdir())) == 2  # no lock is left in it either
    (other / "link").symlink_to(tmp_path)
    with pytest.raises(RunError, match="not empty"):  # none of whose links is its business
        plant(source, plan, other)


def test_a_finished_training_loses_what_only_resuming_needed(tmp_path: Path) -> None:
    """A kill between the manifest and the removal of these left them for good."""
    with open_trained(TRAINING, tmp_path / "tuned") as trained:
        trained.reference.mkdir()
        (trained.reference / "part.safetensors").write_bytes(b"x")
        (trained.directory / f"{TEMPORARY_PREFIX}abc").write_bytes(b"x")
        (trained.directory / "manifest.json").write_text("{}")
    with open_trained(TRAINING, tmp_path / "tuned") as again:
        assert again.complete
    assert sorted(path.name for path in again.directory.iterdir()) == ["manifest.json", "plan.json"]


def test_the_doctor_counts_interrupted_writes(tmp_path: Path) -> None:
    def found() -> str:
        return {finding.name: finding.value for finding in examine(tmp_path)}["interrupted writes"]

    assert found() == "none"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / f"{TEMPORARY_PREFIX}b.parquet").write_bytes(b"x")
    assert found().startswith("1 temporary files, such as ")


# Places without the right to write


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_read_only_run_is_enough_for_what_only_reads(
    work: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(work)
    words = [word.replace("PLACE", str(tmp_path / "out")) for word in COMMANDS[name]]
    run = work / "runs" / "toy-1"
    modes = {path: path.stat().st_mode for path in (run, *run.rglob("*"))}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        assert command(words) == 0, told(capsys)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


# Secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://AKID:s3cr3t@bucket/runs", "s3://***@bucket/runs"),
        ("s3://AKID:p@ss@bucket/runs me@here", "s3://***@bucket/runs me@here"),
        ("https://t0k3n@host/x.parquet: no", "https://***@host/x.parquet: no"),
        ("https://h/x?a=1&X-Amz-Signature=ab12&b=2", "https://h/x?a=1&X-Amz-Signature=***&b=2"),
        ("https://h/x?sv=1&sig=ab%2B12", "https://h/x?sv=1&sig=***"),
        (f"401 for {HUB}.", "401 for ***."),
        ("key sk-abcdefghijklmnop1234", "key ***"),
        ("abfs://container@account.net/x", "abfs://container@account.net/x"),
        ("hf://datasets/me/data@main/x", "hf://datasets/me/data@main/x"),
        ("mail me@example.org", "mail me@example.org"),
        ("the secret is out", "the secret is out"),
    ],
)
def test_secrets_are_known_by_their_looks(text: str, shown: str) -> None:
    assert masked(text, {}) == shown
    assert masked(masked(text, {}), {}) == shown


def test_secrets_of_the_environment_are_known_by_its_names() -> None:
    told = "wandb: invalid key 0123456789abcdef for short"
    assert masked(told, {"WANDB_API_KEY": "0123456789abcdef"}) == "wandb: invalid key *** for short"
    assert masked(told, {"AWS_SECRET_ACCESS_KEY": "short", "HOME": "0123456789abcdef"}) == told
    beginning = {"A_TOKEN": "0123456789", "WANDB_API_KEY": "0123456789abcdef"}
    assert masked(told, beginning) == "wandb: invalid key *** for short"


@pytest.mark.parametrize(
    "words",
    [
        ["merge", "s3x://AKID:pl4nt3d@bucket/runs"],
        ["query", "SELECT 1", "s3x://AKID:pl4nt3d@bucket/run"],
        ["query", "SELECT 1", "memory://no/run?token=pl4nt3d"],
        ["score", "https://me:pl4nt3d@host/data.jsonl", "--model", "tiny"],
        ["flip", "https://host/data.jsonl?sig=pl4nt3d"],
        ["export", f"{HUB}pl4nt3d"],
        ["score", "env-pl4nt3d-env"],
    ],
)
def test_no_command_shows_a_secret(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "env-pl4nt3d-env")
    monkeypatch.setenv("WANDB_API_KEY", "pl4nt3d-in-wandb")
    assert command(words) == 2
    said = told(capsys)
    assert "***" in said
    assert "pl4nt3d" not in said


def test_a_traceback_shows_no_secret(tmp_path: Path) -> None:
    words = ["--debug", "merge", "s3x://AKID:pl4nt3d@bucket/runs"]
    line = [sys.executable, "-m", "noisescope", *words]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert "s3x://***@bucket/runs cannot be opened" in done.stderr
    assert "pl4nt3d" not in done.stderr + done.stdout


def test_what_to_type_next_shows_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines(next="noisescope query s3://AKID:pl4nt3d@bucket/runs/toy-1")
    assert told(capsys) == "next noisescope query s3://***@bucket/runs/toy-1"


def test_a_manifest_keeps_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "env-pl4nt3d-env")
    typed = f"noisescope score s3://AKID:pl4nt3d@bucket/x --model {HUB} env-pl4nt3d-env"
    run = planted_run(tmp_path / "runs", pairs=12)
    run.write_manifest(run.manifest() | {"command": typed})
    shown = "noisescope score s3://***@bucket/x --model *** ***"
    assert run.manifest()["command"] == shown
    assert without_secrets({"command": typed, "seed": 1}) == {"command": shown, "seed": 1}
    assert without_secrets({"command": None}) == {"command": None}
    record = Record("p" * 20, Share(1, 2), ("c",), Origin("x", "trl", {}, None, typed))
    assert "pl4nt3d" not in record.text()
    assert read_record(Path(record.name), record.text()).origin.command == shown
    for path in run.directory.iterdir():
        assert path.is_dir() or b"pl4nt3d" not in path.read_bytes()


@pytest.mark.parametrize("name", ["report", "gate", "export"])
def test_scores_of_an_older_version_are_refused_by_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planted_run(tmp_path / "run")
    scores = pq.read_table(run.scores_path)
    manifest = run.manifest()
    pq.write_table(scores.drop_columns(["p_wrong"]), run.scores_path)
    run.write_manifest(manifest)
    assert command([name, str(run.directory)]) == 2
    assert "was written by an older version: no p_wrong" in capsys.readouterr().err
