"""Start the ranks of one launch, as torchrun does, in one process that has loaded the libraries."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

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


@contextmanager
def launching(place: Path) -> Iterator[Launcher]:
    """A launcher that writes what its ranks print into `place`."""
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
