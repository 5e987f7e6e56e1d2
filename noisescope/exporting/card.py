"""The dataset card of an export: what was judged, by what, how sure, and what was changed."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from noisescope import __version__
from noisescope.exporting.scored import Scored


def card(scored: Scored, facts: Mapping[str, Any], data: str) -> str:
    """README.md of a dataset repository; `data` is the glob of its files."""
    summary, counts = scored.summary, facts["counts"]
    rate = summary.get("flip_rate", {})
    changed = counts["drop"] + counts["flip"]
    known = "" if rate.get("identifiable", True) else " (not identifiable at this size)"
    header = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        f"    path: {json.dumps(data)}",
        "tags:",
        "- preference-data",
        "- dpo",
        "- noisescope",
        "---",
    ]
    lines = [
        *header,
        "",
        f"# {_plain(facts['dataset'])}, cleaned",
        "",
        f"Preference pairs of `{_plain(facts['dataset'])}`, audited and cleaned with noisescope "
        f"{__version__}. No label was looked at by a human in this step.",
        "",
        "## How it was cleaned",
        "",
        f"- Policy: {facts['policy']}.",
        f"- Of {len(scored):,} pairs {counts['keep']:,} were kept, {counts['drop']:,} dropped and "
        f"{counts['flip']:,} turned round ({changed / max(len(scored), 1):.1%} changed).",
        "- `p_flip` is the probability that a label is wrong, from held-out margins of "
        f"{_plain(scored.manifest.get('evidence', {}).get('replicas', 'several'))} replicas of "
        f"`{_plain(facts['model'])}`.",
        "",
        "## What the audit says of itself",
        "",
        "| | estimate | interval |",
        "|---|---|---|",
        f"| flip rate{known} | {_share(rate.get('estimate'))} | {_interval(rate)} |",
        f"| held-out accuracy | {_share(summary.get('held_out_accuracy'))} | "
        f"{_between(summary.get('held_out_accuracy_interval'))} |",
        f"| expected AUROC of finding wrong labels | {_number(summary.get('expected_auroc'))} | "
        f"{_between(summary.get('expected_auroc_interval'), '.3f')} |",
        "",
        "At that AUROC some dropped labels were right and some kept ones are wrong; labels on "
        "which all annotators share a bias look right to any such audit.",
        "",
        f"Dataset fingerprint `{_plain(facts['dataset_fingerprint'])}`, model fingerprint "
        f"`{_plain(facts['model_fingerprint'])}`.",
        "",
    ]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """A name that cannot end its line, its code span or its table cell."""
    return "".join(
        " " if unicodedata.category(c).startswith(("C", "Z")) or c in "`|<>[]" else c
        for c in str(value)
    )


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else "unknown"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "unknown"


def _interval(rate: Mapping[str, Any]) -> str:
    return _between([rate.get("low"), rate.get("high")])


def _between(ends: Any, shape: str = ".1%") -> str:
    good = isinstance(ends, list | tuple) and len(ends) == 2
    if not good or not all(isinstance(end, int | float) for end in ends):
        return ""
    return f"{format(ends[0], shape)} to {format(ends[1], shape)}"
