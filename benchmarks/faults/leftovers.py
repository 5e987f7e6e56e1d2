"""Compare the results of two runs: the same bytes except for times, no row lost or repeated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Keys of JSON objects that may differ between two runs: times, and checksums over them.
TIMES = frozenset({"finished", "timings", "checksum", "seconds", "created", "elapsed"})
#: The same of lines of reviews: the times and ids of judgements.
OF_LINES = frozenset({"time", "id", "draw", "seed"})
#: Files that are no result: what an interrupted write leaves, and the lock.
IGNORED = (".partial-", ".lock")
#: A folder of records about inodes and times of inputs, which differ between two places.
RECORDS = ".cache/finished"
#: Files to which a judgement a line is appended.
RECORDED = ("reviews.jsonl", "answers.jsonl")
#: Columns whose values together are unique in a table.
KEYS = ("pair_id", "replica", "step")


@dataclass(frozen=True)
class Case:
    """A job of one or more commands, and the directories it writes."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    results: tuple[str, ...]


@dataclass
class Outcome:
    """Counts of kills and of the runs after them; `faults` are all differences found."""

    kills: int = 0
    stops: int = 0
    by_write: int = 0
    lost_rows: int = 0
    repeated_rows: int = 0
    leftovers: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Add the counts and faults of another outcome."""
        self.kills += other.kills
        self.stops += other.stops
        self.by_write += other.by_write
        self.lost_rows += other.lost_rows
        self.repeated_rows += other.repeated_rows
        self.leftovers += other.leftovers
        self.refused += other.refused
        self.faults += other.faults


@dataclass(frozen=True)
class Whole:
    """Results of an uninterrupted run, and the seconds and writes of each of its commands."""

    files: Mapping[str, str]
    rows: Mapping[str, int]
    seconds: tuple[float, ...]
    writes: tuple[int, ...]


def compare(case: Case, place: Path, whole: Whole, found: Outcome) -> None:
    """Add to `found` the differences between `place` and an uninterrupted run."""
    mine = contents(place, case)
    for name in sorted(mine.keys() | whole.files.keys()):
        if mine.get(name) != whole.files.get(name):
            state = "lost" if name not in mine else "other bytes" if name in whole.files else "new"
            found.faults.append(f"{case.name}: {name}: {state}")
    counts, repeated = rows(place, case)
    found.repeated_rows += repeated
    found.lost_rows += sum(max(0, n - counts.get(name, 0)) for name, n in whole.rows.items())
    found.leftovers += sum(path.name.startswith(IGNORED[0]) for path in place.rglob("*"))


def contents(place: Path, case: Case) -> dict[str, str]:
    """Return the SHA-256 of every result file by its name; of JSON files without their times."""
    found = {}
    for result in case.results:
        top = place / result
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            name = path.relative_to(place).as_posix()
            if path.is_file() and not path.name.startswith(IGNORED) and RECORDS not in name:
                found[name] = hashlib.sha256(_timeless(path)).hexdigest()
    return found


def _timeless(path: Path) -> bytes:
    """Return the bytes of a file; JSON without times, records of judgements in no order."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(_without_times(json.loads(content)), sort_keys=True).encode()
    if path.name in RECORDED:
        kept = [{k: v for k, v in line.items() if k not in OF_LINES} for line in records(content)]
        return "\n".join(sorted(json.dumps(line, sort_keys=True) for line in kept)).encode()
    return content


def records(content: bytes) -> list[dict[str, Any]]:
    """The whole lines of a file of records: a torn one is none."""
    found = []
    for line in content.splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _judgement(line: Mapping[str, Any]) -> bytes:
    """What makes a record the only one: whose judgement of what."""
    names = ("kind", "reviewer", "content_id", "draw") if "kind" in line else ("key", "vote")
    return json.dumps([line.get(name) for name in names]).encode()


def rows(place: Path, case: Case) -> tuple[dict[str, int], int]:
    """Count the rows of every table of results, and how many are repeated."""
    import pyarrow.parquet as pq

    counts, repeated = {}, 0
    for result in case.results:
        for path in sorted((place / result).rglob("*.parquet")):
            if path.name.startswith(IGNORED):
                continue
            table = pq.read_table(path)
            counts[path.relative_to(place).as_posix()] = table.num_rows
            keys = [name for name in KEYS if name in table.column_names]
            if keys:
                distinct = len(set(zip(*(table.column(k).to_pylist() for k in keys), strict=True)))
                repeated += table.num_rows - distinct
        for path in sorted((place / result).rglob("*.jsonl")):
            lines = path.read_bytes().splitlines()
            if path.name in RECORDED:
                lines = [_judgement(line) for line in records(path.read_bytes())]
            counts[path.relative_to(place).as_posix()] = len(lines)
            repeated += len(lines) - len(set(lines))
    return counts, repeated
