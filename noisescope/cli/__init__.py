"""The command line: one file a command, each of which parses, calls one function and prints.

The only folder that may import typer and rich, and the only one nothing else imports.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any, final

import typer
from typer.core import TyperGroup

from noisescope import __version__
from noisescope.auditing.ranks import AGAIN
from noisescope.cli import (
    agreement,
    datasets,
    diff,
    doctor,
    evaluate,
    export,
    fine_tune,
    flip,
    gate,
    merge,
    query,
    report,
    sample,
    score,
    show,
    train,
    validate,
)
from noisescope.cli.console import Stopped, listen, say, say_error
from noisescope.cli.settings import blamed, workspace_settings
from noisescope.errors import NoisescopeError, UsageError
from noisescope.models.device import launched

#: Where a context keeps the words that were typed; those that ask for help alone.
WORDS = "noisescope.words"
HELP = frozenset({"-h", "--help"})


@final
class Commands(TyperGroup):
    """The group of all commands. Its own help is plain text: importing rich would double its time.

    (The help of a single command, with its panels, is rich's.)
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.rich_markup_mode = None

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        """Keep the words: who typed what decides where an error is to be mended."""
        context.meta[WORDS] = tuple(args)
        return super().parse_args(context, args)

    def invoke(self, context: Any) -> Any:
        """Run a command; an error about a setting of noisescope.toml names its line, one about
        what was typed ends with the command's example.
        """
        try:
            return super().invoke(context)
        except typer.BadParameter as error:
            command = error.ctx.command if error.ctx else self
            raise UsageError(error.format_message(), hint=_example(command)) from error
        except NoisescopeError as error:
            section = context.invoked_subcommand or ""
            raise blamed(error, section, context.default_map or {}, context.meta[WORDS]) from error


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
app.command("merge")(merge.merge)
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
app.command("sample")(sample.sample)
app.command("evaluate")(evaluate.evaluate)
app.command("doctor")(doctor.doctor)


def _example(command: Any) -> str:
    """How to type a command right: the example of its help."""
    _, _, example = (command.help or "").partition("Example:")
    more = f"`noisescope {command.name} --help` lists the options."
    return f"Example: {' '.join(example.split())}\n{more}" if example else more


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"noisescope {__version__}")
        raise typer.Exit


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
    if context.invoked_subcommand == "doctor":  # which tells of a damaged workspace itself
        return
    try:
        context.default_map = workspace_settings(context)
    except NoisescopeError as error:
        if not HELP.intersection(context.meta[WORDS]):
            raise
        say(f"{error.message}: the defaults below are not this workspace's")


def main() -> None:
    """Run the command line of this process and exit with its code."""
    listen()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. Every error becomes a message and 2 (unless `--debug`)."""
    try:
        app(args=list(arguments), prog_name="noisescope")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    except (Stopped, KeyboardInterrupt) as signal:
        said = f"stopped by {signal.name}" if isinstance(signal, Stopped) else "stopped"
        again = f"To continue, type it again: noisescope {shlex.join(arguments)}"
        say_error(said, AGAIN if launched() else again)
    except NoisescopeError as error:
        if "--debug" in arguments:
            raise
        say_error(error.message, error.hint)
    except Exception as error:
        if "--debug" in arguments:
            raise
        say_error(*_explained(error))
    return 2


def _explained(error: Exception) -> tuple[str, str]:
    """What to say of an error that nobody foresaw, and what to do about it."""
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, OSError) and error.errno is not None:
        told = f"{error.filename}: {error.strerror}" if error.filename else first
        return told, "Is there room on the disk, and may you read and write there? df -h, ls -l"
    if isinstance(error, MemoryError) or "torch" in sys.modules:
        from noisescope.models.memory import HINT, out_of_memory

        if out_of_memory(error):
            return f"out of memory: {first}", f"What is finished is kept. {HINT}"
    return (
        f"unexpected {type(error).__name__}: {error}",
        "This is a fault in noisescope. Type `noisescope --debug ...` to see where.",
    )
