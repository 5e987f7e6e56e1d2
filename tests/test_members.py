"""LoRA replicas trained apart, by ranks and shards: the run of one process, or what lacks by name.

Adapters of others, scored in shares, stand here too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import fsspec
import numpy as np
import pytest
from helpers.lora import CONFIG, TinyPolicy, pairs, read
from helpers.ranks import Launcher
from helpers.runs import manifest, the_run
from helpers.tiny_diffusion import pairs_table, pictures
from helpers.tiny_diffusion import save as save_pipeline
from helpers.tiny_models import save, tiny_llama, tiny_tokenizer

from noisescope.auditing.audit import fine_tune
from noisescope.auditing.merge import merge
from noisescope.auditing.shards import compute_shard
from noisescope.cli import run as command
from noisescope.datasets import load
from noisescope.datasets.images import StoredImages
from noisescope.errors import RunError
from noisescope.models.diffusion import DiffusionPolicy
from noisescope.models.load import load_policy
from noisescope.pairs import Facts, PreferenceDataset, dataset_fingerprint
from noisescope.progress import Silent
from noisescope.replicas import gather_lora as gathering_lora
from noisescope.replicas.gather import EvidenceConfig
from noisescope.replicas.lora_text import train_lora
from noisescope.replicas.partition import Share
from noisescope.replicas.standalone import DONE, FOLDER, conclude, member_directory, read_member
from noisescope.scoring.margins import read_margins
from noisescope.storage import cache as parts
from noisescope.storage.remote import place_of
from noisescope.storage.run import Run
from noisescope.training.state import STATE_FILE

#: PEFT asks transformers a deprecated question when it wraps a model.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

LORA = ("--kind", "lora", "--replicas", "3", "--lora-r", "2", "--layers", "top-2", "--ema")
STEPS, CHECKPOINTS = 6, 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny model and 60 pairs."""
    where = tmp_path_factory.mktemp("members")
    save(where / "model", tiny_llama(), tiny_tokenizer())
    rows = pairs(60).select(["prompt", "chosen", "rejected", "pair_id"]).to_pylist()
    (where / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where


def words(name: str, place: Path, runs: Path, *options: str) -> list[str]:
    data, model = str(place / "pairs.jsonl"), str(place / "model")
    return [name, data, "--model", model, "--dtype", "float32", "--runs-dir", str(runs), *options]


def line(place: Path, runs: Path, *options: str) -> list[str]:
    steps = ("--steps", str(STEPS), "--checkpoints", str(CHECKPOINTS))
    return words("score" if options else "fine-tune", place, runs, *LORA, *steps, *options)


def evidence(runs: Path) -> dict[str, bytes]:
    """Every file of the one run under `runs` that one process writes, by name."""
    where = the_run(runs).directory
    paths = [path for path in where.rglob("*.*") if path.is_file()]
    found = {path.relative_to(where).as_posix(): path.read_bytes() for path in paths}
    kept = ("pairs.", "margins/", "averages/", "replicas/")
    return {
        name: content
        for name, content in found.items()
        if name.startswith(kept) and "state" not in name
    }


@pytest.fixture(scope="module", autouse=True)
def _small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "CHUNK", 700)
        yield


