"""noisescope report: one HTML page about a run, or the same in the terminal."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from noisescope.cli.console import OUT, print_json, print_lines, safe, say

if TYPE_CHECKING:
    from noisescope.images import ImageStore
    from noisescope.run import Run


def report(
    run: Annotated[
        str | None, typer.Argument(help="Run directory or name; the latest run if left out.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The HTML file; report.html in the run.")
    ] = None,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Print it here instead of writing a page.")
    ] = False,
    runs_dir: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Write a run's report: one HTML file that needs no network, and its figures.

    Example: noisescope report --terminal
    """
    from noisescope.report.contents import gather, write_figures
    from noisescope.report.html import page
    from noisescope.run import find_run
    from noisescope.storage import write_atomic

    found = find_run(run, runs_dir)
    say(f"run: {safe(str(found.directory))}")
    if terminal:
        from noisescope.cli.report_text import print_report

        print_report(gather(found), OUT.console)
        return
    contents = gather(found)
    path = output or found.directory / "report.html"
    write_atomic(path, page(contents, images_of(found)))
    figures = write_figures(contents.pictures, found.directory / "figures")
    if json:
        print_json({"report": str(path), "figures": [str(figure) for figure in figures]})
    else:
        run_again = shlex.quote(str(found.directory))
        print_lines(
            report=str(path),
            figures=str(found.directory / "figures"),
            next=f"noisescope export {run_again} --format review",
        )


def images_of(run: Run) -> ImageStore | None:
    """The images of an image run, read from its dataset; None for text, or when it has moved."""
    from noisescope.errors import NoisescopeError

    manifest: dict[str, Any] = run.manifest()
    if manifest.get("modality") != "image":
        return None
    try:
        from noisescope.datasets import load

        return load(manifest["resolved"], format=manifest["adapter"]).images
    except NoisescopeError as error:
        say(f"no images shown: {safe(error.message)}")
        return None
