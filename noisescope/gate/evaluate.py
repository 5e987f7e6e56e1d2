"""Evaluate a policy on a subject: every check, every house rule, one verdict."""

from __future__ import annotations

import math

from noisescope.errors import EvidenceError, UsageError
from noisescope.gate.checks import ASK_HELD_OUT, ASK_REPLICAS, CHECKS
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


def evaluate(subject: Subject, policy: Policy) -> Verdict:
    """Results of all checks that are on, in the order of CHECKS, then of the house rules.

    Raises UsageError where a rule's SQL does not fit the run's tables (all of them together),
    RunError where the run cannot be read.
    """
    rules = _house_rules(subject, policy.rules)
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
    """One check; where the replicas carry no verdict, or trained on the pairs, inconclusive."""
    try:
        result = CHECKS[name](subject, policy)
    except EvidenceError as error:
        return Result(name, "inconclusive", error.message)
    if result is None or result.status == "skipped" or name not in ASK_HELD_OUT:
        return result
    if subject.in_sample:
        said = "the replicas may have trained on these pairs: no margin is held out"
        return Result(name, "inconclusive", said, threshold=result.threshold)
    if name not in ASK_REPLICAS or not subject.chance:
        return result
    found = subject.accuracy
    turned = Estimate(1 - found.estimate, 1 - found.high, 1 - found.low, len(subject))
    needed = pairs_to_clear(turned, math.inf, 0.5)
    said = f"the replicas are no better than chance ({found.estimate:.1%} held-out accuracy)"
    return Result(name, "inconclusive", said, threshold=result.threshold, pairs_needed=needed)


def _house_rules(subject: Subject, rules: tuple[Rule, ...]) -> list[Result]:
    """Each rule's rows are its breaches."""
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
        said = f"{plural(count, 'row')} returned, each a breach" if count else "no row returned"
        status: Status = "fail" if count else "pass"
        name = f"sql:{rule.name}"
        results.append(Result(name, status, said, float(count), threshold=0.0, rows=rows))
    if wrong:
        raise UsageError(
            "house rules that do not fit this run:\n" + "\n".join(wrong),
            hint="`noisescope query` without SQL lists tables and columns.",
        )
    return results


def _row(values: dict[str, object]) -> Row:
    """A row of a rule's result; where it names pair_id, source and row they are its place."""
    rest = {k: v for k, v in values.items() if k not in ("pair_id", "source", "row")}
    number = values.get("row")
    return Row(
        str(values.get("pair_id") or ""),
        str(values.get("source") or ""),
        number if isinstance(number, int) else 0,
        ", ".join(f"{name} {value}" for name, value in rest.items())[:300],
    )
