"""noisescope explain [RUN]: what the suspicious labels have in common."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from noisescope.cli.console import OUT, print_json, print_lines, print_note
from noisescope.cli.options import JsonOption, RunArgument, RunsDirOption
from noisescope.cli.resolve import note_run
from noisescope.storage.printable import printable

if TYPE_CHECKING:
    from noisescope.report.explain import Explanation

#: Findings printed; --json has all.
SHOWN = 12


def explain(
    run: RunArgument = None,
    runs_dir: RunsDirOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Name what suspicious labels have in common: annotators, sources, length, refusals...

    Each sentence is a test with a false discovery rate of 5 % over all of them.

    Example: noisescope explain hh-rlhf
    """
    from noisescope.cli.report import images_of
    from noisescope.report.explain import explain_run
    from noisescope.scoring.answer import caution
    from noisescope.storage.run import find_run

    found = find_run(run, runs_dir)
    note_run(found, run, runs_dir)
    explanation = explain_run(found, images_of(found))
    weak = caution(found)
    if weak and explanation.findings:
        print_note(printable(weak))
    if json:
        print_json(explanation.to_json())
    else:
        print_explanation(explanation)


def print_explanation(explanation: Explanation) -> None:
    """Print give-aways, what goes with wrong labels, and what all labels follow."""
    from rich.padding import Padding
    from rich.text import Text

    if explanation.looked_at < explanation.pairs:
        print_note(f"an even sample of {explanation.looked_at:,} of {explanation.pairs:,} pairs")
    wrong = [f.sentence for f in explanation.findings if f.kind != "follows"]
    taste = [f.sentence for f in explanation.findings if f.kind == "follows"]
    sections = {
        "Labels are given away": explanation.giveaways,
        "Suspicious labels": wrong,
        "All labels (taste, or a bias of everybody)": taste,
    }
    for title, sentences in sections.items():
        if sentences:
            OUT.print(Text(title, style="bold"))
        for sentence in sentences[:SHOWN]:
            OUT.print(Padding(Text("• " + printable(sentence)), (0, 0, 0, 2)))
        if len(sentences) > SHOWN:
            OUT.print(Text(f"  {len(sentences) - SHOWN:,} more: --json", style="dim"))
    if not explanation.sentences:
        OUT.print("The suspicious labels have nothing in common that was looked for.")
    if not explanation.compared:
        OUT.print(
            "The pictures were not found, so only annotators, sources and rows were compared."
        )
    print_lines(next=_next(explanation))


def _next(explanation: Explanation) -> str:
    """The pairs of the first annotator found, else the review."""
    run = shlex.quote(explanation.run)
    for finding in explanation.findings:
        if finding.trait == "annotator":
            name = finding.value.replace("'", "''")
            sql = (
                "SELECT pair_id, p_wrong FROM scores JOIN pairs USING (pair_id) "
                f"WHERE annotator = '{name}' ORDER BY rank"
            )
            return f"noisescope query {shlex.quote(sql)} {run}"
    return f"noisescope review {run}"
