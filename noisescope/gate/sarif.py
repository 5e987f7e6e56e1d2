"""A verdict as SARIF 2.1.0: a rule a check, one result for each that is breached or inconclusive.

The worst pair is the result's location (without one, the whole dataset is: GitHub wants a
location), the others are related locations. Rows of line-based
files (JSONL) are given as lines; elsewhere the row is only named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from noisescope import __version__
from noisescope.gate.escaping import clean
from noisescope.gate.verdict import Result, Row, Verdict

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS = {"fail": "error", "inconclusive": "warning"}
_LINES = re.compile(r"\.(jsonl|ndjson)(\.gz)?$")


def sarif(verdict: Verdict, place_of: Callable[[str], str]) -> str:
    """The JSON document; `place_of` gives the path of a pair's source."""
    rules = [
        {"id": clean(result.check), "shortDescription": {"text": clean(result.said)}}
        for result in verdict.results
    ]
    results = [
        _result(result, index, place_of, quote(clean(verdict.resolved) or "dataset", safe="/"))
        for index, result in enumerate(verdict.results)
        if result.status in _LEVELS
    ]
    driver = {"name": "noisescope", "version": __version__, "rules": rules}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": results,
        "properties": {"dataset": clean(verdict.dataset), "verdict": verdict.word},
    }
    content = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _result(
    result: Result, index: int, place_of: Callable[[str], str], whole: str
) -> dict[str, Any]:
    text = clean(result.said)
    if result.pairs_needed is not None:
        text += f"; about {result.pairs_needed:,} pairs are needed"
    content: dict[str, Any] = {
        "ruleId": clean(result.check),
        "ruleIndex": index,
        "level": _LEVELS[result.status],
        "message": {"text": text},
        "partialFingerprints": {"noisescopeCheck/v1": clean(result.check)},
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
    place = clean(place_of(row.source)) or "dataset"
    physical: dict[str, Any] = {"artifactLocation": {"uri": quote(place, safe="/")}}
    if _LINES.search(place):
        physical["region"] = {"startLine": row.row + 1}
    name = clean(f"row {row.row} {row.pair_id}")
    return {
        "physicalLocation": physical,
        "logicalLocations": [{"name": name, "kind": "element"}],
        "message": {"text": clean(f"{name}: {row.detail}")},
    }
