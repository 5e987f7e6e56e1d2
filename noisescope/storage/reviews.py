"""reviews.jsonl: people's judgements of a run's pairs, one JSON object a line, only appended to.

    Journal(run.directory, reviewer).append(Answer(...).to_json())  # on disk when this returns
    log = read_reviews(run)                            # of this run and of the runs beside it

Three kinds of line:

    draw     which pairs are to be judged and why: an id, `purpose` estimate (a stratified sample:
             seed, and the cell of every pair), fix (a list of pairs, most suspicious first),
             import, or decide (pairs that somebody chose with their labels in view), and
             `population`, a digest of all pairs it was drawn from
    answer   pair_id, content_id, reviewer, answer (first, second, tie, skip; with the label in
             view also drop), `sides`: the content keys of the two sides in the order shown, the
             draw, the stratum and its size, time, a note
    undo     takes back the answer that it names

An answer names the better side by content, never by label: it holds for the same pair in any run,
however that is labelled. A line is written and synced at once, so that a killed process loses at
most the answer in flight; a torn last line is ignored by readers and removed by the next writer.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from noisescope.errors import RunError
from noisescope.pairs import digest
from noisescope.storage.files import append, hold, refuse_link, slug, unwritten
from noisescope.storage.run import Run

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "reviews.jsonl"
#: Folder of a run that holds one lock a reviewer.
LOCKS = "reviewing"
Choice = Literal["first", "second", "tie", "skip"]
CHOICES: tuple[Choice, ...] = ("first", "second", "tie", "skip")
#: The purpose of answers that were given with the label in view, about pairs their reviewer chose.
DECIDE = "decide"
PURPOSES = ("estimate", "fix", "import", DECIDE)
#: Answer of such a reviewer who wants the pair out of the dataset; it names no better side.
DROP: Literal["drop"] = "drop"
#: Longest name of a reviewer.
LONGEST_NAME = 100
#: What precedes the time in a line.
_TIME = b'"time":"'
#: Most pairs that a draw's cells may describe: bounds what a damaged line can make of memory.
_MOST_CELLS = 1 << 28


def side_key(side: str) -> str:
    """Content key of one side of a pair, whatever it was labelled."""
    return digest("side", side)


def new_id() -> str:
    """An id for a line."""
    return secrets.token_hex(8)


def now() -> str:
    """The time, UTC, in ISO 8601 with microseconds: it sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


@final
@dataclass(frozen=True)
class Draw:
    """Which pairs are to be judged. `cells` are a sample's, a byte a pair in the order of ids'
    hashes; `pairs` are the listed pair ids of the other purposes.
    """

    id: str
    purpose: str
    population: str
    seed: int = 0
    cells: bytes = b""
    pairs: tuple[str, ...] = ()
    time: str = field(default_factory=now)

    def to_json(self) -> dict[str, Any]:
        """The line of this draw."""
        stated: dict[str, Any] = {"kind": "draw", "id": self.id, "purpose": self.purpose}
        stated |= {"population": self.population, "time": self.time}
        if self.purpose == "estimate":
            packed = base64.b64encode(zlib.compress(self.cells, 9)).decode()
            return stated | {"seed": self.seed, "cells": packed}
        return stated | {"pairs": list(self.pairs)}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Draw:
        """The draw of a line. Raises ValueError, TypeError or KeyError if it is none."""
        cells = b""
        if line["purpose"] == "estimate":
            unpack = zlib.decompressobj()
            cells = unpack.decompress(base64.b64decode(line["cells"], validate=True), _MOST_CELLS)
            if not unpack.eof:
                raise ValueError("cells are cut short")
        elif line["purpose"] not in PURPOSES:
            raise ValueError(f"unknown purpose {line['purpose']!r}")
        pairs = tuple(_text(one) for one in line.get("pairs", ()))
        return cls(
            id=_text(line["id"]),
            purpose=line["purpose"],
            population=_text(line["population"]),
            seed=int(line.get("seed", 0)),
            cells=cells,
            pairs=pairs,
            time=_text(line["time"]),
        )


@final
@dataclass(frozen=True)
class Answer:
    """One judgement: `sides` are the content keys of the sides as shown, first and second."""

    pair_id: str
    content_id: str
    reviewer: str
    answer: Choice | Literal["drop"]
    sides: tuple[str, str]
    draw: str
    stratum: int | None = None
    stratum_pairs: int | None = None
    id: str = field(default_factory=new_id)
    time: str = field(default_factory=now)
    note: str = ""

    @property
    def better(self) -> str | None:
        """Content key of the better side; None for a tie and for a skipped or dropped pair."""
        if self.answer in ("tie", "skip", DROP):
            return None
        return self.sides[0 if self.answer == "first" else 1]

    def to_json(self) -> dict[str, Any]:
        """The line of this answer."""
        stated = {"kind": "answer", **vars(self), "sides": list(self.sides)}
        return {name: value for name, value in stated.items() if name != "note" or value}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Answer:
        """The answer of a line. Raises ValueError, TypeError or KeyError if it is none."""
        first, second = line["sides"]
        choice = line["answer"]
        if choice not in (*CHOICES, DROP):
            raise ValueError(f"unknown answer {choice!r}")
        stratum, size = line.get("stratum"), line.get("stratum_pairs")
        return cls(
            pair_id=_text(line["pair_id"]),
            content_id=_text(line["content_id"]),
            reviewer=_text(line["reviewer"]),
            answer=choice,
            sides=(_text(first), _text(second)),
            draw=_text(line["draw"]),
            stratum=None if stratum is None else int(stratum),
            stratum_pairs=None if size is None else int(size),
            id=_text(line["id"]),
            time=_text(line["time"]),
            note=_text(line.get("note", "")),
        )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