@pytest.fixture(scope="module")
def disks(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`disks/i`: one shard of two each."""
    where = tmp_path_factory.mktemp("disks")
    for index in (1, 2):
        assert command(line(place, where / str(index), "--shard", f"{index}/2")) == 0
    return where


@pytest.fixture(scope="module")
def merged(disks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that they make together."""
    runs = tmp_path_factory.mktemp("merged")
    merge([str(disks / index) for index in "12"], runs_directory=runs)
    return runs


def both(disks: Path, tmp_path: Path) -> Path:
    """Both shards in one directory of runs."""
    for index in "12":
        shutil.copytree(disks / index, tmp_path / "runs", dirs_exist_ok=True)
    return tmp_path / "runs"


def test_ranks_and_shards_train_the_same_and_one_process_to_rounding(
    launch: Launcher, place: Path, merged: Path, tmp_path: Path
) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    typed = line(place, two)
    assert launch(typed, typed) == [0, 0], launch.said(0)
    found = evidence(two)
    assert len(found) == 1 + CHECKPOINTS * 2 + 3 * 3 * 2
    assert found == evidence(merged)
    assert "3 of 3 replicas to compute over 2 ranks" in launch.said(0)
    assert launch.said(1) == ""
    (the_run(two).margins_directory / f"part-{STEPS:06d}.parquet").unlink()
    assert launch(typed) == [0]  # what is put together is made again without training
    assert evidence(two) == found
    assert "estimate" not in launch.said(0)

    assert launch(line(place, one)) == [0]
    assert evidence(one).keys() == found.keys()
    ours, theirs = (the_run(runs).evidence_manifest()["training"] for runs in (two, one))
    losses = [made.pop("held_out_loss") for made in (ours, theirs)]
    assert ours == theirs
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert not (the_run(one).directory / FOLDER).exists()
    for folder in ("margins", "averages"):
        wholes = [read_margins(the_run(runs).directory, folder=folder) for runs in (one, two)]
        difference = np.abs(wholes[0].margins - wholes[1].margins).max()
        assert difference < 1e-4 * np.sqrt((wholes[0].margins ** 2).mean())
        assert (wholes[0].held_out == wholes[1].held_out).all()


@pytest.mark.parametrize(("dies", "codes"), [(1, [2, -9]), (0, [-9, 2])])
def test_a_killed_rank_and_the_rest_with_another_number_of_ranks(
    launch: Launcher, place: Path, merged: Path, tmp_path: Path, dies: int, codes: list[int]
) -> None:
    typed = line(place, tmp_path)
    a_replica = 5 + STEPS  # batches that the estimate looks at, and those of its training
    after = a_replica + 8 if dies == 0 else 8  # rank 0 has two replicas, rank 1 has one
    assert launch(typed, typed, dies=dies, after=after) == codes
    assert "lost the others" in launch.said(1 - dies)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"*/{FOLDER}/*/{DONE}")}
    lost = 2 if dies == 0 else 1
    assert {path.parent.name for path in before} == {"0", "1", "2"} - {str(lost)}
    assert not the_run(tmp_path).complete
    again = [typed] * (1 if dies else 4)  # more than there are replicas
    assert launch(*again) == [0] * len(again), launch.said(0)
    assert evidence(tmp_path) == evidence(merged)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert list(tmp_path.rglob(".partial-*")) == []
    assert list(tmp_path.rglob("state.*")) == []


def test_shards_on_object_storage_and_disks(
    disks: Path, merged: Path, place: Path, tmp_path: Path
) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(disks / "2"), "/bucket/runs", recursive=True)
    try:
        merge([str(disks / "1"), "memory://bucket/runs"], runs_directory=tmp_path / "all")
    finally:
        store.rm("/bucket", recursive=True)
    assert evidence(tmp_path / "all") == evidence(merged)
    runs = both(disks, tmp_path)
    assert (the_run(runs).directory / "trunk").is_dir()
    merge([str(runs)])
    assert evidence(runs) == evidence(merged)
    assert not (the_run(runs).directory / "trunk").is_dir()
    assert command(line(place, runs, "--json")) in (0, 2)  # nothing is trained again
    assert evidence(runs) == evidence(merged)


