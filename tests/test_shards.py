"""Shards of an audit, merged: the run one process makes, or an error that names what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
from helpers.runs import MODEL, files, manifest, score_line, the_run
from hypothesis import given
from hypothesis import strategies as st

from noisescope.auditing.merge import find_shards, merge
from noisescope.cli import run as command
from noisescope.cli.merge import merge as merge_command
from noisescope.cli.score import without_shard
from noisescope.errors import RunError, UsageError
from noisescope.models import Item
from noisescope.pairs import response_key
from noisescope.replicas.partition import Share, boundaries, shard_of
from noisescope.scoring.margins import read_margins
from noisescope.storage import cache as parts
from noisescope.storage.cache import plan_chunks

pytestmark = pytest.mark.slow


def score(runs: Path, *options: str) -> int:
    return command(score_line(runs, *options))


@pytest.fixture(scope="module", autouse=True)
def _small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "CHUNK", 700)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one`: what one process makes; `shards`: three shards of it; `disks/i`: one shard each."""
    where = tmp_path_factory.mktemp("shards")
    assert score(where / "one") == 0
    for index in (1, 2, 3):
        disk = where / "disks" / str(index)
        assert score(disk, "--shard", f"{index}/3") == 0
        shutil.copytree(disk, where / "shards", dirs_exist_ok=True)
    return where


def copied(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "shards", tmp_path / "shards"))


def a_part(runs: Path) -> Path:
    return sorted(runs.glob(".cache/features/*/*.safetensors"))[1]


