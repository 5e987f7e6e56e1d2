"""Write a verdict as Markdown, GitHub annotations and step summary, JUnit XML and SARIF 2.1.0.

Text of the dataset is untrusted in all of them: it is made printable, and what is markup in a
format is escaped.

Markdown: a table of checks, then the rows behind each failure. GitHub: at most 10 annotations per
step and a summary of at most 1 MiB; % CR LF, and : and , in properties, are escaped, so that text
cannot end or start a workflow command. JUnit: one test case per check; fail is a <failure>,
inconclusive an <error>. SARIF: one rule per check and one result per failed or inconclusive one;
the worst pair is its location (without pairs, the dataset: GitHub requires a location), the others
are related locations; rows of JSON lines are given as line numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

from noisescope import __version__
from noisescope.errors import RunError
from noisescope.gate.verdict import Result, Row, Verdict
from noisescope.storage.printable import one_line

#: Characters with a meaning in Markdown, HTML, or GitHub's automatic links and mentions; those of
#: plain prose and numbers stay as they are, for mail and chat, which know no entities.
_MARKUP = re.compile(r"[\\`*_\[\]<>#|~&@$]|:(?=//)|(?<=www)\.", re.IGNORECASE)


def escaped(text: str) -> str:
    """Escape markup characters as numeric entities, for Markdown and HTML."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", one_line(text))


def code(text: str) -> str:
    """A Markdown code span in a table: nothing in it is markup, a link or a mention."""
    plain = one_line(text).replace("`", "'").replace("|", "\\|").strip()
    return f"`{plain}`" if plain else ""


def command_data(text: str) -> str:
    """Escape the message of a GitHub workflow command; line breaks are kept."""
    lines = "\n".join(one_line(line) for line in text.splitlines())
    return lines.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def command_property(text: str) -> str:
    """Escape a property (file, title) of a GitHub workflow command."""
    return command_data(text).replace(":", "%3A").replace(",", "%2C")


_SIGNS = {"pass": "✅", "fail": "❌", "inconclusive": "❔", "skipped": "➖"}


def markdown(verdict: Verdict, limit: int | None = None) -> str:
    """Render Markdown in at most `limit` bytes; a note counts the lines that do not fit."""
    lines = [
        f"## noisescope {escaped(verdict.summary)}",
        "",
        f"{verdict.pairs:,} pairs of {code(verdict.dataset)}"
        + (f", against {code(verdict.baseline)}" if verdict.baseline else ""),
        "",
        "| | check | allowed | found |",
        "|---|---|---|---|",
        *(_line(result) for result in verdict.ordered),
    ]
    for result in verdict.ordered:
        if result.rows:
            lines += [
                "",
                f"### {code(result.check)}",
                "",
                "| row | pair | |",
                "|---|---|---|",
            ]
            lines += [
                f"| {code(row.place)} | {code(row.pair_id)} | {code(row.detail)} |"
                for row in result.rows
            ]
    return _cut(lines, limit)


def _line(result: Result) -> str:
    allowed = "" if result.threshold is None else f"{result.threshold:g}"
    more = f"; about {result.pairs_needed:,} pairs are needed" if result.pairs_needed else ""
    found = escaped(result.message) + more
    return f"| {_SIGNS[result.status]} | {code(result.check)} | {allowed} | {found} |"


def _cut(lines: list[str], limit: int | None) -> str:
    """Join the lines that fit, with a note about those that do not."""
    sizes = [len(line.encode()) + 1 for line in lines]
    if limit is None or sum(sizes) <= limit:
        return "\n".join(lines) + "\n"
    note = "\n… and {:,} more lines, omitted for size.\n"
    room = limit - len(note.format(len(lines)).encode())
    kept = 0
    while kept < len(lines) and sizes[kept] <= room:
        room -= sizes[kept]
        kept += 1
    return "".join(f"{line}\n" for line in lines[:kept]) + note.format(len(lines) - kept)


MOST_ANNOTATIONS = 10
SUMMARY_BYTES = 1 << 20
_COMMANDS = {"fail": "error", "inconclusive": "warning"}


def commands(verdict: Verdict, place_of: Callable[[str], str]) -> list[str]:
    """Render workflow commands, failures first; the last one counts those that do not fit."""
    shown = verdict.of("fail") + verdict.of("inconclusive")
    lines = [_annotation(result, place_of) for result in shown]
    if len(lines) > MOST_ANNOTATIONS:
        more = len(lines) - MOST_ANNOTATIONS + 1
        lines = lines[: MOST_ANNOTATIONS - 1]
        lines.append(f"::error title=noisescope gate::and {more} more checks; see the summary")
    return lines


