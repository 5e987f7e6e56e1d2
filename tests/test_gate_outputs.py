"""JUnit, SARIF, GitHub and Markdown, read back by readers that share no code with the writers."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
import xml.sax
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from helpers.gate_runs import made_pairs, made_run, margins_of, noisescope
from helpers.planted_run import HOSTILE, planted_run
from hypothesis import given
from hypothesis import strategies as st

from noisescope.gate.formats import (
    SUMMARY_BYTES,
    command_data,
    command_property,
    commands,
    escaped,
    junit,
    markdown,
    sarif,
    write_summary,
)
from noisescope.gate.input import Subject
from noisescope.gate.verdict import Result, Row, Status, Verdict
from noisescope.storage.printable import one_line
from noisescope.storage.run import Run

ROOT = Path(__file__).resolve().parents[1]
HOSTILE_ROW = Row("id::error::x", "a b,c:%.jsonl", 4, f"{HOSTILE}\n::error::owned %0A ]]> | @you")


def verdict_of(*statuses: Status, rows: tuple[Row, ...] = (HOSTILE_ROW,)) -> Verdict:
    """A verdict with a check of each status, all told in hostile text."""
    results = tuple(
        Result(f"check{n}", status, HOSTILE, 0.2, 0.1, 0.3, 0.05, "lower", 7_000, rows)
        for n, status in enumerate(statuses)
    )
    return Verdict("runs/x", "toy <i>set</i>", "pairs.jsonl", 1000, "error", results)


EVERY = verdict_of("pass", "fail", "inconclusive", "skipped")


class Cases(xml.sax.ContentHandler):
    """What a CI server takes from JUnit XML: counts of the suite, and each case's outcome."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.outcomes: list[tuple[str, str]] = []
        self.messages: list[str] = []
        self.open: list[str] = []

    def startElement(self, name: str, attrs: Any) -> None:
        self.open.append(name)
        if name == "testsuite":
            self.counts = {k: int(attrs[k]) for k in ("tests", "failures", "errors", "skipped")}
        if name == "testcase":
            assert self.open == ["testsuites", "testsuite", "testcase"]
            assert attrs["classname"]
            assert float(attrs["time"]) >= 0
            self.outcomes.append((attrs["name"], "passed"))
        if name in ("failure", "error", "skipped"):
            assert self.open[-2] == "testcase"
            self.outcomes[-1] = (self.outcomes[-1][0], name)
            self.messages.append(attrs["message"])

    def endElement(self, name: str) -> None:
        assert self.open.pop() == name


def read_junit(text: str) -> Cases:
    reader = Cases()
    xml.sax.parseString(text.encode(), reader)
    told = Counter(outcome for _, outcome in reader.outcomes)
    assert reader.counts == {
        "tests": len(reader.outcomes),
        "failures": told["failure"],
        "errors": told["error"],
        "skipped": told["skipped"],
    }
    return reader


def test_junit_has_one_case_a_check() -> None:
    read = read_junit(junit(EVERY))
    outcomes = ["passed", "failure", "error", "skipped"]
    assert read.outcomes == [(f"check{n}", outcome) for n, outcome in enumerate(outcomes)]
    assert "<script>" in read.messages[0]
    assert "\x1b" not in read.messages[0]


