"""Run every check and every custom rule of a policy on a run, and collect the verdict."""

from __future__ import annotations

import math

from noisescope.errors import EvidenceError, UsageError
from noisescope.gate.checks import CHECKS, USE_HELD_OUT, USE_REPLICAS
from noisescope.gate.input import Subject
from noisescope.gate.policy import Policy, Rule
from noisescope.gate.verdict import (
    Estimate,
    Result,
    Row,
    Status,
    Verdict,
    pairs_to_clear,
    plural,
)


def check_gate(subject: Subject, policy: Policy) -> Verdict:
    """Run all checks that are on, in the order of CHECKS, then the custom rules.

    Raises UsageError with all rules whose SQL does not fit the run's tables, RunError if the run
    cannot be read.
    """
    rules = _custom_rules(subject, policy.rules)
    checked = [_checked(name, subject, policy) for name in CHECKS]
    return Verdict(
        run=str(subject.run.directory),
        dataset=str(subject.manifest.get("dataset", "")),
        resolved=str(subject.manifest.get("resolved", "")),
        pairs=len(subject),
        inconclusive=policy.inconclusive,
        results=(*(result for result in checked if result is not None), *rules),
        baseline=None if subject.baseline is None else str(subject.baseline.directory),
    )


def _checked(name: str, subject: Subject, policy: Policy) -> Result | None:
    """Run one check; inconclusive if the replicas are at chance or trained on the pairs."""
    try:
        result = CHECKS[name](subject, policy)
    except EvidenceError as fault:
        return Result(name, "inconclusive", fault.message)
    if result is None or result.status == "skipped" or name not in USE_HELD_OUT:
        return result
    if subject.in_sample:
        message = "the replicas may have trained on these pairs: no margin is held out"
        return Result(name, "inconclusive", message, threshold=result.threshold)
    if name not in USE_REPLICAS or not subject.chance:
        return result
    found = subject.accuracy
    error = Estimate(1 - found.estimate, 1 - found.high, 1 - found.low, len(subject))
    needed = pairs_to_clear(error, math.inf, 0.5)
    message = f"the replicas are no better than chance ({found.estimate:.1%} held-out accuracy)"
    return Result(name, "inconclusive", message, threshold=result.threshold, pairs_needed=needed)


def _custom_rules(subject: Subject, rules: tuple[Rule, ...]) -> list[Result]:
    """Run the SQL rules; each row that one returns is a violation."""
    from noisescope.storage.sql import query

    results, wrong = [], []
    for rule in rules:
        try:
            table = query(subject.run, rule.sql)
        except UsageError as error:
            wrong.append(f"  {rule.name}: {error.message}")
            continue
        count = table.num_rows
        rows = tuple(_row(row) for row in table.slice(0, 10).to_pylist())
        message = (
            f"{plural(count, 'row')} returned, each a violation" if count else "no row returned"
        )
        status: Status = "fail" if count else "pass"
        name = f"sql:{rule.name}"
        results.append(Result(name, status, message, float(count), threshold=0.0, rows=rows))
    if wrong:
        raise UsageError(
            "rules that do not fit this run:\n" + "\n".join(wrong),
            hint="`noisescope query` without SQL lists tables and columns.",
        )
    return results


def _row(values: dict[str, object]) -> Row:
    """Convert a row of a rule's result; pair_id, source and row, if present, are its location."""
    rest = {k: v for k, v in values.items() if k not in ("pair_id", "source", "row")}
    number = values.get("row")
    return Row(
        str(values.get("pair_id") or ""),
        str(values.get("source") or ""),
        number if isinstance(number, int) else 0,
        ", ".join(f"{name} {value}" for name, value in rest.items())[:300],
    )
