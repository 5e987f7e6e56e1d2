"""What a gate allows: settings of `[gate]`, of a policy file and of flags, checked all at once.

    policy = read_policy(flags={"max_flip_rate": ["0.1"]}, table=workspace_table)

Flags override files. A value named by two files, or twice by flags, is a fault, like an unknown
key or a threshold that no dataset could meet or breach; all faults are told together.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

from noisescope.errors import UsageError

#: How a setting is switched off, in files and flags.
OFF = "off"


@final
@dataclass(frozen=True)
class Rule:
    """A house rule: every row that its SELECT returns is a breach."""

    name: str
    sql: str


@final
@dataclass(frozen=True)
class Policy:
    """Thresholds of a gate; None switches a check off. docs/gate.md gives each default's reason."""

    max_flip_rate: float | None = 0.03
    flip_rate_bound: str = "lower"
    max_mislabelled: float | None = None
    mislabelled_bound: str = "lower"
    max_suspects: float | None = None
    suspect_p: float = 0.5
    max_contested: float | None = None
    min_accuracy: float | None = None
    min_reliability: float | None = 0.5
    min_labels: int | None = None
    max_length_auroc: float | None = 0.95
    max_giveaway_auroc: float | None = 0.75
    max_side_imbalance: float | None = 0.1
    max_ties: float | None = None
    max_duplicates: float | None = 0.01
    max_contradictions: float | None = 0.05
    max_near_duplicates: float | None = None
    max_faults: float | None = 0.01
    max_encoding_faults: float | None = 0.01
    max_growth: float | None = 0.05
    detect: float = 0.1
    inconclusive: str = "error"
    rules: tuple[Rule, ...] = ()


#: What each number may be, ends included, and what it says; the help of its flag.
RANGES: dict[str, tuple[float, float, str]] = {
    "max_flip_rate": (0, 0.49, "Share of labels wrong however easy the pair."),
    "max_mislabelled": (0, 0.99, "Share of labels most people would not give."),
    "max_suspects": (0, 0.99, "Share of pairs with p_wrong above --suspect-p."),
    "suspect_p": (0.01, 0.99, "What --max-suspects counts as a suspect."),
    "max_contested": (0, 0.99, "Share of pairs on which people would split."),
    "min_accuracy": (0.5, 1, "Held-out accuracy of the replicas."),
    "min_reliability": (0.01, 0.99, "Reliability of every annotator, 1 - flip rate."),
    "min_labels": (1, 1e9, "Labels of every annotator."),
    "max_length_auroc": (0.5, 0.99, "AUROC of length alone for the label."),
    "max_giveaway_auroc": (0.5, 0.99, "AUROC of one mark in the texts for the label."),
    "max_side_imbalance": (0, 0.49, "Distance of the first side's share from one half."),
    "max_ties": (0, 0.99, "Share of rows that are ties."),
    "max_duplicates": (0, 0.99, "Share of labels one annotator gave before."),
    "max_contradictions": (0, 0.99, "Share of contents labelled both ways."),
    "max_near_duplicates": (0, 0.99, "Share of distinct prompts close to another."),
    "max_faults": (0, 0.99, "Share of rows without a usable preference, ties apart."),
    "max_encoding_faults": (0, 0.99, "Share of pairs with broken characters."),
    "max_growth": (0, 0.99, "Flip rate of pairs new since --baseline above the old ones'."),
    "detect": (0.01, 0.5, "Excess over a threshold that the evidence must be able to show."),
}
CHOICES: dict[str, tuple[tuple[str, ...], str]] = {
    "flip_rate_bound": (("lower", "upper"), "Which bound of its interval is compared."),
    "mislabelled_bound": (("lower", "upper"), "Which end of its bracket is compared."),
    "inconclusive": (("error", "pass", "fail"), "What too little evidence means: exit 2, 0, 1."),
}
#: Settings that always have a value.
NEEDED = ("suspect_p", "detect", *CHOICES)
KEYS = tuple(field.name for field in fields(Policy) if field.name != "rules")