def _annotation(result: Result, place_of: Callable[[str], str]) -> str:
    properties = {"title": f"noisescope gate: {result.check}"}
    text = result.message
    if result.pairs_needed is not None:
        text += f"; about {result.pairs_needed:,} pairs are needed"
    if result.rows:
        worst = result.rows[0]
        properties["file"] = place_of(worst.source)
        text += "".join(f"\n{row.place} {row.detail}" for row in result.rows[:5])
    stated = ",".join(f"{key}={command_property(value)}" for key, value in properties.items())
    return f"::{_COMMANDS[result.status]} {stated}::{command_data(text)}"


def write_summary(verdict: Verdict, path: Path) -> None:
    """Append the Markdown to the step's summary file, within its size limit."""
    try:
        used = path.stat().st_size if path.exists() else 0
        text = markdown(verdict, max(SUMMARY_BYTES - used, 0))
        if len(text.encode()) <= SUMMARY_BYTES - used:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise RunError(f"{path}: the step summary cannot be written ({error.strerror})") from error


#: Status -> element.
_ELEMENTS = {"fail": "failure", "inconclusive": "error", "skipped": "skipped"}


def junit(verdict: Verdict) -> str:
    """Render JUnit XML."""
    counts = {
        "tests": len(verdict.results),
        "failures": len(verdict.of("fail")),
        "errors": len(verdict.of("inconclusive")),
        "skipped": len(verdict.of("skipped")),
    }
    attributes = {name: str(count) for name, count in counts.items()}
    root = ET.Element("testsuites", {"name": "noisescope gate", **attributes})
    suite = ET.SubElement(root, "testsuite", {"name": one_line(verdict.dataset), **attributes})
    for result in verdict.results:
        name = {
            "classname": f"noisescope.{one_line(verdict.dataset)}",
            "name": one_line(result.check),
        }
        case = ET.SubElement(suite, "testcase", {**name, "time": "0"})
        if result.status in _ELEMENTS:
            message = {"message": one_line(result.message)}
            element = ET.SubElement(case, _ELEMENTS[result.status], message)
            if result.status != "skipped":
                element.set("type", result.status)
                element.text = _text(result)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _text(result: Result) -> str:
    """Describe the result, then the worst rows, one per line."""
    lines = [one_line(result.message)]
    if result.threshold is not None:
        lines.append(f"threshold {result.threshold:g}, compared: {result.bound}")
    if result.pairs_needed is not None:
        lines.append(f"about {result.pairs_needed:,} pairs are needed")
    lines += [one_line(f"{row.place} {row.pair_id} {row.detail}") for row in result.rows]
    return "\n".join(lines)


SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS = {"fail": "error", "inconclusive": "warning"}
_LINES = re.compile(r"\.(jsonl|ndjson)(\.gz)?$")


def sarif(verdict: Verdict, place_of: Callable[[str], str]) -> str:
    """Render SARIF; `place_of` returns the path of a pair's source."""
    rules = [
        {"id": one_line(result.check), "shortDescription": {"text": one_line(result.message)}}
        for result in verdict.results
    ]
    results = [
        _result(result, index, place_of, quote(one_line(verdict.resolved) or "dataset", safe="/"))
        for index, result in enumerate(verdict.results)
        if result.status in _LEVELS
    ]
    driver = {"name": "noisescope", "version": __version__, "rules": rules}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": results,
        "properties": {"dataset": one_line(verdict.dataset), "verdict": verdict.word},
    }
    content = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _result(
    result: Result, index: int, place_of: Callable[[str], str], whole: str
) -> dict[str, Any]:
    text = one_line(result.message)
    if result.pairs_needed is not None:
        text += f"; about {result.pairs_needed:,} pairs are needed"
    content: dict[str, Any] = {
        "ruleId": one_line(result.check),
        "ruleIndex": index,
        "level": _LEVELS[result.status],
        "message": {"text": text},
        "partialFingerprints": {"noisescopeCheck/v1": one_line(result.check)},
    }
    places = [_location(row, place_of) for row in result.rows]
    first = places[0] if places else {"physicalLocation": {"artifactLocation": {"uri": whole}}}
    content["locations"] = [{key: value for key, value in first.items() if key != "message"}]
    if places:
        content["relatedLocations"] = [
            {"id": number, **place} for number, place in enumerate(places, 1)
        ]
    return content


def _location(row: Row, place_of: Callable[[str], str]) -> dict[str, Any]:
    place = one_line(place_of(row.source)) or "dataset"
    physical: dict[str, Any] = {"artifactLocation": {"uri": quote(place, safe="/")}}
    if _LINES.search(place):
        physical["region"] = {"startLine": row.row + 1}
    name = one_line(f"row {row.row + 1} {row.pair_id}")
    return {
        "physicalLocation": physical,
        "logicalLocations": [{"name": name, "kind": "element"}],
        "message": {"text": one_line(f"{name}: {row.detail}")},
    }
