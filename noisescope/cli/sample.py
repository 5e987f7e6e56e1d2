"""noisescope sample: a directory to try noisescope in, offline."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from noisescope.cli.console import print_json, print_lines


def sample(
    directory: Annotated[Path, typer.Argument(help="The directory to make.")] = Path(
        "noisescope-sample"
    ),
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Write the sample datasets and tiny models into a new directory, to try every command offline.

    Example: noisescope sample && cd noisescope-sample && noisescope score hh-rlhf
    """
    from noisescope.sample import write_sample

    written = write_sample(directory)
    if json:
        print_json({"sample": str(written)})
        return
    print_lines(
        wrote=f"{written}: text and image pairs with known errors, tiny models",
        next=f"cd {shlex.quote(str(written))} && noisescope score hh-rlhf",
    )
