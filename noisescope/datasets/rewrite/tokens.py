"""Tokens of JSON text: read a row, and write it changed out of its own tokens.

    old, trouble = object_of(line)
    changed_line(line, old, {**old, "chosen": old["rejected"], "rejected": old["chosen"]})

A changed value that the row held elsewhere is that other token, byte for byte.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json.scanner import make_scanner
from pathlib import Path
from typing import IO, Any, cast

BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_BLANK = " \t\r\n"
_SPACE = re.compile(f"[{_BLANK}]*")
decode = json.JSONDecoder().raw_decode
#: `decode` without its frame: every line passes here. StopIteration where no value begins.
_scan = make_scanner(cast(Any, json.JSONDecoder()))


@contextmanager
def opened(path: Path, mode: str) -> Iterator[IO[bytes]]:
    """A file, through gzip where its name says so; no time stamp, for equal bytes each time."""
    if not path.name.lower().endswith(".gz"):
        with path.open(mode) as plain:
            yield plain
    else:
        with path.open(mode) as raw, gzip.GzipFile("", mode, 1, raw, mtime=0) as zipped:
            yield cast(IO[bytes], zipped)


def object_of(line: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        text = line.decode("utf-8")
        begin = 0 if text[:1] == "{" else after_space(text, int(text.startswith(BOM)))
        value, end = _scan(text, begin)
        if end != len(text) and after_space(text, end) != len(text):
            raise ValueError(f"Extra data: character {end}")
    except StopIteration:
        return None, "not valid JSON (Expecting value)"
    except (ValueError, RecursionError) as error:
        return None, f"not valid JSON ({error})"
    return (value, "") if isinstance(value, dict) else (None, "not a JSON object")


def changed_line(line: bytes, old: Mapping[str, Any], new: Mapping[str, Any]) -> bytes:
    text = line.decode("utf-8")
    begin, end = text.index("{"), text.rindex("}") + 1
    return (text[:begin] + recoded(text, begin, end, old, new) + text[end:]).encode()


def after_space(text: str, at: int) -> int:
    if at < len(text) and text[at] not in _BLANK:
        return at
    match = _SPACE.match(text, at)
    return match.end() if match else at


def members(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """(key, begin, end) of each value of the JSON object that begins at `at`."""
    at = after_space(text, at + 1)
    while text[at] != "}":
        key, at = decode(text, at)
        begin = at + 2 if text[at : at + 2] == ": " else after_space(text, at) + 1
        begin = after_space(text, begin)
        _, end = decode(text, begin)
        yield key, begin, end
        at = after_space(text, end)
        at = after_space(text, at + 1) if text[at] == "," else at


def items(text: str, at: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of each element of the JSON array that begins at `at`."""
    at = after_space(text, at + 1)
    while text[at] != "]":
        _, end = decode(text, at)
        yield at, end
        at = after_space(text, end)
        at = after_space(text, at + 1) if text[at] == "," else at


def recoded(text: str, begin: int, end: int, old: Any, new: Any) -> str:
    """JSON of `new` made from the tokens of text[begin:end], which is JSON of `old`."""
    if isinstance(old, dict) and isinstance(new, Mapping) and old.keys() == new.keys():
        spans: dict[Any, tuple[int, int]] = {key: (a, b) for key, a, b in members(text, begin)}
        values: Mapping[Any, Any] = new
        before: Mapping[Any, Any] = old
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        spans = dict(enumerate(items(text, begin)))
        values, before = dict(enumerate(new)), dict(enumerate(old))
    else:
        return json.dumps(new, ensure_ascii=text.isascii())
    taken = origins(before, values)
    pieces, at = [], begin
    for key in sorted(taken, key=lambda key: spans[key]):
        start, stop = spans[key]
        origin = taken[key]
        if origin is None:
            piece = recoded(text, start, stop, before[key], values[key])
        else:
            piece = text[slice(*spans[origin])]
        pieces += [text[at:start], piece]
        at = stop
    return "".join([*pieces, text[at:end]])


def origins(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> dict[Any, Any]:
    """For each key whose value changed: the changed key it now takes its value from, or None."""
    changed = [key for key in old if not _same(old[key], new[key])]
    free = list(changed)
    origins: dict[Any, Any] = {}
    for key in changed:
        origin = next((other for other in free if _same(old[other], new[key])), None)
        if origin is not None:
            free.remove(origin)
        origins[key] = origin
    return origins


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))