@final
@dataclass(frozen=True)
class Log:
    """Draws by id, and the answers that count in the order of their times: of each reviewer and
    content the latest that was not taken back.

    `decisions` are those given with the label in view, about pairs that their reviewer chose: they
    correct labels, and nothing is estimated from them.
    """

    draws: dict[str, Draw] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
    decisions: tuple[Answer, ...] = ()

    @property
    def reviewers(self) -> list[str]:
        """Names of those who answered."""
        return sorted({answer.reviewer for answer in (*self.answers, *self.decisions)})

    @property
    def latest(self) -> tuple[Answer, ...]:
        """The latest answer or decision of each reviewer and content, in the order of times."""
        return _latest((*self.answers, *self.decisions))


def read_log(paths: Iterable[Path]) -> Log:
    """The judgements in these files together; files that are not there hold none.

    Raises RunError naming the file and line of one that is damaged.
    """
    draws: dict[str, Draw] = {}
    answers: dict[str, Answer] = {}
    undone: set[str] = set()
    for path in paths:
        for number, line in _lines(path):
            try:
                kind = line["kind"]
                if kind == "draw":
                    draws.setdefault(line["id"], Draw.from_json(line))
                elif kind == "answer":
                    answers.setdefault(line["id"], Answer.from_json(line))
                elif kind == "undo":
                    undone.add(_text(line["answer"]))
                else:
                    raise ValueError(f"unknown kind {kind!r}")
            except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
                raise _damaged(path, number, f"{type(error).__name__} {error}") from error
    kept = [answer for answer in answers.values() if answer.id not in undone]
    shown = {draw.id for draw in draws.values() if draw.purpose == DECIDE}
    blind = _latest(answer for answer in kept if answer.draw not in shown)
    return Log(draws, blind, _latest(answer for answer in kept if answer.draw in shown))