def read_policy(
    *,
    table: Mapping[str, Any] | None = None,
    file: Path | None = None,
    flags: Mapping[str, Sequence[str]] | None = None,
    rules: Sequence[str] = (),
) -> Policy:
    """The policy of `[gate]` in noisescope.toml (`table`), a TOML `file`, and flags.

    `flags` holds each flag's values as typed, `rules` the `NAME: SELECT ...` of --sql.
    Raises UsageError with every fault.
    """
    faults: list[str] = []
    sources = {"[gate] of noisescope.toml": dict(table or {})}
    if file is not None:
        sources[str(file)] = _read_file(file, faults)
    found: dict[str, tuple[str, Any]] = {}
    named: dict[str, tuple[str, str]] = {}
    for said, content in sources.items():
        stated = content.pop("sql", {})
        if not isinstance(stated, dict):
            faults.append(f"{said}: sql must be a table of NAME = 'SELECT ...'")
            stated = {}
        for key, value in content.items():
            _put(found, key, said, value, faults)
        for name, sql in stated.items():
            _put(named, name, f"sql of {said}", sql, faults)
    _add_flags(found, flags or {}, faults)
    for text in rules:
        name, colon, sql = text.partition(":")
        if not colon or not name.strip():
            faults.append(f"--sql {text!r} is no 'NAME: SELECT ...'")
        else:
            _put(named, name.strip(), "--sql", sql.strip(), faults)
    values = {key: _value(key, said, raw, faults) for key, (said, raw) in found.items()}
    _check_bounds(values, faults)
    checked = [_rule(name, said, sql, faults) for name, (said, sql) in named.items()]
    if faults:
        raise UsageError(
            f"the gate's policy has {len(faults)} fault{'s' * (len(faults) > 1)}:\n"
            + "\n".join(f"  {fault}" for fault in faults),
            hint="`noisescope gate --help` lists the settings.",
        )
    kept = {key: value for key, value in values.items() if key in KEYS}
    return Policy(**kept, rules=tuple(checked))


def _read_file(path: Path, faults: list[str]) -> dict[str, Any]:
    """A policy file; its settings may stand at the top or in a [gate] table."""
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        faults.append(f"{path}: cannot be read ({error})")
        return {}
    inner = content.get("gate")
    if isinstance(inner, dict):
        faults += [f"{path}: {key!r} stands outside [gate]" for key in content if key != "gate"]
        return dict(inner)
    return content


def _put(found: dict[str, Any], key: str, said: str, value: Any, faults: list[str]) -> None:
    if key in found:
        faults.append(f"{key} has two sources: {found[key][0]} and {said}")
    else:
        found[key] = (said, value)


def _add_flags(
    found: dict[str, tuple[str, Any]], flags: Mapping[str, Sequence[str]], faults: list[str]
) -> None:
    """Flags over files; one given twice is a fault."""
    for key, typed in flags.items():
        flag = f"--{key.replace('_', '-')}"
        if len(typed) > 1:
            faults.append(f"{key} has two sources: {flag} is given {len(typed)} times")
        if typed:
            found[key] = (flag, _typed(typed[0]))


def _typed(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text.strip().lower()


def _value(key: str, said: str, raw: Any, faults: list[str]) -> Any:
    """The value of one setting, or None and a fault."""
    if key in CHOICES:
        if raw not in CHOICES[key][0]:
            faults.append(f"{said}: {key} is {raw!r}, not one of {', '.join(CHOICES[key][0])}")
        return raw
    if key not in RANGES:
        close = difflib.get_close_matches(key, [*KEYS, "sql"], n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        faults.append(f"{said}: unknown key {key!r}{guess}")
        return None
    if raw == OFF and key not in NEEDED:
        return None
    low, high, _ = RANGES[key]
    whole = key == "min_labels"
    number = isinstance(raw, int | float) and not isinstance(raw, bool)
    if not number or not low <= raw <= high or (whole and raw != int(raw)):
        kind = "a whole number from" if whole else "a number from"
        also = "" if key in NEEDED else f', or "{OFF}"'
        faults.append(f"{said}: {key} is {raw!r}, not {kind} {low:g} to {high:g}{also}")
        return None
    return int(raw) if whole else float(raw)


def _check_bounds(values: Mapping[str, Any], faults: list[str]) -> None:
    """A bound, or a meaning, of a check that is off decides nothing."""
    for key, check in (
        ("flip_rate_bound", "max_flip_rate"),
        ("mislabelled_bound", "max_mislabelled"),
        ("suspect_p", "max_suspects"),
    ):
        if key in values and values.get(check, getattr(Policy, check)) is None:
            faults.append(f"{key} is set, but {check} is off")


def _rule(name: str, said: str, sql: Any, faults: list[str]) -> Rule:
    """A house rule whose SQL is one SELECT, as far as its text alone can tell."""
    import duckdb

    if not isinstance(sql, str):
        faults.append(f"{said}: rule {name!r} must be text")
        return Rule(name, "")
    try:
        kinds = [statement.type.name for statement in duckdb.extract_statements(sql)]
    except duckdb.Error as error:
        faults.append(f"{said}: rule {name!r}: {str(error).splitlines()[0]}")
        return Rule(name, sql)
    if kinds != ["SELECT"]:
        what = " then ".join(kinds) or "nothing"
        faults.append(f"{said}: rule {name!r} must be one SELECT, not {what}")
    return Rule(name, sql)
