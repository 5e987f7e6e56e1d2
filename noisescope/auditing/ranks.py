"""The processes of one launch (torchrun, accelerate launch), and the few words they exchange.

    with joined() as world:
        todo = world.from_first(text)    # what rank 0 says, everywhere
        ...                              # each rank its share
        world.exchange()                 # wait for all

An error in one rank is told to all of them at the next exchange and ends them all; only rank 0
prints. Words go over gloo, on GPUs too: no tensors are exchanged that NCCL would be quicker at.
Without a launcher the world is one process, and torch is not imported.
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
from typing import TYPE_CHECKING, Any, NoReturn, final

from noisescope.errors import NoisescopeError, RunError
from noisescope.models.device import launched

if TYPE_CHECKING:
    pass

#: How long a rank waits for the others: the slowest share of a pass may take days.
PATIENCE = timedelta(days=7)
#: Seconds between two looks at whether the others have answered; signals are heard in between.
LOOK = 0.02
#: What to do about a launch that did not come to its end.
AGAIN = "Type the same launch command again: finished parts are kept."


@final
class Ended(Exception):
    """All ranks know that the job has failed; `said` is what rank 0 prints."""

    def __init__(self, said: Exception, *, known: bool = True) -> None:
        super().__init__(str(said))
        self.said, self.known = said, known


@final
@dataclass(frozen=True)
class World:
    """This process among those of its launch; `size` 1 where it is alone."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that prints and writes the run."""
        return self.rank == 0

    def exchange(self, text: str = "") -> list[str]:
        """What each rank says, in order of ranks; waits for all of them.

        Raises Ended where a rank said that it failed, or is gone.
        """
        return [text] if self.size == 1 else self._answers({"said": text})

    def from_first(self, text: str) -> str:
        """What rank 0 says, in every rank."""
        return self.exchange(text if self.first else "")[0]

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Raise RunError naming the first fact in which a rank differs from rank 0."""
        stated = [json.loads(text) for text in self.exchange(json.dumps(facts))]
        for rank, other in enumerate(stated):
            for name, value in stated[0].items():
                if other.get(name) != value:
                    raise RunError(
                        f"rank {rank} has another {name} than rank 0: {other.get(name)}, not "
                        f"{value}",
                        hint="Every host needs the same files, versions and --dtype.",
                    )

    def fail(self, error: Exception) -> NoReturn:
        """Tell every rank of this one's error. Raises Ended."""
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
        except Ended as ended:
            raise Ended(error if self.first and ended.known else ended.said) from error
        raise AssertionError("an error that was told ends every rank")

    def _answers(self, mine: Mapping[str, Any]) -> list[str]:
        try:
            answers = [json.loads(text) for text in _gather(json.dumps(mine), self.size)]
        except RuntimeError as error:
            gone = RunError(
                f"rank {self.rank} of {self.size} lost the others: "
                f"{(str(error).splitlines() or ['no reason given'])[0]}",
                hint=AGAIN,
            )
            raise Ended(gone, known=False) from error
        failed = {rank: said for rank, said in enumerate(answers) if "error" in said}
        if not failed:
            return [str(said["said"]) for said in answers]
        rank, said = next(iter(failed.items()))
        whose = "" if len(failed) == self.size else f"rank {rank} of {self.size}: "
        raise Ended(RunError(f"{whose}{said['error']}", hint=said["hint"]))


@contextmanager
def joined() -> Iterator[World]:
    """The world of this process' launch, until all ranks are through the block.

    Other ranks than 0 print nothing inside, and leave with exit code 2 where the job failed.
    Raises what rank 0 or, by name, another rank raised; RunError where a rank is gone.
    """
    if not launched():
        yield World()
        return
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    try:
        with _quiet(world):
            _connect(world)
            try:
                try:
                    yield world
                    world.exchange()
                except Ended:
                    raise
                except Exception as error:
                    world.fail(error)
            finally:
                _leave()
    except Ended as ended:
        if world.first or not ended.known:
            raise ended.said from ended
        raise SystemExit(2) from ended
    except BaseException as error:  # a signal, sent to all of them: rank 0 says so
        if world.first or isinstance(error, Exception):
            raise
        raise SystemExit(2) from error


@contextmanager
def _quiet(world: World) -> Iterator[None]:
    """Nothing printed by other ranks than 0, unless faults are looked for."""
    with ExitStack() as stack:
        if not world.first and "--debug" not in sys.argv:
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def _connect(world: World) -> None:
    """Meet the other ranks where the launcher says. Raises RunError."""
    import torch.distributed as dist

    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"rank {world.rank} of {world.size} cannot meet the others: "
            f"{(str(error).splitlines() or ['no reason given'])[0]}",
            hint="Is MASTER_ADDR reachable from every host, GLOO_SOCKET_IFNAME its network?",
        ) from error


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _gather(text: str, size: int) -> list[str]:
    """The text of every rank. Raises RuntimeError where one is gone."""
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
    """Until an exchange is through; unlike `work.wait()` alone, a signal is heard meanwhile."""
    while not work.is_completed():
        time.sleep(LOOK)
    work.wait()
