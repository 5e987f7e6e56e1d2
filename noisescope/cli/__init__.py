"""The command line: one file a command. Only this package imports typer and rich.

Exit codes: 0 done, or gate passed; 1 gate breached; 2 anything else. Results go to stdout,
progress and chatter to stderr; a traceback is shown only with `--debug`.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any, final

import typer
from typer.core import TyperGroup

from noisescope import __version__
from noisescope.cli import (
    agreement,
    datasets,
    diff,
    doctor,
    export,
    fine_tune,
    flip,
    gate,
    query,
    report,
    score,
    show,
    train,
    validate,
)
from noisescope.cli.console import say_error
from noisescope.errors import NoisescopeError, UsageError
from noisescope.workspace import FILE_NAME, Section, Workspace, find_workspace

#: What an option's value is read as, how that is called, and how noisescope.toml may write it.
KINDS: tuple[tuple[type, str, tuple[type, ...]], ...] = (
    (bool, "true or false", (bool,)),
    (int, "a whole number", (int,)),
    (float, "a number", (int, float)),
    (list, "a list", (list,)),
)


@final
class Commands(TyperGroup):
    """The group of all commands. Its own help is plain text: importing rich would double its time.

    (The help of a single command, with its panels, is rich's.)
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.rich_markup_mode = None


app = typer.Typer(
    name="noisescope",
    cls=Commands,
    help="Find the wrong labels of a preference dataset before DPO learns them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("score")(score.score)
app.command("fine-tune")(fine_tune.fine_tune)
app.command("query")(query.query)
app.command("flip")(flip.flip)
app.command("validate")(validate.validate)
app.command("report")(report.report)
app.command("gate")(gate.gate)
app.command("diff")(diff.diff)
app.command("export")(export.export)
app.command("datasets")(datasets.datasets)
app.command("agreement")(agreement.agreement)
app.command("show")(show.show)
app.command("train")(train.train)
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"noisescope {__version__}")
        raise typer.Exit


def _workspace_settings(context: typer.Context) -> dict[str, dict[str, object]]:
    """Settings of noisescope.toml as defaults of the commands they are named after.

    Not [gate]: a policy tells all its faults at once, so the gate reads its own section.
    """
    workspace = find_workspace()
    group = context.command
    if workspace is None or not isinstance(group, TyperGroup):
        return {}
    names = {
        name: [option.name or "" for option in command.params]
        for name, command in group.commands.items()
    }
    found: dict[str, dict[str, object]] = {
        section: _checked(workspace, section, group.commands[section], context)
        for section in workspace.sections
        if section in names and section != "gate"
    }
    shared = found.get("score", {}).items()  # the same replicas, so the same settings
    found["fine-tune"] = {key: value for key, value in shared if key in names["fine-tune"]}
    return found


def _checked(
    workspace: Workspace, section: Section, command: Any, context: typer.Context
) -> dict[str, object]:
    """The settings of a section, each of its option's type. Raises UsageError naming all faults."""
    values = workspace.settings(section, [option.name or "" for option in command.params])
    faults = [
        f"[{section}] {option.name} = {json.dumps(values[option.name], default=str)}: {fault}"
        for option in command.params
        if option.name in values and (fault := _misfit(option, values[option.name], context))
    ]
    if faults:
        raise UsageError(
            f"{workspace.root / FILE_NAME}: {'; '.join(faults)}",
            hint=f"Correct or remove these lines; `noisescope {section} --help` lists the options.",
        )
    return values


def _misfit(option: Any, value: object, context: typer.Context) -> str | None:
    """What is wrong with a setting as the value of an option; None where it fits.

    TOML has types, so text is no number here, though it would be on the command line.
    """
    try:
        read = option.process_value(context, value)
    except typer.BadParameter as error:
        return error.message.removeprefix("Input ").partition(", unable")[0]
    except (TypeError, ValueError):
        return "not a value of this option"
    for type_, wanted, types in KINDS:
        if isinstance(read, type_):
            fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
            return None if fits else f"expected {wanted}"
    return None if isinstance(value, str) else "expected text"


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
    if context.invoked_subcommand != "doctor":  # which tells of a damaged workspace itself
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
