"""`noisescope export --annotators`: who stands out, why, and what is done with all their pairs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from noisescope.cli.console import OUT
from noisescope.errors import UsageError
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from noisescope.export.annotators import Acted
    from noisescope.scoring.run_scores import RunScores


def act_on_annotators(scores: RunScores, mode: str, format: str, *, force: bool) -> list[Acted]:
    """Everyone who stands out, with what is done with their pairs.

    Raises UsageError for a mode that the format cannot do or if there is nobody, and EvidenceError
    if the audit is too weak to act on anyone, unless `force`.
    """
    from noisescope.export.annotators import REVIEW, acted_on
    from noisescope.export.removal import refuse_weak

    if (mode == REVIEW) != (format == "review"):
        run = shlex.quote(str(scores.run.directory))
        instead = "clean" if format == "review" else "review"
        raise UsageError(
            f"--format {format} cannot {mode} annotators",
            hint=f"noisescope export {run} --format {instead} --annotators {mode}",
        )
    if not force:
        refuse_weak(scores)
    return acted_on(scores, mode)


def print_annotators(people: Sequence[Acted]) -> None:
    """Print a row for each: labels, flip rate with its 90 % interval, why, what was done."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="dim")
    for name in ("annotator", "labels", "wrong", "90 % interval", "why", "their pairs"):
        table.add_column(name, justify="right" if name in ("labels", "wrong") else "left")
    done = {"drop": "dropped", "reverse": "flipped", "review": "queued", "keep": "not changed"}
    for one in people:
        span = f"{one.low:.0%} to {one.high:.0%}"
        cells = (f"{one.labels:,}", f"{one.flip_rate:.0%}", span, one.why, done[one.action])
        table.add_row(Text(printable(one.name)), *cells)
    OUT.print(table)
