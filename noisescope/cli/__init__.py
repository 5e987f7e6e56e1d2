"""The command line: one file a command. Only this package imports typer and rich.

Exit codes: 0 done, or gate passed; 1 gate breached; 2 anything else. Results go to stdout,
progress and chatter to stderr; a traceback is shown only with `--debug`.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, final

import typer
from typer.core import TyperGroup

from noisescope import __version__
from noisescope.cli import datasets, doctor, flip, query, report, score, show, validate
from noisescope.cli.console import say_error
from noisescope.errors import NoisescopeError

app = typer.Typer(
    name="noisescope",
    help="Find the wrong labels of a preference dataset before DPO learns them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("score")(score.score)
app.command("query")(query.query)
app.command("flip")(flip.flip)
app.command("validate")(validate.validate)
app.command("report")(report.report)
app.command("datasets")(datasets.datasets)
app.command("show")(show.show)
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"noisescope {__version__}")
        raise typer.Exit


def _workspace_settings(context: typer.Context) -> dict[str, dict[str, object]]:
    """Settings of noisescope.toml as defaults of the commands they are named after."""
    from noisescope.workspace import find_workspace

    workspace = find_workspace()
    group = context.command
    if workspace is None or not isinstance(group, TyperGroup):
        return {}
    return {
        section: workspace.settings(section, [option.name or "" for option in command.params])
        for section in workspace.sections
        if (command := group.commands.get(section)) is not None
    }


@app.callback()
def root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Find the wrong labels of a preference dataset before DPO learns them."""
    context.default_map = _workspace_settings(context)


@final
class Stopped(BaseException):
    """A signal asked the command to stop."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def main() -> None:
    """Run the command line of this process and exit with its code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. Every error becomes a message and 2 (unless `--debug`)."""
    try:
        app(args=list(arguments), prog_name="noisescope")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    except (Stopped, KeyboardInterrupt):
        say_error("stopped", f"To continue where it stopped: noisescope {shlex.join(arguments)}")
    except NoisescopeError as error:
        if "--debug" in arguments:
            raise
        say_error(error.message, error.hint)
    except Exception as error:
        if "--debug" in arguments:
            raise
        say_error(
            f"unexpected {type(error).__name__}: {error}",
            "This is a fault in noisescope. Type `noisescope --debug ...` to see where.",
        )
    return 2
