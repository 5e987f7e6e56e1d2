"""Two processes of one launch (gloo): the files of one process, whole after a kill, one voice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import pytest
from test_shards import files, manifest, score_line, the_run

from noisescope.auditing.ranks import World, joined
from noisescope.storage.files import hold

#: For each line on stdin, {"port", "place", "ranks": [[argument, ...], ...], "dies": rank, "by": 9,
#: "after": n} starts one process a rank, as a launcher does; libraries load once. Rank `dies` gets
#: the signal `by` in its share, in that of LoRA replicas as the n-th step begins.
LAUNCHER = """
import json, os, sys
import accelerate, datasets, duckdb, scipy.stats, torch, transformers.models.llama.modeling_llama
import noisescope.auditing.audit, noisescope.datasets, noisescope.auditing.shards
import noisescope.scoring.score
import noisescope.replicas.head, peft, torch.distributed
from noisescope.storage import cache as parts
from noisescope.cli import run
from noisescope.cli.console import listen
from noisescope.models.causal_lm import CausalLMPolicy
from noisescope.replicas.packed import PackedReplicas
from noisescope.replicas.gather_adapters import AdapterScores

parts.CHUNK = 700


def dying(compute, signal, after):
    computed = []

    def compute_or_die(*arguments):
        if len(computed) == after:
            os.kill(os.getpid(), signal)
        computed.append(1)
        return compute(*arguments)

    return compute_or_die


def rank(number, job):
    size = len(job["ranks"])
    os.environ.update(RANK=str(number), WORLD_SIZE=str(size), LOCAL_RANK=str(number),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]))
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(f"{job['place']}/{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
    if job["dies"] == number:
        CausalLMPolicy.features = dying(CausalLMPolicy.features, job["by"], 1)
        AdapterScores.features = dying(AdapterScores.features, job["by"], 0)
        PackedReplicas.batches = dying(PackedReplicas.batches, job["by"], job["after"])
    listen()
    sys.argv = ["noisescope", *job["ranks"][number]]
    code = run(job["ranks"][number])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


for line in sys.stdin:
    job = json.loads(line)
    children = []
    for number in range(len(job["ranks"])):
        child = os.fork()
        if child == 0:
            rank(number, job)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""


@final
class Launcher:
    """Starts ranks and tells their exit codes and what each said."""

    def __init__(self, process: subprocess.Popen[str], place: Path) -> None:
        self.process, self.place = process, place

    def __call__(
        self, *ranks: Sequence[str], dies: int = -1, by: int = signal.SIGKILL, after: int = 0
    ) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        job = {"port": port, "place": str(self.place), "ranks": ranks}
        job |= {"dies": dies, "by": int(by), "after": after}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        codes: list[int] = json.loads(self.process.stdout.readline())
        return codes

    def said(self, rank: int) -> str:
        """All that a rank of the last launch printed, white space folded."""
        texts = [(self.place / f"{rank}.{name}").read_text() for name in ("out", "err")]
        return " ".join(" ".join(texts).split())


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    place = tmp_path_factory.mktemp("launches")
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", LAUNCHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=place,
    ) as process:
        yield Launcher(process, place)
        process.kill()


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
    assert "mislabelled" in launch.said(0)
    assert launch.said(1) == ""


def test_a_killed_rank_ends_the_others_and_the_same_launch_continues(
    launch: Launcher, alone: Path, tmp_path: Path
) -> None:
    line = score_line(tmp_path)
    assert launch(line, line, dies=1) == [2, -9]
    assert "rank 0 of 2 lost the others" in launch.said(0)
    assert "Type the same launch command again" in launch.said(0)
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
    assert "error: stopped by SIGINT" in launch.said(0)
    assert "Type the same launch command again" in launch.said(0)
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
    assert "--early-stopping asks all replicas" in launch.said(0)
    assert launch.said(1) == ""


def test_two_jobs_never_share_a_run(launch: Launcher, alone: Path) -> None:
    class Owner:
        pass

    owner = Owner()
    hold(owner, the_run(alone).directory)
    line = score_line(alone)
    assert launch(line, line) == [2, 2]
    assert "is being written by another process" in launch.said(0)
    del owner
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