def _latest(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    """The latest of each reviewer and content, in the order of their times."""

    def when(answer: Answer) -> tuple[str, str]:
        return answer.time, answer.id

    latest = {(one.reviewer, one.content_id): one for one in sorted(answers, key=when)}
    return tuple(sorted(latest.values(), key=when))


def read_reviews(run: Run) -> Log:
    """The judgements in `run` and in the runs beside it: they belong to content, so most of those
    may be about other pairs.
    """
    beside = sorted(run.directory.resolve().parent.glob(f"*/{FILE}"))
    return read_log(dict.fromkeys([run.directory.resolve() / FILE, *beside]))


#: Columns of the table `reviews` in SQL.
COLUMNS = (
    "pair_id",
    "content_id",
    "reviewer",
    "answer",
    "wrong",
    "purpose",
    "stratum",
    "weight",
    "time",
    "note",
)


def reviews_table(run: Run) -> pa.Table | None:
    """The judgements of a run's pairs, a row an answer and pair; None if there are none.

    `answer` is chosen or rejected, tie, skip or drop; `wrong` whether the label is (null for the
    last three); `weight` how many pairs of its stratum a sampled pair represents, null for others.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    log = read_reviews(run) if has_reviews(run) else Log()
    by_content: dict[str, list[Answer]] = {}
    sampled: dict[tuple[str, int | None], set[str]] = {}
    for answer in (*log.answers, *log.decisions):
        by_content.setdefault(answer.content_id, []).append(answer)
        if answer.answer != "skip":
            sampled.setdefault((answer.draw, answer.stratum), set()).add(answer.pair_id)
    if not by_content or not run.pairs_path.is_file():
        return None
    names = ["pair_id", "content_id", "chosen", "rejected"]
    wanted = pa.array(by_content)
    rows: list[dict[str, Any]] = []
    with pq.ParquetFile(run.pairs_path, pre_buffer=False) as file:
        for batch in file.iter_batches(8192, columns=names):
            mask = pa.compute.is_in(batch.column("content_id"), value_set=wanted)
            for pair in batch.filter(mask).to_pylist():
                chosen, rejected = side_key(pair["chosen"]), side_key(pair["rejected"])
                for answer in by_content[pair["content_id"]]:
                    if set(answer.sides) == {chosen, rejected}:
                        size = len(sampled.get((answer.draw, answer.stratum), ()))
                        rows.append(_table_row(pair, chosen, answer, log, size))
    other = {"wrong": pa.bool_(), "stratum": pa.int64(), "weight": pa.float64()}
    schema = pa.schema([(name, other.get(name, pa.string())) for name in COLUMNS])
    return pa.Table.from_pylist(rows, schema=schema) if rows else None


def _table_row(
    pair: Mapping[str, Any], chosen: str, answer: Answer, log: Log, judged: int
) -> dict[str, Any]:
    better = answer.better
    draw = log.draws.get(answer.draw)
    weight = None
    if answer.stratum_pairs and judged and answer.pair_id == pair["pair_id"]:
        weight = answer.stratum_pairs / judged
    return {
        "pair_id": pair["pair_id"],
        "content_id": pair["content_id"],
        "reviewer": answer.reviewer,
        "answer": answer.answer if better is None else "chosen" if better == chosen else "rejected",
        "wrong": None if better is None else better != chosen,
        "purpose": draw.purpose if draw else None,
        "stratum": answer.stratum,
        "weight": weight,
        "time": answer.time,
        "note": answer.note or None,
    }


def has_reviews(run: Run) -> bool:
    """Whether this run, or one beside it, holds a file of judgements."""
    own = run.directory.resolve() / FILE
    return own.is_file() or any(run.directory.resolve().parent.glob(f"*/{FILE}"))


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1 and objects; what a killed writer left of its last line is passed by."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(
            f"{path} cannot be read: {error.strerror or error}",
            hint="Check the file's permissions (`ls -l`).",
        ) from error
    lines = data.split(b"\n")
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return
            raise _damaged(path, number, str(error)) from error
        if not isinstance(line, dict):
            raise _damaged(path, number, "not a JSON object")
        yield number, line


def _damaged(path: Path, number: int, why: str) -> RunError:
    return RunError(
        f"{path}:{number} is damaged: {why}",
        hint=f"Remove line {number}: every other line keeps its meaning.",
    )


@final
class Journal:
    """Appends lines to a run's reviews.jsonl, one process a reviewer at a time.

    Raises RunError if another process reviews this run as the same reviewer, or if nothing can be
    written. Processes of different reviewers may append at once.
    """

    def __init__(self, directory: Path, reviewer: str) -> None:
        self.path = directory / FILE
        refuse_link(self.path, "RUN")
        folder = directory / LOCKS / slug(reviewer)
        refuse_link(directory / LOCKS, "RUN")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritten(folder, error) from error
        try:
            hold(self, folder, elsewhere="--reviewer")
        except RunError as error:
            raise RunError(
                f"{reviewer!r} is reviewing {directory} in another process: {error.message}",
                hint="Go on there, stop that process, or name somebody else: --reviewer NAME.",
            ) from error

    def append(self, *lines: Mapping[str, Any]) -> None:
        """Write lines; they are on disk when this returns. Raises RunError, and writes none, if
        they cannot be.

        The time of each is later than that of the line before, also if the clock was set back: the
        latest answer counts.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        try:
            descriptor = os.open(self.path, flags, 0o666)
            try:
                with _alone(descriptor):
                    append(descriptor, b"".join(_timed(lines, _mend(descriptor))))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unwritten(self.path, error) from error


@contextlib.contextmanager
def _alone(descriptor: int) -> Iterator[None]:
    """Hold an exclusive lock on an open file, on systems that have them."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield  # closing the file releases it


def _mend(descriptor: int) -> bytes:
    """End a file's last line: keep a whole one, remove what a killed writer left.

    Returns what the file held before.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)
    data = b""
    while part := os.read(descriptor, 1 << 20):
        data += part
    if not data or data.endswith(b"\n"):
        return data
    kept = data.rfind(b"\n") + 1
    try:
        json.loads(data[kept:])
    except ValueError:
        os.truncate(descriptor, kept)
        return data[:kept]
    os.write(descriptor, b"\n")
    return data


def _timed(lines: Iterable[Mapping[str, Any]], before: bytes) -> Iterator[bytes]:
    """The text of each line, with a time after those of the lines `before` it."""
    for line in lines:
        stated = dict(line) | _later(line, before)
        text = json.dumps(stated, separators=(",", ":")).encode() + b"\n"
        before = text if "time" in stated else before
        yield text


def _later(line: Mapping[str, Any], before: bytes) -> dict[str, str]:
    """A time for `line` after that of the last line `before` that has one; empty if it is later."""
    stated = before[before.rfind(_TIME) + len(_TIME) :].partition(b'"')[0] if before else b""
    try:
        last = datetime.fromisoformat(stated.decode())
        if datetime.fromisoformat(line["time"]) > last:
            return {}
    except (ValueError, KeyError, TypeError):
        return {}
    return {"time": (last + timedelta(microseconds=1)).isoformat(timespec="microseconds")}