#: SARIF 2.1.0, the objects used here: property -> (required, type). Written from sections 3.13 to
#: 3.54 of the standard; a property that is not listed is an error, as in its schema.
TEXT, WHOLE = str, int
OBJECTS: dict[str, dict[str, tuple[bool, Any]]] = {
    "log": {"$schema": (False, TEXT), "version": (True, TEXT), "runs": (True, ["run"])},
    "run": {
        "tool": (True, "tool"),
        "results": (False, ["result"]),
        "columnKind": (False, TEXT),
        "properties": (False, dict),
    },
    "tool": {"driver": (True, "toolComponent")},
    "toolComponent": {
        "name": (True, TEXT),
        "version": (False, TEXT),
        "rules": (False, ["reportingDescriptor"]),
    },
    "reportingDescriptor": {"id": (True, TEXT), "shortDescription": (False, "message")},
    "message": {"text": (True, TEXT)},
    "result": {
        "ruleId": (False, TEXT),
        "ruleIndex": (False, WHOLE),
        "level": (False, TEXT),
        "message": (True, "message"),
        "partialFingerprints": (False, dict),
        "locations": (False, ["location"]),
        "relatedLocations": (False, ["location"]),
    },
    "location": {
        "id": (False, WHOLE),
        "physicalLocation": (False, "physicalLocation"),
        "logicalLocations": (False, ["logicalLocation"]),
        "message": (False, "message"),
    },
    "physicalLocation": {
        "artifactLocation": (False, "artifactLocation"),
        "region": (False, "region"),
    },
    "artifactLocation": {"uri": (False, TEXT)},
    "region": {"startLine": (False, WHOLE)},
    "logicalLocation": {"name": (False, TEXT), "kind": (False, TEXT)},
}


def check_object(value: Any, kind: Any, where: str) -> None:
    """Raise AssertionError where `value` is no SARIF object (list, text, number) of this kind."""
    if isinstance(kind, list):
        assert isinstance(value, list), where
        for index, item in enumerate(value):
            check_object(item, kind[0], f"{where}[{index}]")
    elif isinstance(kind, str):
        properties = OBJECTS[kind]
        assert isinstance(value, dict), where
        assert set(value) <= set(properties), (where, set(value) - set(properties))
        for name, (required, inner) in properties.items():
            assert name in value or not required, f"{where}.{name} is missing"
            if name in value:
                check_object(value[name], inner, f"{where}.{name}")
    else:
        assert type(value) is kind, where


