"""Kill or stop commands at seeded points, run them again, compare with an uninterrupted run.

    case = Case("flip", (("flip", "pairs.jsonl", "--output", "copy"),), ("copy",))
    outcome = trial(case, start, place, random.Random(0), whole)

Each command runs in its own process, forked from one that has imported everything. The signal comes
from the parent after a random time, or from the process itself at its n-th write: an audit hook
counts the files opened for writing and the renames, and signals before the n-th is done.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.leftovers import IGNORED, Case, Outcome, Whole, compare, contents, rows

#: A file of a start directory that commands read as what is typed.
TYPED = "typed.txt"
#: How a review ends that was interrupted: nothing of it is to be repeated.
REVIEWED = "stopped; every answer is saved"


def prepare() -> None:
    """Import what commands import, so that a fork of this process starts at once."""
    import duckdb
    import peft
    import pyarrow.compute
    import pyarrow.dataset
    import pyarrow.parquet
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import noisescope.auditing.audit
    import noisescope.cli
    import noisescope.scoring.score

    del duckdb, peft, pyarrow, transformers, AutoModelForCausalLM, AutoTokenizer, noisescope
    torch.set_num_threads(1)


def run_forked(
    arguments: Sequence[str],
    place: Path,
    *,
    after: float | None = None,
    at_write: int | None = None,
    number: signal.Signals = signal.SIGKILL,
    jumps: bool = False,
    log: str = "log.txt",
) -> tuple[int | None, float, int]:
    """Run one command in a forked process in `place`; return (exit code, seconds, writes).

    The process receives the signal `after` seconds from when its handlers are installed, or sends
    it to itself at its n-th write. The code is None if the signal killed it; writes are counted
    only for commands that end. `jumps`: with a clock that jumps back and forth by years.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    counted, counter = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(counted)
        _become(arguments, place, at_write, number, counter, jumps, log)
    os.close(counter)
    os.read(counted, 1)  # from now on it is a command
    began = time.monotonic()
    timer = threading.Timer(after, os.kill, (child, number)) if after is not None else None
    if timer is not None:
        timer.start()
    with os.fdopen(counted, "rb") as stream:
        writes = int(stream.read() or b"0")
    _, status = os.waitpid(child, 0)
    if timer is not None:
        timer.cancel()
    code = os.waitstatus_to_exitcode(status)
    return (None if code == -signal.SIGKILL else code), time.monotonic() - began, writes


def _renew_threads() -> None:
    """Replace torch's thread pool, which a fork leaves unusable, before several threads need it.

    torch does so on first use, but not safely from several threads, as transformers loads weights.
    """
    import torch

    torch.set_num_threads(1)


