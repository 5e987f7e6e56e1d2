"""Coordinate the processes of one `torchrun` or `accelerate launch` job.

    with joined() as world:
        text = world.from_first(text)    # rank 0's text, on every rank
        ...                              # each rank computes its share
        world.leave()                    # wait for all ranks; only rank 0 continues

An error on one rank is raised on every rank at the next exchange; only rank 0 prints. Messages are
small, so gloo is used even on GPUs. Without a launcher the world is one process, and torch is not
imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, final

from noisescope.errors import NoisescopeError, RunError, first_line
from noisescope.models.device import launched
from noisescope.replicas.partition import Share

#: How long a rank waits for the others: the slowest share may take days.
PATIENCE = timedelta(days=7)
#: Seconds between two checks for the answers of other ranks; signals are handled in between.
POLL = 0.02
#: Hint of an error that ended a launch.
AGAIN = "Run the same launch command again: finished chunks are kept."


@final
class RankStopped(Exception):
    """The job has failed on all ranks; rank 0 prints `error`. `known`: all ranks were reached."""

    def __init__(self, error: Exception, *, known: bool = True) -> None:
        super().__init__(str(error))
        self.error, self.known = error, known


@final
class _Left(Exception):
    """This rank's work is done: the `joined` block ends here."""


@final
@dataclass
class World:
    """This process among those of its launch; `size` is 1 without a launcher."""

    rank: int = 0
    size: int = 1
    #: Whether the ranks have separated: rank 0 goes on alone.
    left: bool = False

    @property
    def first(self) -> bool:
        """Whether this rank prints and writes the run."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This rank's share of the work."""
        return Share(self.rank, self.size)

    def exchange(self, text: str = "") -> list[str]:
        """The text of each rank, in order of ranks; waits for all of them.

        Raises RankStopped if a rank has failed or cannot be reached.
        """
        return [text] if self.size == 1 or self.left else self._answers({"text": text})

    def from_first(self, text: str) -> str:
        """The text of rank 0, on every rank."""
        return self.exchange(text if self.first else "")[0]

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Raise RunError naming the first fact in which a rank differs from rank 0."""
        by_rank = [json.loads(text) for text in self.exchange(json.dumps(facts))]
        for rank, other in enumerate(by_rank):
            for name, value in by_rank[0].items():
                if other.get(name) != value:
                    raise RunError(
                        f"rank {rank} has another {name} than rank 0: {other.get(name)}, not "
                        f"{value}",
                        hint="Every host needs the same files, versions and --dtype.",
                    )

    def leave(self) -> None:
        """Wait for all ranks. Rank 0 continues alone; on the others `joined` ends."""
        if self.size == 1 or self.left:
            return
        self.exchange()
        self.left = True
        _disconnect()
        if not self.first:
            raise _Left

    def fail(self, error: Exception) -> NoReturn:
        """Send this rank's error to every rank. Raises RankStopped."""
        if "--debug" in sys.argv and not self.first:
            traceback.print_exception(error)
        hint = error.hint if isinstance(error, NoisescopeError) else None
        message = (
            error.message
            if isinstance(error, NoisescopeError)
            else f"unexpected {type(error).__name__}: {error}"
        )
        try:
            self._answers({"error": message, "hint": hint})
        except RankStopped as stopped:
            mine = self.first and stopped.known
            raise RankStopped(error if mine else stopped.error) from error
        raise AssertionError("an error that was sent stops every rank")

    def _answers(self, mine: Mapping[str, Any]) -> list[str]:
        try:
            answers = [json.loads(text) for text in _gather(json.dumps(mine), self.size)]
        except RuntimeError as error:
            gone = RunError(
                f"rank {self.rank} of {self.size} lost the others: {first_line(error)}", hint=AGAIN
            )
            raise RankStopped(gone, known=False) from error
        failed = {rank: answer for rank, answer in enumerate(answers) if "error" in answer}
        if not failed:
            return [str(answer["text"]) for answer in answers]
        rank, answer = next(iter(failed.items()))
        whose = "" if len(failed) == self.size else f"rank {rank} of {self.size}: "
        raise RankStopped(RunError(f"{whose}{answer['error']}", hint=answer["hint"]))


@contextmanager
def joined() -> Iterator[World]:
    """The world of this process' launch, until it leaves or all ranks are through the block.

    Ranks other than 0 print nothing inside, and exit with code 2 if the job failed. Raises what
    rank 0 or, by name, another rank raised, and RunError if a rank cannot be reached.
    """
    if not launched():
        yield World()
        return
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    try:
        with _quiet(world):
            _connect(world)
            try:
                yield world
                world.leave()
            except (RankStopped, _Left):
                raise
            except Exception as error:
                if world.left:
                    raise
                world.fail(error)
            finally:
                _disconnect()
    except _Left:
        return
    except RankStopped as stopped:
        if world.first or not stopped.known:
            raise stopped.error from stopped
        raise SystemExit(2) from stopped
    except BaseException as error:  # a signal, sent to all of them: rank 0 reports it
        if world.first or isinstance(error, Exception):
            raise
        raise SystemExit(2) from error


@contextmanager
def _quiet(world: World) -> Iterator[None]:
    """Discard the output of ranks other than 0, except with --debug."""
    with ExitStack() as stack:
        if not world.first and "--debug" not in sys.argv:
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def _connect(world: World) -> None:
    """Connect to the other ranks at the launcher's address. Raises RunError."""
    import torch.distributed as dist

    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"rank {world.rank} of {world.size} cannot connect to the others: {first_line(error)}",
            hint="Check that MASTER_ADDR is reachable from every host, and that GLOO_SOCKET_IFNAME "
            "is its network.",
        ) from error


def _disconnect() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _gather(text: str, size: int) -> list[str]:
    """The text of every rank, without pickle. Raises RuntimeError if one is gone."""
    import torch
    import torch.distributed as dist

    mine = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    _wait(dist.all_gather(lengths, torch.tensor([len(mine)]), async_op=True))
    longest = int(torch.cat(lengths).max())
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(mine)] = mine
    rows = [torch.zeros_like(padded) for _ in range(size)]
    _wait(dist.all_gather(rows, padded, async_op=True))
    pairs = zip(rows, lengths, strict=True)
    return [bytes(row[: int(length)].tolist()).decode() for row, length in pairs]


def _wait(work: Any) -> None:
    """Wait for an exchange; unlike `work.wait()` alone, signals are handled meanwhile."""
    while not work.is_completed():
        time.sleep(POLL)
    work.wait()
