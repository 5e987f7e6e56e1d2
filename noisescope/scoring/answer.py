"""Answer how many labels are wrong, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from noisescope.storage.printable import plural

if TYPE_CHECKING:
    from noisescope.scoring.reviews import RunReviews


def answer(summary: Mapping[str, Any], people: RunReviews | None = None) -> str:
    """How many labels are wrong, in one sentence: of a summary's JSON object, and of reviews."""
    if people is not None and people.share() is not None:
        return people.sentence()
    share, pairs = summary["mislabelled_share"], summary["pairs"]
    low, high = (_rounded(share[end] * pairs) for end in ("low", "high"))
    percent = f"{share['low']:.0%} to {share['high']:.0%}"
    if not summary["trust"]["acts"]:
        return f"Cannot say how many labels are wrong: anything from {percent} fits."
    if low == 0:
        return f"Up to {plural(high, 'label')} may be wrong ({percent})."
    return f"Between {low:,} and {plural(high, 'label')} are probably wrong ({percent})."


def _rounded(number: float) -> int:
    """A number of labels with two significant digits."""
    return int(float(f"{number:.1e}"))
