"""Answer how many labels are wrong, in one sentence: on the screen, the page and in Python."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescope.errors import RunError
from noisescope.storage.printable import plural, printable
from noisescope.storage.redact import masked
from noisescope.storage.run import Run, dataset_words, filled

if TYPE_CHECKING:
    from noisescope.scoring.reviews import RunReviews


def answer(summary: Mapping[str, Any], people: RunReviews | None = None) -> str:
    """How many labels are wrong, of a summary's JSON object, or as reviewers of a sample found."""
    reviewed = None if people is None else people.share()
    found = summary["mislabelled_share"] if reviewed is None else reviewed.to_json()
    percent = f"{found['low']:.0%} to {found['high']:.0%}"
    if reviewed is None and trust_word(summary) == "cannot know" and not summary["chance"]:
        return "Cannot say how many labels are wrong."  # the margins confirm wrong labels
    if reviewed is None and not states_counts(summary):
        return f"Cannot say how many labels are wrong: anything from {percent} fits."
    low = _rounded(found["low"] * summary["pairs"], math.floor)
    high = max(_rounded(found["high"] * summary["pairs"], math.ceil), 1)
    labels = plural(high, "label")
    if reviewed is not None:
        sample = "By a random sample that people judged, "
        return f"{sample}between {low:,} and {labels} are wrong ({percent})."
    if low == 0:
        return f"Up to {labels} may be wrong ({percent})."
    return f"Between {low:,} and {labels} are probably wrong ({percent})."


def helps(run: Run, summary: Mapping[str, Any]) -> list[str]:
    """What would make the audit strong enough: each with the command to type for this run."""
    words = dataset_words(run.manifest()), run_word(run)
    return [printable(masked(filled(line, *words))) for line in summary["trust"]["helps"]]


def run_word(run: Run) -> str:
    """The word that names a run on the command line: its name if it is in runs/."""
    directory = run.directory
    return shlex.quote(directory.name if directory.parent == Path("runs") else str(directory))


def states_counts(summary: Mapping[str, Any]) -> bool:
    """Decide whether an output may state counts of wrong labels, and who gave them.

    The one rule of the screen, the page and Python: only an audit that labels may be changed by.
    Summaries of older versions state no trust.
    """
    trust = summary.get("trust")
    return bool(trust["acts"] if trust else not summary["chance"])


def trust_word(summary: Mapping[str, Any]) -> str:
    """Read how far a summary is to be trusted; empty in those of older versions."""
    return str((summary.get("trust") or {}).get("word", ""))


def caution(run: Run) -> str | None:
    """A warning about the probabilities of a run that is too weak to act on, or None."""
    try:
        trust = (run.manifest().get("summary") or {}).get("trust")
    except RunError:
        return None
    if trust is None or trust["acts"]:
        return None
    return f"caution: no p_wrong here is to be acted on ({trust['word']}). {trust['sentence']}"


def _rounded(number: float, towards: Callable[[float], int]) -> int:
    """A number of labels with two significant digits; below 100 it is rounded outwards."""
    step = int(10 ** max(len(str(int(number))) - 2, 0))
    return towards(round(number, 9)) if step == 1 else round(number / step) * step
