"""A verdict as JUnit XML: one testsuite, one testcase a check.

fail is a <failure>, inconclusive an <error>, skipped is <skipped>.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from noisescope.gate.escaping import clean
from noisescope.gate.verdict import Result, Verdict

#: Element of each status but pass.
_ELEMENTS = {"fail": "failure", "inconclusive": "error", "skipped": "skipped"}


def junit(verdict: Verdict) -> str:
    """The XML document."""
    counts = {
        "tests": len(verdict.results),
        "failures": len(verdict.of("fail")),
        "errors": len(verdict.of("inconclusive")),
        "skipped": len(verdict.of("skipped")),
    }
    attributes = {name: str(count) for name, count in counts.items()}
    root = ET.Element("testsuites", {"name": "noisescope gate", **attributes})
    suite = ET.SubElement(root, "testsuite", {"name": clean(verdict.dataset), **attributes})
    for result in verdict.results:
        name = {"classname": f"noisescope.{clean(verdict.dataset)}", "name": clean(result.check)}
        case = ET.SubElement(suite, "testcase", {**name, "time": "0"})
        if result.status in _ELEMENTS:
            said = {"message": clean(result.said)}
            element = ET.SubElement(case, _ELEMENTS[result.status], said)
            if result.status != "skipped":
                element.set("type", result.status)
                element.text = _text(result)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _text(result: Result) -> str:
    """What was found, then the worst rows, a line each."""
    lines = [clean(result.said)]
    if result.threshold is not None:
        lines.append(f"threshold {result.threshold:g}, compared: {result.bound}")
    if result.pairs_needed is not None:
        lines.append(f"about {result.pairs_needed:,} pairs are needed")
    lines += ["rows, counted from 0:"] if any(row.source for row in result.rows) else []
    lines += [clean(f"{row.source}:{row.row} {row.pair_id} {row.detail}") for row in result.rows]
    return "\n".join(lines)
