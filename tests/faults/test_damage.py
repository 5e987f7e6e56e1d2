"""Files cut short and bits turned over: every damage is named, and mended or refused.

Feature parts that are cut, empty or flipped are computed again in test_features.py, encodings in
test_diffusion_encodings.py; here every byte of a part is turned over in turn.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers.adapters import adapter
from helpers.lora import LORA, evidence_bytes, tiny_place
from helpers.lora import command as typed
from helpers.planted_run import planted_run

from noisescope.cli import run as command
from noisescope.errors import ModelError, RunError
from noisescope.scoring.margins import read_margins
from noisescope.storage.cache import Chunk, open_chunk, serialise
from noisescope.storage.run import Run, find_run
from noisescope.training.lora.peft_files import ADAPTER_WEIGHTS, read_peft

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
FILES = ["pairs.parquet", "margins/part-0.parquet", "scores.parquet"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_place(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return planted_run(tmp_path_factory.mktemp("faults"), pairs=80)


@pytest.fixture
def run(whole: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(whole.directory, tmp_path / "run")))


def damages(content: bytes, flips: int) -> Iterator[bytes]:
    """`content` cut short in three places, and with one bit turned over in `flips` others."""
    for end in (0, len(content) // 2, len(content) - 1):
        yield content[:end]
    draw = random.Random(0)
    for _ in range(flips):
        at = draw.randrange(len(content))
        yield content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_finished_run_is_refused_by_name(run: Run, name: str) -> None:
    path = run.directory / name
    content = path.read_bytes()
    for damaged in damages(content, 40):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=f"damaged since it was written: {name}") as caught:
            find_run(str(run.directory), run.directory)
        assert "noisescope score" in str(caught.value)
    path.write_bytes(content)
    assert find_run(str(run.directory), run.directory) == run


def test_margins_that_are_gone_are_missed(run: Run) -> None:
    run.margin_parts()[0].unlink()
    with pytest.raises(RunError, match=r"part-0.parquet \(gone\)"):
        find_run(str(run.directory), run.directory)


@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
def test_a_damaged_manifest_or_plan_is_never_believed(run: Run, name: str) -> None:
    path = run.directory / name
    read = run.manifest if name == "manifest.json" else run.plan
    content, stated = path.read_bytes(), read()
    refused = 0
    for damaged in damages(content.rstrip(), 300):
        path.write_bytes(damaged)
        try:
            found = read()
        except RunError as error:
            refused += path.name in str(error) or "format" in str(error)
            continue
        assert {key: found[key] for key in stated} == stated
    assert refused > 290


@pytest.mark.parametrize("name", ["pairs.parquet", "margins/part-0.parquet"])
def test_evidence_without_a_manifest_yet_is_refused_where_it_does_not_decode(
    run: Run, name: str
) -> None:
    path = run.directory / name
    content = path.read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(RunError, match=path.name):
            read_margins(run.directory)


def test_score_makes_damaged_files_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = SAMPLES / "models" / "tiny-lm"
    score = ["score", str(SAMPLES / "hh-rlhf"), "--model", str(model), "--limit", "120"]
    assert command(score) == 0
    run = find_run(None, tmp_path / "runs")
    files = ["pairs.parquet", "scores.parquet", *run.evidence_files()]
    before = {name: (run.directory / name).read_bytes() for name in files}
    for name, content in before.items():
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
        (run.directory / name).write_bytes(flipped)
    capsys.readouterr()
    for table in ("pairs", "scores", "margins"):
        assert command(["query", f"SELECT count(*) FROM {table}"]) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"damaged since it was written: {table}" in told
    assert command(["query", "WITH s AS (SELECT 1 FROM scores) SELECT count(*) FROM s"]) == 2
    assert command(["report"]) == 2
    capsys.readouterr()
    assert command(score) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert all(f"{Path(name).name} is damaged" in told for name in files)
    assert {name: (run.directory / name).read_bytes() for name in files} == before


def test_every_byte_of_a_cache_part_counts(tmp_path: Path) -> None:
    groups = {"mid": np.arange(6, dtype=np.float32).reshape(3, 2), "top": np.ones((3, 1))}
    content = serialise(["a1", "b2", "c3"], groups)
    path = tmp_path / "part.safetensors"
    path.write_bytes(content)
    assert open_chunk(path) == Chunk(path, ("a1", "b2", "c3"))
    for at in range(len(content)):
        for bit in (1, 4, 32):
            path.unlink()  # so that the file is another one, whatever the clock's resolution
            path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            found = open_chunk(path)
            if isinstance(found, Chunk):  # only a key's own name went, and what it keys is whole
                names = {content.find(name) for name in (b"labels", b"format")}
                assert any(0 <= at - start < len(b"labels") for start in names)
                assert found.keys == ("a1", "b2", "c3")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks it
def test_damaged_adapters_are_refused(tmp_path: Path) -> None:
    adapter(tmp_path / "one")
    path = tmp_path / "one" / ADAPTER_WEIGHTS
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for cut in (0, 4, header // 2, header, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ModelError, match=ADAPTER_WEIGHTS):
            read_peft(tmp_path / "one")
    for damaged in damages(content[:header], 60):
        path.write_bytes(damaged + content[header:])
        with suppress(ModelError):  # some flips only rename what is then refused, or metadata
            read_peft(tmp_path / "one")


def test_the_latest_run_is_the_last_one_finished_whatever_the_clock_says(tmp_path: Path) -> None:
    first = planted_run(tmp_path, pairs=12)
    second = Run(Path(shutil.copytree(first.directory, tmp_path / "second")))
    second.write_manifest(second.manifest())
    for run, moment in ((first, 4e9), (second, 1.0)):
        for path in (*run.directory.rglob("*"), run.directory):
            os.utime(path, (moment, moment))
    assert find_run(None, tmp_path) == second
    first.write_manifest(first.manifest())
    os.utime(first.manifest_path, (0.0, 0.0))
    assert find_run(None, tmp_path) == first


def test_a_change_is_seen_though_its_time_was_set_back(run: Run) -> None:
    path = run.scores_path
    about, content = path.stat(), path.read_bytes()
    assert find_run(str(run.directory), run.directory) == run
    with path.open("r+b") as stream:  # the same file, of the same size
        stream.write(bytes([content[0] ^ 1]))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(RunError, match=r"damaged since it was written: scores.parquet"):
        find_run(str(run.directory), run.directory)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks it
def test_damaged_adapters_of_a_run_are_named_and_made_again_without_training(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = typed("fine-tune", place, *LORA, "--steps", "3", "--ema")
    assert command(line) == 0
    (manifest,) = tmp_path.glob("runs/*/manifest.json")
    run = Run(manifest.parent)
    before, margins = evidence_bytes(run.directory), run.margin_parts()[0].stat().st_mtime_ns
    assert sum("adapter_" in name for name in run.evidence_manifest()["checksums"]) == 2 * 3 * 2
    for name in ("replicas/0/adapter_model.safetensors", "replicas/1/ema-0.5/adapter_config.json"):
        path = run.directory / name
        for damaged in damages(before[name], 6):
            path.write_bytes(damaged)
            with pytest.raises(RunError, match=f"damaged since it was written: .*{name}"):
                find_run(str(run.directory), run.directory)
            capsys.readouterr()
            assert command(typed("score", place, "--from-adapters", str(path.parent))) == 2
            assert "damaged since it was written" in " ".join(capsys.readouterr().err.split())
    assert command(line) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "replicas/0/adapter_model.safetensors is damaged: making it again" in told
    assert evidence_bytes(run.directory) == before
    assert run.margin_parts()[0].stat().st_mtime_ns == margins
    assert find_run(str(run.directory), run.directory) == run
    path.unlink()
    with pytest.raises(RunError, match=rf"damaged since it was written: {name} \(gone\)") as gone:
        find_run(str(run.directory), run.directory)
    assert "command of this run again" in str(gone.value.hint)
    assert command(line) == 0
    assert evidence_bytes(run.directory) == before
    path.write_bytes(b"damaged")
    assert run.drop_damaged() == [name]  # and killed before it is made again
    assert command(line) == 0
    assert evidence_bytes(run.directory) == before
