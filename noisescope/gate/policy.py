"""Read a gate's policy from `[gate]`, a policy file and flags, and check all settings together.

    policy = read_policy(flags={"max_flip_rate": ["0.1"]}, table=workspace_table)

Flags override files. A setting given by two files or twice by flags is an error, like an unknown
key or a value out of range; all errors are raised together.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

from noisescope.errors import UsageError, first_line, share_hint

#: Value that switches a check off, in files and flags.
OFF = "off"


@final
@dataclass(frozen=True)
class Rule:
    """A custom rule: every row that its SELECT returns is a violation."""

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
    max_wrong_share: float | None = None
    evidence: str = "audit"
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
    max_score_conflicts: float | None = 0.05
    max_near_duplicates: float | None = None
    max_faults: float | None = 0.01
    max_encoding_faults: float | None = 0.01
    max_growth: float | None = 0.05
    detect: float = 0.1
    inconclusive: str = "error"
    rules: tuple[Rule, ...] = ()


#: Range of each number, ends included, and the help of its flag.
RANGES: dict[str, tuple[float, float, str]] = {
    "max_flip_rate": (0, 0.49, "Share of labels that are wrong even on easy pairs."),
    "max_mislabelled": (0, 0.99, "Share of labels that most people would not choose."),
    "max_wrong_share": (0, 0.99, "Share of wrong labels, by --evidence."),
    "max_suspects": (0, 0.99, "Share of pairs with p_wrong above --suspect-p."),
    "suspect_p": (0.01, 0.99, "p_wrong above which --max-suspects counts a pair."),
    "max_contested": (0, 0.99, "Share of pairs that the replicas cannot decide."),
    "min_accuracy": (0.5, 1, "Held-out accuracy of the replicas."),
    "min_reliability": (0.01, 0.99, "Reliability of every annotator, 1 - flip rate."),
    "min_labels": (1, 1e9, "Number of labels of every annotator."),
    "max_length_auroc": (0.5, 0.99, "AUROC of length alone for the label."),
    "max_giveaway_auroc": (0.5, 0.99, "AUROC of one mark in the texts for the label."),
    "max_side_imbalance": (0, 0.49, "Distance of the first side's share from one half."),
    "max_ties": (0, 0.99, "Share of rows that are ties."),
    "max_duplicates": (0, 0.99, "Share of labels that the same annotator gave before."),
    "max_contradictions": (0, 0.99, "Share of contents that are labelled both ways."),
    "max_score_conflicts": (0, 0.99, "Share of pairs whose own scores contradict the label."),
    "max_near_duplicates": (0, 0.99, "Share of distinct prompts that are similar to another."),
    "max_faults": (0, 0.99, "Share of rows without a usable preference, except ties."),
    "max_encoding_faults": (0, 0.99, "Share of pairs with broken characters."),
    "max_growth": (0, 0.99, "Flip rate of pairs not in --baseline minus that of its pairs."),
    "detect": (0.01, 0.5, "Smallest excess over a threshold that the data must be able to show."),
}
CHOICES: dict[str, tuple[tuple[str, ...], str]] = {
    "flip_rate_bound": (("lower", "upper"), "Which bound of its interval is compared."),
    "mislabelled_bound": (("lower", "upper"), "Which end of its bracket is compared."),
    "evidence": (("audit", "review"), "What max_wrong_share rests on: the audit, or people."),
    "inconclusive": (("error", "pass", "fail"), "Exit code of an inconclusive gate: 3, 0, 1."),
}
#: Settings that cannot be switched off.
NEEDED = ("suspect_p", "detect", *CHOICES)
KEYS = tuple(field.name for field in fields(Policy) if field.name != "rules")


def read_policy(
    *,
    table: Mapping[str, Any] | None = None,
    file: Path | None = None,
    flags: Mapping[str, Sequence[str]] | None = None,
    rules: Sequence[str] = (),
) -> Policy:
    """Read the policy of `[gate]` in noisescope.toml (`table`), a TOML `file`, and flags.

    `flags` contains the values of each flag as given, `rules` the `NAME: SELECT ...` of --sql.
    Raises UsageError with every fault.
    """
    faults: list[str] = []
    sources = {"[gate] of noisescope.toml": dict(table or {})}
    if file is not None:
        sources[str(file)] = _read_file(file, faults)
    found: dict[str, tuple[str, Any]] = {}
    named: dict[str, tuple[str, str]] = {}
    for origin, content in sources.items():
        stated = content.pop("sql", {})
        if not isinstance(stated, dict):
            faults.append(f"{origin}: sql must be a table of NAME = 'SELECT ...'")
            stated = {}
        for key, value in content.items():
            _put(found, key, origin, value, faults)
        for name, sql in stated.items():
            _put(named, name, f"sql of {origin}", sql, faults)
    _add_flags(found, flags or {}, faults)
    for text in rules:
        name, colon, sql = text.partition(":")
        if not colon or not name.strip():
            faults.append(f"--sql {text!r} is not of the form 'NAME: SELECT ...'")
        else:
            _put(named, name.strip(), "--sql", sql.strip(), faults)
    values = {key: _value(key, origin, raw, faults) for key, (origin, raw) in found.items()}
    _check_bounds(values, faults)
    checked = [_rule(name, origin, sql, faults) for name, (origin, sql) in named.items()]
    if faults:
        raise UsageError(
            f"the gate's policy has {len(faults)} fault{'s' * (len(faults) > 1)}:\n"
            + "\n".join(f"  {fault}" for fault in faults),
            hint="`noisescope gate --help` lists the settings.",
        )
    kept = {key: value for key, value in values.items() if key in KEYS}
    return Policy(**kept, rules=tuple(checked))


def _read_file(path: Path, faults: list[str]) -> dict[str, Any]:
    """Read a policy file; its settings are at the top level or in a [gate] table."""
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        faults.append(f"{path}: cannot be read ({error})")
        return {}
    inner = content.get("gate")
    if isinstance(inner, dict):
        faults += [f"{path}: {key!r} is outside [gate]" for key in content if key != "gate"]
        return dict(inner)
    return content


def _put(found: dict[str, Any], key: str, origin: str, value: Any, faults: list[str]) -> None:
    if key in found:
        faults.append(f"{key} has two sources: {found[key][0]} and {origin}")
    else:
        found[key] = (origin, value)


def _add_flags(
    found: dict[str, tuple[str, Any]], flags: Mapping[str, Sequence[str]], faults: list[str]
) -> None:
    """Add flags, which override files; one given twice is a fault."""
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


def _value(key: str, origin: str, raw: Any, faults: list[str]) -> Any:
    """Check the value of one setting; None and a fault if it is wrong."""
    if key in CHOICES:
        if raw not in CHOICES[key][0]:
            faults.append(f"{origin}: {key} is {raw!r}, not one of {', '.join(CHOICES[key][0])}")
        return raw
    if key not in RANGES:
        close = difflib.get_close_matches(key, [*KEYS, "sql"], n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        faults.append(f"{origin}: unknown key {key!r}{guess}")
        return None
    if raw == OFF and key not in NEEDED:
        return None
    low, high, _ = RANGES[key]
    whole = key == "min_labels"
    number = isinstance(raw, int | float) and not isinstance(raw, bool)
    if not number or not low <= raw <= high or (whole and raw != int(raw)):
        kind = "a whole number from" if whole else "a number from"
        also = "" if key in NEEDED else f', or "{OFF}"'
        hint = share_hint("", str(raw), high) if high < 1 else None
        meant = f" ({hint[0].lower()}{hint[1:]})" if hint else ""
        faults.append(f"{origin}: {key} is {raw!r}, not {kind} {low:g} to {high:g}{also}{meant}")
        return None
    return int(raw) if whole else float(raw)


def _check_bounds(values: Mapping[str, Any], faults: list[str]) -> None:
    """Refuse the bound or threshold of a check that is off."""
    for key, check in (
        ("flip_rate_bound", "max_flip_rate"),
        ("mislabelled_bound", "max_mislabelled"),
        ("evidence", "max_wrong_share"),
        ("suspect_p", "max_suspects"),
    ):
        if key in values and values.get(check, getattr(Policy, check)) is None:
            faults.append(f"{key} is set, but {check} is off")


def _rule(name: str, origin: str, sql: Any, faults: list[str]) -> Rule:
    """Check that a custom rule's SQL parses as one SELECT."""
    import duckdb

    if not isinstance(sql, str):
        faults.append(f"{origin}: rule {name!r} must be text")
        return Rule(name, "")
    try:
        kinds = [statement.type.name for statement in duckdb.extract_statements(sql)]
    except duckdb.Error as error:
        faults.append(f"{origin}: rule {name!r}: {first_line(error)}")
        return Rule(name, sql)
    if kinds != ["SELECT"]:
        what = " then ".join(kinds) or "nothing"
        faults.append(f"{origin}: rule {name!r} must be one SELECT, not {what}")
    return Rule(name, sql)
