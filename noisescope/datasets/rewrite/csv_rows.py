"""The CSV half of `rewriting`: records keep their bytes, spacing and quotes included."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, final

from noisescope.datasets.readers import MAX_ROW, bounded_lines
from noisescope.datasets.rewrite.tables import CHUNK_ROWS, Change
from noisescope.datasets.rewrite.tokens import BOM, opened, origins


@final
class _Tap:
    """Lines of a stream, remembering those that a reader took for its latest record."""

    def __init__(self, stream: Iterator[str]) -> None:
        self.stream = stream
        self.taken: list[str] = []

    def __iter__(self) -> _Tap:
        return self

    def __next__(self) -> str:
        line = next(self.stream)
        self.taken.append(line)
        return line

    def record(self) -> str:
        taken, self.taken = "".join(self.taken), []
        return taken


def rewrite_csv(source: Path, target: Path, change: Change) -> None:
    csv.field_size_limit(MAX_ROW)
    delimiter = "\t" if source.name.lower().removesuffix(".gz").endswith(".tsv") else ","
    with opened(source, "rb") as stream, opened(target, "wb") as out:
        text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
        tap = _Tap(bounded_lines(text, source))
        reader = csv.reader(tap, delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        if header:
            header[0] = header[0].removeprefix(BOM).strip('"')
        out.write(tap.record().encode("utf-8", "surrogateescape"))
        records = _records(reader, tap, header)
        number = 0
        while chunk := list(islice(records, CHUNK_ROWS)):
            stated = [at for at, (_, values, trouble) in enumerate(chunk) if values or trouble]
            rows = [(number + i, *chunk[at][1:]) for i, at in enumerate(stated)]
            number += len(rows)
            raws = [raw for raw, _, _ in chunk]
            for index, new in change(rows).items():
                at = stated[index]
                old = chunk[at][1] or {}
                raws[at] = "" if new is None else _changed_record(raws[at], old, new, delimiter)
            out.writelines(raw.encode("utf-8", "surrogateescape") for raw in raws)


def _records(
    reader: Iterator[list[str]], tap: _Tap, header: list[str]
) -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    """(raw text, values or None, trouble) of each record; a blank line has neither."""
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            if rest := tap.record():
                yield rest, None, ""
            return
        except csv.Error as error:
            yield tap.record(), None, f"not valid CSV ({error})"
            continue
        raw = tap.record()
        if not fields:
            yield raw, None, ""
        elif len(fields) != len(header):
            yield raw, None, f"{len(fields)} fields under {len(header)} columns"
        else:
            yield raw, dict(zip(header, fields, strict=True)), ""


def _changed_record(
    raw: str, old: Mapping[str, str], new: Mapping[str, Any], delimiter: str
) -> str:
    field = re.compile(rf'"(?:[^"]|"")*"|[^{re.escape(delimiter)}\r\n]*')
    spans, at = {}, 0
    for name in old:
        match = field.match(raw, at)
        assert match is not None  # the pattern matches nothing, too
        spans[name] = match.span()
        at = match.end() + 1
    pieces, at = [], 0
    for name, origin in sorted(origins(old, new).items(), key=lambda item: spans[item[0]]):
        begin, end = spans[name]
        piece = raw[slice(*spans[origin])] if origin is not None else _quoted(str(new[name]))
        pieces += [raw[at:begin], piece]
        at = end
    return "".join([*pieces, raw[at:]])


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'