def _become(
    arguments: Sequence[str],
    place: Path,
    at_write: int | None,
    number: signal.Signals,
    counter: int,
    jumps: bool,
    log: str,
) -> None:
    """Become a noisescope command, in the child; never return."""
    code = 70
    try:
        os.chdir(place)
        if (place / TYPED).is_file():
            os.dup2(os.open(place / TYPED, os.O_RDONLY), 0)
        stream = os.open(place / log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        sys.argv = ["noisescope", *arguments]
        from noisescope.cli import run
        from noisescope.cli.console import listen
        from noisescope.storage import cache as parts

        _renew_threads()
        listen()
        if jumps:
            _let_the_clock_jump()
        os.write(counter, b"+")
        parts.CHUNK = 600  # small parts, so that there is something between them to be killed at
        writes = _count_writes(place, at_write, number)
        code = run(arguments)
        os.write(counter, b"%d" % writes["n"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _let_the_clock_jump() -> None:
    """Make the wall clock wrong by up to three years, differently at each reading."""
    real, draw = time.time, random.Random(0)
    time.time = lambda: real() + draw.uniform(-1e8, 1e8)
    time.time_ns = lambda: int(time.time() * 1e9)


def age(place: Path, draw: random.Random) -> None:
    """Give every file a random modification time, from 1970 to 2100."""
    for path in place.rglob("*"):
        if path.is_file():
            moment = draw.uniform(0, 4e9)
            os.utime(path, (moment, moment))


def _count_writes(place: Path, at_write: int | None, number: signal.Signals) -> Counter[str]:
    """Count opens for writing and renames below `place`; send the signal at the n-th."""
    count: Counter[str] = Counter()
    root = str(place)
    writing = os.O_WRONLY | os.O_RDWR

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir"):
            return
        path = str(details[0])
        if event == "open" and not (len(details) > 2 and (details[2] or 0) & writing):
            return
        if os.path.isabs(path) and not path.startswith(root):  # noqa: PTH117
            return
        count["n"] += 1
        if count["n"] == at_write:
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)
    return count


def unbroken(case: Case, start: Path, place: Path) -> Whole:
    """Run a case to its end in a copy of `start`."""
    shutil.copytree(start, place)
    taken, wrote = [], []
    for command in case.commands:
        code, seconds, writes = run_forked(command, place)
        if code != 0:
            raise RuntimeError(f"{case.name}: {command} ended with {code}: {output_of(place)}")
        taken.append(seconds)
        wrote.append(writes)
    return Whole(contents(place, case), rows(place, case)[0], tuple(taken), tuple(wrote))


def trial(
    case: Case,
    start: Path,
    place: Path,
    draw: random.Random,
    whole: Whole,
    *,
    kills: int = 1,
    number: signal.Signals = signal.SIGKILL,
) -> Outcome:
    """Send each command of a case the signal up to `kills` times, let it end, compare."""
    shutil.copytree(start, place)
    found = Outcome()
    for index, command in enumerate(case.commands):
        for _ in range(kills):
            _interrupt(command, place, draw, whole, index, number, found)
        code, _, _ = run_forked(command, place)
        if code != 0:
            found.faults.append(f"{case.name}: run again it ended with {code}: {output_of(place)}")
    compare(case, place, whole, found)
    shutil.rmtree(place)
    return found


def jumping(case: Case, start: Path, place: Path, draw: random.Random, whole: Whole) -> Outcome:
    """Kill each command under a jumping clock, age the files at random, let it end, compare."""
    shutil.copytree(start, place)
    found = Outcome()
    for index, command in enumerate(case.commands):
        for at_write in (draw.randint(1, max(1, whole.writes[index])), None):
            code, _, _ = run_forked(command, place, at_write=at_write, jumps=True)
            age(place, draw)
        if code != 0:
            found.faults.append(f"{case.name}: clock jumped, ended with {code}: {output_of(place)}")
    compare(case, place, whole, found)
    shutil.rmtree(place)
    return found


def together(case: Case, start: Path, place: Path, whole: Whole) -> Outcome:
    """Run the same command twice at once in one directory: one may be refused, none corrupts."""
    shutil.copytree(start, place)
    found = Outcome()
    for command in case.commands:
        twin = os.fork()
        if twin == 0:
            os._exit(run_forked(command, place, log="twin.txt")[0] or 0)
        codes = [run_forked(command, place)[0], os.waitstatus_to_exitcode(os.waitpid(twin, 0)[1])]
        outputs = [output_of(place), output_of(place, "twin.txt")]
        for code, words in zip(codes, outputs, strict=True):
            if code != 0 and not (code == 2 and "another process" in words):
                found.faults.append(f"{case.name}: of two, one ended with {code}: {words}")
        found.refused += codes.count(2)
        code, _, _ = run_forked(command, place)
        if code != 0:
            found.faults.append(f"{case.name}: after two it ended with {code}: {output_of(place)}")
    compare(case, place, whole, found)
    shutil.rmtree(place)
    return found


def _interrupt(
    command: Sequence[str],
    place: Path,
    draw: random.Random,
    whole: Whole,
    index: int,
    number: signal.Signals,
    found: Outcome,
) -> None:
    """Run a command once, interrupted at a random point; add the outcome to `found`."""
    after = at_write = None
    if draw.random() < 0.5:
        at_write = draw.randint(1, max(1, whole.writes[index]))
    else:
        after = draw.uniform(0.0, whole.seconds[index])
    code, _, _ = run_forked(command, place, after=after, at_write=at_write, number=number)
    output = output_of(place)
    if code is None:
        found.kills += 1
        found.by_write += at_write is not None
    elif code == 2 and "Stopped." in output:
        found.stops += 1
        found.by_write += at_write is not None
        if f"noisescope {shlex.join(command)}" not in output:
            found.faults.append(f"{command[0]}: printed no command to continue: {output}")
        if left := [path.name for path in place.rglob(f"{IGNORED[0]}*")]:
            found.faults.append(f"{command[0]}: stopped, and left {left}")
    elif code == 0 and REVIEWED in output:
        found.stops += 1
        found.by_write += at_write is not None
    elif code != 0:
        found.faults.append(f"{command[0]} {after or at_write}: ended with {code}: {output}")


def output_of(place: Path, log: str = "log.txt") -> str:
    """Return the end of the output of a command."""
    return " ".join((place / log).read_text(errors="replace").split())[-300:]
