"""noisescope apply DECISIONS: correct the dataset as people decided on the report page."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from noisescope.cli import completion
from noisescope.cli.console import print_json, print_lines, print_note
from noisescope.cli.options import JsonOption, RunsDirOption
from noisescope.cli.resolve import note_run, score_again


def apply(
    decisions: Annotated[
        Path,
        typer.Argument(help="Decisions that the report page downloaded: CSV or JSON lines."),
    ],
    run: Annotated[
        str | None,
        typer.Argument(
            help="Run or scored dataset.",
            show_default="the latest run of their dataset",
            autocompletion=completion.datasets_and_runs,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Directory of the copy.", show_default="exports/RUN-applied"
        ),
    ] = None,
    reviewer: Annotated[
        str | None,
        typer.Option(help="Who decided, if the file names nobody.", show_default="your user name"),
    ] = None,
    record_only: Annotated[
        bool, typer.Option("--record-only", help="Record the decisions, write no copy.")
    ] = False,
    source: Annotated[
        str | None, typer.Option(help="The audited dataset, if it has moved.")
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Write the corrected dataset in its own format, and record the decisions as reviews.

    Rows of pairs that are kept, unsure or not in the file stay as they are.

    Example: noisescope apply decisions.csv
    """
    from noisescope.cli.export import open_source_of
    from noisescope.export.apply import apply_decisions, read_decisions, run_of
    from noisescope.report.review.session import check_name, user_name
    from noisescope.storage.reviews import FILE

    found = read_decisions(decisions)
    for who in dict.fromkeys(row.reviewer or reviewer or user_name() for row in found.rows):
        check_name(who)
    scores = run_of(found, run, runs_dir)
    note_run(scores.run, run, runs_dir)
    again = f"apply {shlex.quote(str(decisions))} {shlex.quote(str(scores.run.directory))}"
    opened = None if record_only else open_source_of(scores, source, again, "--record-only")
    out = output or Path("exports") / f"{scores.run.directory.resolve().name}-applied"
    done = apply_decisions(scores, opened, found, out, reviewer=reviewer or user_name())
    directory = str(scores.run.directory)
    path = scores.run.directory / FILE
    if json:
        written = {"output": None if record_only else str(out), "run": directory}
        print_json(written | {"reviews": str(path), **vars(done)})
        return
    print(", ".join(f"{number:,} {name}" for name, number in done.counts.items()))
    for text in _remarks(vars(done), directory):
        print_note(text)
    recorded = f"{path} ({done.recorded:,} added, {done.known:,} known before)"
    if record_only:
        print_lines(
            reviews=recorded, next=f"noisescope export {shlex.quote(directory)} --format trl"
        )
        return
    print_lines(
        output=str(out),
        reviews=recorded,
        next=score_again(scores.run, scores.manifest, str(out)),
    )


def _remarks(done: dict[str, Any], directory: str) -> list[str]:
    """What the copy does not contain."""
    remarks = []
    if done["copies"]:
        remarks.append(
            f"{done['copies']:,} pairs repeat a changed one and are not in the file: they stay as "
            "they are"
        )
    if done["others"]:
        remarks.append(
            f"{done['others']:,} more labels that reviewers corrected are not in the file; "
            f"noisescope export {shlex.quote(directory)} --format clean follows all reviews"
        )
    return remarks
