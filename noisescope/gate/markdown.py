"""A verdict as Markdown: a table of checks, then the rows behind each breach."""

from __future__ import annotations

from noisescope.gate.escaping import markdown as escaped
from noisescope.gate.verdict import Result, Verdict

_SIGNS = {"pass": "✅", "fail": "❌", "inconclusive": "❔", "skipped": "➖"}


def markdown(verdict: Verdict, limit: int | None = None) -> str:
    """The document; at most `limit` bytes of UTF-8, whole lines, the rest counted in a note."""
    lines = [
        f"## noisescope {escaped(verdict.said)}",
        "",
        f"{verdict.pairs:,} pairs of {escaped(verdict.dataset)}"
        + (f", against {escaped(verdict.baseline)}" if verdict.baseline else ""),
        "",
        "| | check | allowed | found |",
        "|---|---|---|---|",
        *(_line(result) for result in verdict.results),
    ]
    for result in verdict.results:
        if result.rows:
            lines += [
                "",
                f"### {escaped(result.check)}",
                "",
                "| row, from 0 | pair | |",
                "|---|---|---|",
            ]
            lines += [
                f"| {escaped(f'{row.source}:{row.row}')} | {escaped(row.pair_id)} "
                f"| {escaped(row.detail)} |"
                for row in result.rows
            ]
    return _cut(lines, limit)


def _line(result: Result) -> str:
    allowed = "" if result.threshold is None else f"{result.threshold:g}"
    more = f"; about {result.pairs_needed:,} pairs are needed" if result.pairs_needed else ""
    found = escaped(result.said) + more
    return f"| {_SIGNS[result.status]} | {escaped(result.check)} | {allowed} | {found} |"


def _cut(lines: list[str], limit: int | None) -> str:
    """Lines joined, as many as fit with the note about those that do not."""
    sizes = [len(line.encode()) + 1 for line in lines]
    if limit is None or sum(sizes) <= limit:
        return "\n".join(lines) + "\n"
    note = "\n… and {:,} more lines, left out for size.\n"
    room = limit - len(note.format(len(lines)).encode())
    kept = 0
    while kept < len(lines) and sizes[kept] <= room:
        room -= sizes[kept]
        kept += 1
    return "".join(f"{line}\n" for line in lines[:kept]) + note.format(len(lines) - kept)
