"""A verdict inside GitHub Actions: annotations and the step summary, within GitHub's limits.

At most 10 annotations a step; a step summary of at most 1 MiB. Text of the dataset cannot end a
workflow command or start one: % CR LF, and : and , in properties, are escaped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from noisescope.errors import RunError
from noisescope.gate.escaping import command_data, command_property
from noisescope.gate.markdown import markdown
from noisescope.gate.verdict import Result, Verdict

MOST_ANNOTATIONS = 10
SUMMARY_BYTES = 1 << 20
_COMMANDS = {"fail": "error", "inconclusive": "warning"}


def commands(verdict: Verdict, place_of: Callable[[str], str]) -> list[str]:
    """Workflow commands, breaches first; the last one counts what does not fit."""
    shown = verdict.of("fail") + verdict.of("inconclusive")
    lines = [_annotation(result, place_of) for result in shown]
    if len(lines) > MOST_ANNOTATIONS:
        more = len(lines) - MOST_ANNOTATIONS + 1
        lines = lines[: MOST_ANNOTATIONS - 1]
        lines.append(f"::error title=noisescope gate::and {more} more checks; see the summary")
    return lines


def _annotation(result: Result, place_of: Callable[[str], str]) -> str:
    properties = {"title": f"noisescope gate: {result.check}"}
    text = result.said
    if result.pairs_needed is not None:
        text += f"; about {result.pairs_needed:,} pairs are needed"
    if result.rows:
        worst = result.rows[0]
        properties["file"] = place_of(worst.source)
        text += "\nrows, counted from 0:" if worst.source else ""
        text += "".join(f"\n{row.source}:{row.row} {row.detail}" for row in result.rows[:5])
    stated = ",".join(f"{key}={command_property(value)}" for key, value in properties.items())
    return f"::{_COMMANDS[result.status]} {stated}::{command_data(text)}"


def write_summary(verdict: Verdict, path: Path) -> None:
    """Append the Markdown to the step's summary file, cut to what the limit leaves."""
    try:
        used = path.stat().st_size if path.exists() else 0
        text = markdown(verdict, max(SUMMARY_BYTES - used, 0))
        if len(text.encode()) <= SUMMARY_BYTES - used:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise RunError(f"{path}: the step summary cannot be written ({error.strerror})") from error