def test_a_shard_says_what_is_left(
    disks: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Path(shutil.copytree(disks / "1", tmp_path / "runs"))
    assert command(line(place, runs, "--shard", "1/2", "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["replicas"], said["computed"], said["left"]) == (2, 0, {"2/2": 1})
    assert said["next"].endswith("--shard 2/2")
    assert command(line(place, runs, "--shard", "4/4")) == 0
    assert "there is less work than shards" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"1 of 3 replicas are missing: shard 2/4 \(replica 1, not"):
        merge([str(runs)])


def test_missing_and_damaged_replicas_are_named_with_their_commands(
    disks: Path, merged: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RunError, match="1 of 3 replicas are missing") as caught:
        merge([str(disks / "1")], run_directory=tmp_path / "x" / "run")
    assert "--shard 2/2" in str(caught.value)
    runs = both(disks, tmp_path)
    spoilt = member_directory(the_run(runs), 1) / "replicas" / "1" / "adapter_model.safetensors"
    content = spoilt.read_bytes()
    for damage in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        spoilt.write_bytes(damage)
        for target in (None, tmp_path / "y" / "run"):
            with pytest.raises(RunError, match=r"adapter_model.safetensors is damaged") as caught:
                merge([str(runs)], run_directory=target)
            assert "replica 1, not here, or damaged" in caught.value.message
    spoilt.unlink()
    with pytest.raises(RunError, match=r"adapter_model\.safetensors is gone"):
        merge([str(runs)])
    with pytest.MonkeyPatch.context() as killed:  # before the state of a whole replica was removed
        killed.setattr(gathering_lora, "STATE_FILE", "nothing")
        assert command(line(place, runs, "--shard", "2/2")) == 0
    assert (spoilt.parents[1] / STATE_FILE).is_file()
    spoilt.write_bytes(content[:-1])
    assert command(line(place, runs, "--shard", "2/2")) == 0
    assert "training that replica again" in " ".join(capsys.readouterr().err.split())
    merge([str(runs)])
    assert evidence(runs) == evidence(merged)


def test_records_that_cannot_be_believed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    where = member_directory(run, 3)
    (where / "margins").mkdir(parents=True)
    (where / "margins" / "part-000002.parquet").write_bytes(b"PAR1")
    (where / "margins" / "other.txt").write_bytes(b"x")
    conclude(where, "plan", 3, {"steps": 2})
    place = place_of(str(where))
    sound = read_member(place, "plan", 3)
    assert not isinstance(sound, str | None)
    assert list(sound.files) == ["margins/part-000002.parquet"]
    assert "another audit" in str(read_member(place, "other", 3))
    assert "another audit" in str(read_member(place, "plan", 2))
    text = (where / DONE).read_text()
    for broken in ("", "[]", "{}", text[:-9], text.replace('"steps": 2', '"steps": 3')):
        (where / DONE).write_text(broken)
        assert "is damaged" in str(read_member(place, "plan", 3))
    stated = {key: value for key, value in json.loads(text).items() if key != "checksum"}
    for name in ("../../x.parquet", "replicas/2/adapter_config.json", "/etc/passwd", "margins"):
        (where / DONE).write_text(json.dumps(stated | {"files": {name: "0" * 64}}))
        assert "is damaged" in str(read_member(place, "plan", 3))
    (where / DONE).unlink()
    assert read_member(place, "plan", 3) is None


@pytest.mark.parametrize("tokens", [2048, 8])
def test_replicas_trained_apart_and_together(tmp_path: Path, tokens: int) -> None:
    """The same bytes where no forward holds two replicas; else they differ in the last bits."""
    steps = 8 if tokens == 2048 else 3
    config = replace(CONFIG, steps=steps, learning_rate=0.01, tokens=tokens)
    train_lora(TinyPolicy(tiny_llama()), pairs(), config, tmp_path / "all")
    whole = read(tmp_path / "all")
    for m in range(config.replicas):
        some, shared = range(m, m + 1), tmp_path / "all" / "trunk"
        place = tmp_path / str(m)
        train_lora(
            TinyPolicy(tiny_llama()),
            pairs(),
            config,
            place,
            members=some,
            activations_directory=shared,
        )
        one, other = read(place), whole[whole.replica == m]
        assert set(one.replica) == {m}
        difference = np.abs(one.margin.to_numpy() - other.margin.to_numpy())
        most = 1e-3 * np.sqrt((other.margin**2).mean()) if tokens == 2048 else 0
        assert difference.max() <= most
        assert (one.held_out.to_numpy() == other.held_out.to_numpy()).all()


def adapted(place: Path, runs: Path, disks: Path, *options: str) -> list[str]:
    theirs = the_run(disks / "1").directory / FOLDER
    each = [word for m in "02" for word in ("--from-adapters", f"{theirs}/{m}/replicas/{m}")]
    return words("score", place, runs, *each, "--held-out", *options)


def test_adapters_of_others_over_ranks_and_shards(
    launch: Launcher,
    disks: Path,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two, apart = (tmp_path / name for name in ("one", "two", "apart"))
    assert launch(adapted(place, one, disks))[0] in (0, 2)
    expected = evidence(one)
    assert sorted(expected) == ["margins/part-000001.parquet", "pairs.parquet"]
    typed = adapted(place, two, disks)
    assert launch(typed, typed, dies=1) == [2, -9]
    assert not the_run(two).complete
    assert launch(typed, typed)[0] in (0, 2), launch.said(0)
    assert evidence(two) == expected
    assert manifest(two)["training"] == manifest(one)["training"]
    for index in (2, 1):
        assert command(adapted(place, apart, disks, "--shard", f"{index}/2")) == 0
    assert "noisescope merge" in capsys.readouterr().out
    store = fsspec.filesystem("memory")
    store.put(str(apart), "/bucket/runs", recursive=True)
    try:
        merge(["memory://bucket/runs"], runs_directory=tmp_path / "all")
    finally:
        store.rm("/bucket", recursive=True)
    assert evidence(tmp_path / "all") == expected
    assert manifest(tmp_path / "all")["training"] == manifest(one)["training"]
    min(apart.glob(".cache/adapter_scores/*/*.safetensors")).unlink()
    with pytest.raises(RunError, match=r"responses have no scores: shard ./2"):
        merge([str(apart)])


def test_scores_that_rank_0_cannot_see_are_told_as_such(
    disks: Path, place: Path, tmp_path: Path
) -> None:
    class Apart:
        """Rank 0 of two, the other of which writes to a disk of its own."""

        rank, size, first, share = 0, 2, True, Share(0, 2)

        def exchange(self) -> None: ...
        def require_same(self, facts: Any) -> None: ...
        def from_first(self, text: str) -> str:
            return text

    dataset = load(place / "pairs.jsonl")
    policy = load_policy(str(place / "model"), dataset, dtype="float32")
    theirs = the_run(disks / "1").directory / FOLDER / "0" / "replicas" / "0"
    evidence = EvidenceConfig("adapters", adapters=(theirs,))
    world = cast(Any, Apart())
    with pytest.raises(RunError, match=r"responses have no scores that rank 0 can see: other"):
        fine_tune(dataset, policy, evidence=evidence, world=world, runs_directory=tmp_path)


def test_image_replicas_in_shards(tmp_path: Path) -> None:
    folder, shown = save_pipeline("sd", tmp_path / "sd"), pictures(24)
    table, store = pairs_table(list(shown)), StoredImages(shown)
    facts = Facts(rows=12, pairs=12)
    name = dataset_fingerprint(table)
    dataset = PreferenceDataset("p", "p", "p", "image", table, facts, name, store)
    settings = {"steps": 3, "batch": 4, "rank": 2}
    config = EvidenceConfig("lora", replicas=3, lora=settings)

    def policy() -> DiffusionPolicy:
        return DiffusionPolicy.load(str(folder), store, device="cpu", dtype="float32")

    for index in (2, 1):
        compute_shard(
            dataset,
            policy(),
            config,
            Share(index - 1, 2),
            runs_directory=tmp_path / "runs",
            command="noisescope score p --kind lora",
            reporter=Silent(),
        )
    merge([str(tmp_path / "runs")])
    alone = fine_tune(dataset, policy(), evidence=config, runs_directory=tmp_path / "one")
    apart = read_margins(the_run(tmp_path / "runs").directory).margins
    whole = read_margins(alone.run.directory).margins
    rounding = 2500 * np.finfo(np.float32).eps  # of errors near 1, times beta
    assert np.abs(apart - whole).max() < 4 * rounding
    assert np.abs(whole).max() > 100 * rounding
    assert evidence(tmp_path / "runs").keys() == evidence(tmp_path / "one").keys()
    assert (
        the_run(tmp_path / "runs").manifest()["training"]
        == alone.run.evidence_manifest()["training"]
    )