def read_sarif(text: str) -> list[dict[str, Any]]:
    """The results, after checking the log against the standard's rules beyond mere types."""
    log = json.loads(text)
    check_object(log, "log", "log")
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    assert run["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(set(rules)) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        places = result.get("locations", []) + result.get("relatedLocations", [])
        ids = [place["id"] for place in places if "id" in place]
        assert len(set(ids)) == len(ids)
        for place in places:
            uri = place["physicalLocation"]["artifactLocation"]["uri"]
            assert re.fullmatch(r"[A-Za-z0-9._~%/-]+", uri)
            assert not urlsplit(uri).scheme
            assert place["physicalLocation"].get("region", {"startLine": 1})["startLine"] >= 1
    return list(run["results"])


def test_sarif_has_one_result_a_breach_at_its_worst_pair() -> None:
    results = read_sarif(sarif(EVERY, lambda source: f"data/{source}"))
    assert [(result["ruleId"], result["level"]) for result in results] == [
        ("check1", "error"),
        ("check2", "warning"),
    ]
    (place,) = results[0]["locations"]
    physical = place["physicalLocation"]
    assert unquote(physical["artifactLocation"]["uri"]) == "data/a b,c:%.jsonl"
    assert physical["region"] == {"startLine": 5}
    table = verdict_of("fail", rows=(replace(HOSTILE_ROW, source="x.parquet"),))
    (other,) = read_sarif(sarif(table, lambda source: source))
    assert "region" not in other["locations"][0]["physicalLocation"]
    (whole,) = read_sarif(sarif(verdict_of("fail", rows=()), lambda source: source))
    assert whole["locations"] == [
        {"physicalLocation": {"artifactLocation": {"uri": "pairs.jsonl"}}}
    ]
    assert "relatedLocations" not in whole


def test_the_sarif_reader_can_refuse() -> None:
    for broken in ('{"version": "2.1.0"}', '{"version": "2.1.0", "runs": [{"tool": {}}]}'):
        with pytest.raises(AssertionError):
            read_sarif(broken)


class Tags(HTMLParser):
    """Every tag a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)


def test_markdown_shows_hostile_text_as_it_is() -> None:
    text = markdown(EVERY)
    reader = Tags()
    reader.feed(re.sub("`[^`\n]*`", "", text))  # nothing in a code span is markup
    assert reader.tags == []
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {re.sub(r"\\\|", "", line).count("|") for line in table[:6]} == {5}
    assert "@you" not in re.sub("`[^`\n]*`", "", text)
    assert html.unescape(escaped(HOSTILE)) == one_line(HOSTILE)


def test_every_form_counts_rows_from_one_as_editors_do() -> None:
    listed = verdict_of("fail", rows=(Row("id", "pairs.jsonl", 0, "bad"),))
    annotations = "\n".join(commands(listed, lambda source: source))
    for text in (junit(listed), markdown(listed), annotations):
        assert "pairs.jsonl:1" in text
        assert "pairs.jsonl:0" not in text


@given(st.text())
def test_escapes_hold_for_any_text(text: str) -> None:
    assert html.unescape(escaped(text)) == html.unescape(html.escape(one_line(text)))
    assert not re.search(r"[<>|`*_\[\]@]", escaped(text))
    assert not re.search(r"[\r\n]", command_data(text))
    assert not re.search(r"[\r\n:,]", command_property(text))
    decoded = command_data(text)
    for code, character in (("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
        decoded = decoded.replace(code, character)
    assert decoded == "\n".join(one_line(line) for line in text.splitlines())
    row = (Row(text, text, 0, text),)
    read_junit(junit(verdict_of("fail", rows=row)))
    read_sarif(sarif(verdict_of("fail", rows=row), lambda source: source))


def test_at_most_ten_annotations_each_on_its_own_line() -> None:
    lines = commands(EVERY, lambda source: source)
    assert [line.partition(" ")[0] for line in lines] == ["::error", "::warning"]
    assert all("\n" not in line for line in lines)
    assert "file=a b%2Cc%3A%25.jsonl" in lines[0]
    assert len(re.findall("::", lines[0].replace("::error::", "", 1))) >= 2
    many = commands(verdict_of(*["fail"] * 14), lambda source: source)
    assert len(many) == 10
    assert "5 more checks" in many[-1]
    assert len(commands(verdict_of(*["fail"] * 10), lambda source: source)) == 10


def test_the_step_summary_is_cut_by_lines_at_one_mebibyte(tmp_path: Path) -> None:
    rows = tuple(Row(str(n), "pairs.jsonl", n, "é" * 300) for n in range(4000))
    path = tmp_path / "summary.md"
    path.write_text("what an earlier command of the step wrote\n")
    write_summary(verdict_of("fail", rows=rows), path)
    content = path.read_bytes()
    assert SUMMARY_BYTES - 2000 < len(content) <= SUMMARY_BYTES
    kept = content.decode().count("| `pairs.jsonl:")
    assert f"and {4000 - kept:,} more lines" in content.decode()
    write_summary(verdict_of("fail", rows=rows), path)
    assert path.read_bytes().startswith(content)
    assert path.stat().st_size <= SUMMARY_BYTES


def test_dataset_text_on_the_screen_starts_no_workflow_command(tmp_path: Path) -> None:
    """GitHub reads commands at the start of a line, after white space, also in a table's cell."""
    name = "::add-mask::secret"
    pairs = [replace(pair, annotator=name) for pair in made_pairs(300)]
    run = made_run(tmp_path, pairs, margins_of(300, 0.0, 0))
    actions = {"GITHUB_ACTIONS": "true", "COLUMNS": "80"}
    wide = noisescope("gate", str(run.directory), "--min-labels", "5", cwd=tmp_path, **actions)
    lines = [line.strip() for line in wide.stdout.splitlines()]
    stop = next(n for n, line in enumerate(lines) if line.startswith("::stop-commands::"))
    token = lines[stop].rpartition("::")[2]
    told = [n for n, line in enumerate(lines) if line.startswith("::add-mask")]
    assert told, wide.stdout
    assert stop < min(told)
    assert max(told) < lines.index(f"::{token}::")


def test_the_verdict_is_shown_even_where_a_file_cannot_be_written(tmp_path: Path) -> None:
    run = made_run(tmp_path, made_pairs(300), margins_of(300, 0.0, 0))
    (tmp_path / "file").write_text("")
    done = noisescope("gate", str(run.directory), "--junit", "file/gate.xml", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot write file/gate.xml" in done.stderr
    assert "reliability" in done.stdout


def test_places_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(tmp_path, made_pairs(20), margins_of(20, 0.0, 0))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    for resolved in ("data/pairs.jsonl", tmp_path / "data" / "pairs.jsonl", tmp_path / "data"):
        run.write_manifest(run.manifest() | {"resolved": str(resolved)})
        assert Subject(run).place_of("pairs.jsonl") == "data/pairs.jsonl"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """800 pairs, 15 % flips, 45 % of one annotator's, hostile text in the worst pair."""
    pairs = made_pairs(800)
    margins = margins_of(800, 0.15, 0)
    margins[::5] = margins_of(160, 0.45, 1)
    pairs[0], margins[0] = replace(pairs[0], prompt=HOSTILE), -40.0
    return made_run(tmp_path_factory.mktemp("noisy"), pairs, margins)


def test_all_outputs_of_the_command_inside_github_actions(noisy: Run, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    files = ("--junit", "gate.xml", "--sarif", "gate.sarif", "--markdown", "gate.md")
    actions = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    done = noisescope("gate", str(noisy.directory), *files, "--json", cwd=tmp_path, **actions)
    assert done.returncode == 1, done.stderr
    content = json.loads(done.stdout)
    failed = [check["check"] for check in content["checks"] if check["status"] == "fail"]
    assert failed == ["flip_rate"]
    cases = read_junit((tmp_path / "gate.xml").read_text())
    assert [name for name, outcome in cases.outcomes if outcome == "failure"] == failed
    results = read_sarif((tmp_path / "gate.sarif").read_text())
    assert [result["ruleId"] for result in results] == failed
    assert results[0]["locations"][0]["physicalLocation"]["region"] == {"startLine": 1}
    assert summary.read_text() == (tmp_path / "gate.md").read_text()
    told = [line for line in done.stderr.splitlines() if line.startswith("::")]
    assert len(told) == 1
    assert told[0].startswith("::error title=noisescope gate%3A flip_rate,file=pairs.jsonl::")


def test_the_action_gates_and_hands_on_the_exit_code(tmp_path: Path) -> None:
    run = planted_run(tmp_path / "runs")
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    (gate,) = (step for step in action["runs"]["steps"] if step.get("id") == "gate")
    inputs = {name: given["default"] for name, given in action["inputs"].items()}
    inputs |= {"target": str(run.directory), "arguments": "--max-flip-rate\n0.05\n"}
    environment = {
        name: re.sub(r"\$\{\{ inputs\.(\S+) \}\}", lambda found: inputs[found[1]], value)
        for name, value in gate["env"].items()
    }
    (tmp_path / "noisescope").write_text(f'#!/bin/sh\nexec {sys.executable} -m noisescope "$@"\n')
    (tmp_path / "noisescope").chmod(0o755)
    environment |= {"GITHUB_OUTPUT": "output.txt", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", gate["run"]],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "output.txt").read_text() == "exit-code=1\n"
    assert read_sarif((tmp_path / action["outputs"]["sarif"]["value"]).read_text())
    assert (tmp_path / "noisescope-gate.xml").is_file()
    assert (tmp_path / "noisescope-report.html").is_file(), done.stderr


def test_a_closed_output_is_no_failed_gate() -> None:
    """The exit code of `noisescope ... | head`, that of a process that SIGPIPE ends."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "noisescope", "--version"], stdout=writer)
    os.close(writer)
    assert done.returncode == 141