def test_shards_on_one_file_system_end_in_the_run_of_one_process(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = copied(place, tmp_path)
    assert len(list(runs.glob(".cache/features/*/*"))) > 6
    merge_command(shards=[str(runs)], json=True)
    assert json.loads(capsys.readouterr().out)["pairs"] == 100
    assert files(runs) == files(place / "one")
    assert manifest(runs) == manifest(place / "one")
    before = files(runs)
    merge_command(shards=[str(the_run(runs).directory)])
    assert score(runs) == 0
    assert "only verdicts are made again" in capsys.readouterr().err
    assert files(runs) == before


def test_shards_of_several_disks_are_brought_together(place: Path, tmp_path: Path) -> None:
    disks = [str(place / "disks" / str(index)) for index in (1, 2, 3)]
    merge_command(shards=disks, runs_dir=tmp_path / "all")
    assert files(tmp_path / "all") == files(place / "one")
    assert manifest(tmp_path / "all") == manifest(place / "one")


def test_shards_on_object_storage(place: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(place / "shards"), "/bucket/runs", recursive=True)
    try:
        done = merge(["memory://bucket/runs"], runs_directory=tmp_path)
    finally:
        store.rm("/bucket", recursive=True)
    assert done.summary.pairs == 100
    assert files(tmp_path) == files(place / "one")


def test_a_shard_says_what_is_left_and_what_to_type(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert score(tmp_path, "--shard", "2/3", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["shard"] == "2/3"
    assert said["computed"] == said["responses"] > 0
    assert set(said["left"]) == {"1/3", "3/3"}
    assert said["next"].endswith("--shard 1/3")
    assert not the_run(tmp_path).complete
    runs = copied(place, tmp_path)
    assert score(runs, "--shard", "2/3", "--rho", "2", "--released") == 0
    shown = capsys.readouterr()
    assert "0 computed now" in shown.out
    assert f"noisescope merge {the_run(runs).directory}" in shown.out
    assert "merge makes the verdicts: give it --rho 2.0 --released then" in shown.err


def test_missing_shards_are_named_with_their_commands(place: Path, tmp_path: Path) -> None:
    source, runs = str(place / "disks" / "2"), tmp_path / "all"
    with pytest.raises(RunError) as caught:
        merge([source], run_directory=runs / "x")
    said = str(caught.value)
    assert "shard 1/3 (" in said
    assert "shard 3/3 (" in said
    assert "shard 2/3 (" not in said
    assert "not computed" in said
    assert "--shard 1/3" in said
    assert "--shard 3/3" in said
    others = [str(place / "disks" / name) for name in "13"]
    merge([source, *others], run_directory=runs / "x")
    assert files(runs) == files(place / "one")


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in place", "copied"])
def test_a_damaged_part_is_refused_by_name(place: Path, tmp_path: Path, elsewhere: bool) -> None:
    runs = copied(place, tmp_path)
    part = a_part(runs)
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(bytes(content))
    target = tmp_path / "all" / "x" if elsewhere else None
    with pytest.raises(RunError, match=rf"{part.name} is damaged") as caught:
        merge([str(runs)], run_directory=target)
    assert "not here, or damaged" in caught.value.message
    assert "--shard" in str(caught.value.hint)


def test_a_part_of_another_model_is_refused_by_name(place: Path, tmp_path: Path) -> None:
    runs = copied(place, tmp_path)
    part = a_part(runs)
    content = part.read_bytes()
    model = part.parent.name.encode()
    part.write_bytes(content.replace(model, model[::-1]))
    with pytest.raises(RunError, match=f"{part.name} is of a different model"):
        merge([str(runs)])
    part.write_bytes(content)
    assert merge([str(runs)]).summary.pairs == 100


def test_shards_of_other_pairs_are_refused(place: Path, tmp_path: Path) -> None:
    runs = tmp_path / "fewer"
    assert score(runs, "--limit", "40", "--shard", "1/2") == 0
    with pytest.raises(RunError, match=r"different audit than .*dataset_fingerprint.* differ"):
        merge([str(place / "disks" / "1"), str(runs)], runs_directory=tmp_path / "all")
    shutil.copytree(the_run(place / "disks" / "1").directory, runs / "other")
    with pytest.raises(RunError, match="shards of several audits"):
        merge([str(runs)])
    (runs / "other" / "manifest.json").write_text("{}")
    (unfinished,) = find_shards(str(runs))
    assert unfinished.place.name != "other"


def test_pairs_that_are_not_those_of_the_plan_are_refused(place: Path, tmp_path: Path) -> None:
    runs = copied(place, tmp_path)
    run = the_run(runs)
    run.pairs_path.write_bytes(run.pairs_path.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"pairs\.parquet is damaged, or of a different dataset"):
        merge([str(runs)])
    run.pairs_path.unlink()
    with pytest.raises(RunError, match=r"no pairs\.parquet"):
        merge([str(runs)])


def test_damaged_records_are_named_and_a_damaged_plan_is_refused(
    place: Path, tmp_path: Path
) -> None:
    runs = copied(place, tmp_path)
    run = the_run(runs)
    record = run.directory / "shards" / "2-of-3.json"
    text = record.read_text()
    for broken in ("", "{}", "[]", text[:-9], text.replace('"format": 1', '"format": 2')):
        record.write_text(broken)
        (found,) = find_shards(str(runs))
        assert "2-of-3.json is damaged" in found.faults[0]
        assert len(found.records) == 2
    plan = json.loads(run.plan_path.read_text())
    assert plan.pop("checksum")
    for change in ({"model_fingerprint": "../../../etc"}, {"format": 9}, {"evidence": {}}):
        run.plan_path.write_text(json.dumps(plan | change))
        with pytest.raises(RunError, match=r"plan\.json is damaged"):
            find_shards(str(runs))


def test_where_there_are_no_shards(tmp_path: Path) -> None:
    for source in (str(tmp_path), str(tmp_path / "gone"), "memory://nothing"):
        with pytest.raises(RunError, match="no shards in"):
            merge([source])
    with pytest.raises(RunError, match="cannot be opened"):
        merge(["nowhere://x/y"])


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_shards_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match="i/n with i from 1 to n"):
        Share.parse(text)


def test_the_command_of_the_whole_audit() -> None:
    words = ["score", "x", "--shard", "2/3", "--limit", "9", "--json", "--shard=1/3"]
    assert without_shard(words) == ["score", "x", "--limit", "9"]


def items(lengths: Sequence[int]) -> list[Item]:
    made = [(f"p{n % 7}", f"{n}" + "x" * length) for n, length in enumerate(lengths)]
    return [Item(response_key(*one), one[0], None, one[1]) for one in made]


@given(st.lists(st.integers(1, 9000), max_size=60), st.integers(1, 9))
def test_shares_are_whole_chunks_and_together_everything(lengths: list[int], shares: int) -> None:
    some = items(lengths)
    sizes = np.array(lengths, np.int64)
    size = {item.key: length for item, length in zip(some, lengths, strict=True)}
    cuts = boundaries(some, sizes, shares)
    assert len(cuts) == shares - 1
    assert list(cuts) == sorted(cuts)
    chunks = []
    for share in range(shares):
        mine = [item for item in some if shard_of(item, cuts) == share]
        own = np.array([size[item.key] for item in mine], np.int64)
        chunks += list(plan_chunks(mine, own))
        assert own.sum() <= sizes.sum() / shares + parts.CHUNK + max(lengths, default=0)
    assert chunks == list(plan_chunks(some, sizes))


def test_a_run_on_object_storage_is_queried_and_nothing_beside_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(the_run(place / "one").directory), "/bucket/run", recursive=True)
    store.pipe("/bucket/other.parquet", (the_run(place / "one").scores_path).read_bytes())
    sql = (
        "SELECT count(*) AS n, count(DISTINCT replica) AS m FROM margins JOIN pairs USING(pair_id)"
    )
    try:
        capsys.readouterr()
        assert command(["query", sql, "memory://bucket/run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == [{"n": 200, "m": 2}]
        far = read_margins("memory://bucket/run")
        near = read_margins(the_run(place / "one").directory)
        assert np.array_equal(far.margins, near.margins)
        assert np.array_equal(far.held_out, near.held_out)
        with pytest.raises(RunError, match=r"has no averages/part-\*\.parquet"):
            read_margins("memory://bucket/run", folder="averages")
        assert command(["query", "memory://bucket/run"]) == 0
        assert "scores(pair_id, confidence" in capsys.readouterr().out
        for path in ("memory://bucket/other.parquet", MODEL + "/config.json"):
            sql = f"SELECT * FROM '{path}'"
            assert command(["query", sql, "memory://bucket/run"]) == 2
            assert "operations are disabled" in " ".join(capsys.readouterr().err.split())
        assert command(["query", "SELECT 1", "memory://bucket"]) == 2
        assert "not a finished run" in capsys.readouterr().err
    finally:
        store.rm("/bucket", recursive=True)
