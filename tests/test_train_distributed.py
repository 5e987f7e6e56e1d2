"""Training over two processes (gloo, CPU): the losses and files of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import pytest
import torch
from helpers.training import quick, tiny_checkpoint, write_pairs
from safetensors.torch import load_file

from noisescope.errors import UsageError
from noisescope.training.policy.run import check_settings

HERE = Path(__file__).parent
#: Each line on stdin: {"port", "size", "env", "runs": [{"output", "dies", settings}, ...]}. Starts
#: `size` processes, as a launcher does, that train one run after another; libraries load once.
LAUNCHER = """
import json, os, signal, sys, traceback
from pathlib import Path
import accelerate, peft, torch
import transformers.models.llama.modeling_llama
from helpers.training import Interrupted, quick, read, tiny_policy
from noisescope.training.policy.run import fine_tune


def rank(number, job):
    os.environ.update(job["env"], RANK=str(number), WORLD_SIZE=str(job["size"]),
                      LOCAL_RANK=str(number), LOCAL_WORLD_SIZE=str(job["size"]),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]))
    if job["size"] == 1:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
            del os.environ[name]
    place = Path(job["place"])
    data = read(place / "pairs.jsonl")
    for run in job["runs"]:
        output, dies = Path(run.pop("output")), run.pop("dies", 0)
        mixed = run.pop("mixed", "no")
        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
        fine_tune(data, tiny_policy(place / "model"), quick(**run), output=output,
                  mixed_precision=mixed, reporter=Interrupted(dies, kill) if dies else None)


for line in sys.stdin:
    job = json.loads(line)
    children = []
    for number in range(job["size"]):
        child = os.fork()
        if child == 0:
            try:
                rank(number, job)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""
#: A pair a forward, so that two processes have unequal shares.
SETTINGS = {"steps": 4, "batch": 7, "accumulation": 7, "validation": 0.2}
ONLINE = SETTINGS | {"objective": "adaptive-dpo", "online": "replicas", "online_replicas": 2}
ONLINE |= {"layers": 2}
FULL = SETTINGS | {"full": True, "learning_rate": 1e-3}


@final
class Launcher:
    """Trains in processes of its own; exit codes of the ranks."""

    def __init__(self, process: subprocess.Popen[str], place: Path) -> None:
        self.process, self.place = process, place

    def __call__(self, size: int, *runs: dict[str, Any], **env: str) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        runs = tuple(run | {"output": str(self.place / run["output"])} for run in runs)
        job = {"port": port, "place": str(self.place), "size": size, "env": env, "runs": runs}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(job), file=self.process.stdin, flush=True)
        codes: list[int] = json.loads(self.process.stdout.readline())
        return codes


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    place = tmp_path_factory.mktemp("sharded")
    write_pairs(place / "pairs.jsonl", 41)
    tiny_checkpoint(place / "model")
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}", "OMP_NUM_THREADS": "1"},
    ) as process:
        yield Launcher(process, place)


@pytest.fixture(scope="module")
def trained(launch: Launcher) -> Path:
    """One process and two of them: adapters, then every weight."""
    for name, size in (("one", 1), ("two", 2)):
        runs = [SETTINGS | {"output": f"{name}-lora"}, FULL | {"output": f"{name}-full"}]
        runs.append(ONLINE | {"output": f"{name}-online"})
        assert launch(size, *runs) == [0] * size
    return launch.place


def history(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def assert_alike(one: Path, other: Path, *, within: float) -> None:
    """The same files, loss curves and weights."""
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
    for mine, theirs in zip(history(one), history(other), strict=True):
        for name in ("loss", "margin", "weight", "grad_norm", "validation_loss"):
            assert mine.get(name, 0) == pytest.approx(theirs.get(name, 0), abs=within), name
    for name in ("config.json", "adapter_config.json", "plan.json"):
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes()
    file = next(one.glob("*model.safetensors"))
    mine, theirs = load_file(file), load_file(other / file.name)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=50 * within)


@pytest.mark.parametrize("kind", ["lora", "full", "online"])
def test_two_processes_train_as_one_does(trained: Path, kind: str):
    assert_alike(trained / f"one-{kind}", trained / f"two-{kind}", within=1e-4)


def test_kill_9_and_resume_ends_with_the_same_weights(trained: Path, launch: Launcher):
    run = FULL | {"output": "killed"}
    assert launch(2, run | {"dies": 3}) == [-9, -9]
    assert (trained / "killed" / "state.safetensors").exists()
    assert launch(2, run) == [0, 0]
    assert history(trained / "killed") == history(trained / "two-full")
    weights = [(trained / name / "model.safetensors") for name in ("killed", "two-full")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_bfloat16_trains_alike_and_one_process_may_take_over(trained: Path, launch: Launcher):
    run = FULL | {"output": "half", "mixed": "bf16"}
    assert launch(2, run | {"dies": 3}) == [-9, -9]
    assert launch(1, run) == [0]
    losses = [[r["loss"] for r in history(trained / name)] for name in ("half", "two-full")]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("variable", "name"),
    [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")],
)
def test_a_launcher_that_splits_the_weights_is_refused(monkeypatch, variable, name):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UsageError, match=f"{name} splits the weights among processes") as refused:
        check_settings(quick())
    assert "AdaptiveDPOTrainer" in str(refused.value.hint)
