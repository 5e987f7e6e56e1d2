"""Word the report's first screen: how many labels are wrong, how far to trust that, what to check.

    shown = overview(contents)
    shown["headline"], shown["trust"], shown["finds"], shown["who"]

Every number is the summary's or the reviewers'; nothing is estimated here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from noisescope.report.contents import Contents
from noisescope.scoring.answer import answer, helps, states_counts, trust_word
from noisescope.storage.printable import printable

#: Seconds that a person needs for one pair, an assumption that the page states.
SECONDS = 25
#: Filled dots of three by the word for trust; it is in words beside them, too.
DOTS = {"good": 3, "fair": 2, "too weak to change labels": 1, "cannot know": 0}
#: Size of the curve and of the frame inside it: left, top, right, bottom.
WIDTH, HEIGHT = 400, 220
LEFT, TOP, RIGHT, BOTTOM = 46, 12, 388, 172


def overview(contents: Contents) -> dict[str, Any]:
    """What the first screen shows, for the template."""
    summary = contents.summary
    stated = states_counts(summary)
    finds = list(summary.get("find") or ()) if stated else []
    trust = summary.get("trust")
    dots = DOTS.get(trust_word(summary), 0)
    check = _worth_checking(finds)
    return {
        "headline": answer(summary, contents.reviews),
        "trust": trust and {**trust, "dots": "●" * dots, "open": "○" * (3 - dots)},
        "helps": helps(contents.run, summary) if trust and not trust["acts"] else [],
        "acts": bool(trust and trust["acts"]),
        "finds": finds,
        "curve": curve(finds) if finds else None,
        "check": check,
        "time": check and _duration(check["pairs"] * SECONDS),
        "seconds": SECONDS,
        "stated": stated,
        "who": _who(summary.get("annotators")) if stated else None,
        "undecided": f"{summary['contested_share']:.1%}",
    }  # fmt: skip


def _worth_checking(finds: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The most pairs of which at least half should be wrong, else the fewest."""
    worth = [find for find in finds if 2 * find["low"] >= find["pairs"]]
    return worth[-1] if worth else finds[0] if finds else None


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    if hours >= 1.5:
        return f"{hours:.0f} hours"
    return f"{max(round(seconds / 60 / 5) * 5, 5)} minutes"


def curve(finds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The band of wrong labels found by pairs checked, in the coordinates of an SVG."""
    most = int(finds[-1]["pairs"])
    top = max(max(int(find["high"]) for find in finds), 1)

    def x(pairs: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * pairs / most, 1)

    def y(labels: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * labels / top, 1)

    start = [(x(0), y(0))]
    upper = start + [(x(find["pairs"]), y(find["high"])) for find in finds]
    lower = start + [(x(find["pairs"]), y(find["low"])) for find in finds]
    all_wrong = min(most, top)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "frame": (LEFT, TOP, RIGHT, BOTTOM),
        "band": " ".join(f"{a},{b}" for a, b in [*upper, *reversed(lower)]),
        "upper": " ".join(f"{a},{b}" for a, b in upper),
        "lower": " ".join(f"{a},{b}" for a, b in lower),
        "limit": f"{x(0)},{y(0)} {x(all_wrong)},{y(all_wrong)}",
        "x": [(x(find["pairs"]), f"{find['pairs']:,}") for find in finds
              if find["pairs"] >= most / 5],
        "y": [(y(value), f"{value:,}") for value in (0, _half(top), top)],
    }  # fmt: skip


def _half(top: int) -> int:
    """About half of `top`, as a number of two digits and zeros."""
    step = int(10 ** max(len(str(top // 2)) - 2, 0))
    return top // 2 // step * step


def _who(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Annotators or sources that stand out, with the length of their bars."""
    if found is None:
        return None
    rows = [
        {
            **row,
            "name": printable(str(row["name"])),
            "range": f"{row['low']:.0%} to {row['high']:.0%}",
            "width": round(100 * row["flip_rate"], 1),
        }
        for row in found["worst"]
    ]
    others = found["others"]
    return {
        "kind": found["kind"],
        "rows": rows[:8],
        "more": len(rows) - len(rows[:8]),
        "labels": sum(row["labels"] for row in rows),
        "others": others["count"],
        "rate": f"{others['flip_rate']:.0%}",
    }
