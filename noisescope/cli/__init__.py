"""The command line: one file a command, each of which parses, calls one function and prints.

The only folder that may import typer and rich, and the only one nothing else imports.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, final

import typer
from typer.core import TyperGroup

from noisescope import __version__
from noisescope.auditing.ranks import AGAIN
from noisescope.cli import (
    agreement,
    apply,
    datasets,
    diff,
    doctor,
    evaluate,
    explain,
    export,
    fine_tune,
    flip,
    gate,
    merge,
    query,
    report,
    review,
    sample,
    score,
    show,
    train,
    validate,
)
from noisescope.cli.console import Stopped, interrupted, listen, print_error, print_note
from noisescope.cli.options import Command
from noisescope.cli.renamed import current_words
from noisescope.cli.settings import blamed, workspace_settings
from noisescope.errors import NoisescopeError, UsageError, share_hint
from noisescope.models.device import launched
from noisescope.storage.redact import masked

#: Where a context keeps the words typed; the words that only print help.
WORDS = "noisescope.words"
#: What pydantic calls text that is no number, and what a reader calls it.
NUMBER = ("Input should be a valid number, unable to parse string as a number", "not a number")
HELP = frozenset({"-h", "--help"})
#: Every fault of a typed line: an unknown command or option, a value that does not fit.
CLICK_ERROR: type[Any] = typer.BadParameter.__mro__[1]


@final
class Commands(TyperGroup):
    """The group of all commands.

    Its own help is plain text, because importing rich would double its time; the help of a single
    command is printed by rich.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.rich_markup_mode = None

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        """Keep the words typed: an error in one of them is not blamed on noisescope.toml."""
        context.meta[WORDS] = tuple(args)
        return super().parse_args(context, args)

    def format_commands(self, context: Any, formatter: Any) -> None:
        """Write the first sentence of every command in whole, in groups."""
        for title, commands in GROUPS.items():
            rows = [(name, _first_sentence(self.commands[name].help or "")) for name in commands]
            with formatter.section(title):
                formatter.write_dl(rows)

    def invoke(self, context: Any) -> Any:
        """Run a command; name the line of noisescope.toml that caused an error, if one did.

        An error in the typed arguments ends with the command's example.
        """
        try:
            return super().invoke(context)
        except CLICK_ERROR as error:
            command = error.ctx.command if error.ctx else self
            message = error.format_message().replace("Value error, ", "").replace(*NUMBER)
            hint = f"{_meant(message, context.meta[WORDS])}{_example(command)}"
            raise UsageError(message, hint=hint) from error
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
#: All commands, in the groups and the order of the help.
GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Start": {
        "sample": sample.sample,
        "datasets": datasets.datasets,
        "doctor": doctor.doctor,
    },
    "Find wrong labels": {
        "score": score.score,
        "report": report.report,
        "explain": explain.explain,
        "show": show.show,
        "query": query.query,
        "review": review.review,
        "validate": validate.validate,
        "agreement": agreement.agreement,
    },
    "Correct a dataset, and watch it": {
        "apply": apply.apply,
        "export": export.export,
        "gate": gate.gate,
        "diff": diff.diff,
        "flip": flip.flip,
    },
    "Train on weighted labels": {
        "train": train.train,
        "evaluate": evaluate.evaluate,
    },
    "Large audits in parts": {
        "fine-tune": fine_tune.fine_tune,
        "merge": merge.merge,
    },
}
for _group in GROUPS.values():
    for _name, _function in _group.items():
        app.command(_name, cls=Command)(_function)


def _first_sentence(help: str) -> str:
    """The first paragraph of a command's help in one line."""
    return " ".join(help.partition("\n\n")[0].split())


def _meant(message: str, words: Sequence[str]) -> str:
    """The value that was probably meant by one that is none of the choices, or has a % sign."""
    if choices := re.search(r"'([^']*)' is not one of (.*)", message):
        close = get_close_matches(choices[1], re.findall(r"'([^']*)'", choices[2]), n=1)
        return f"Did you mean {close[0]!r}?\n" if close else ""
    shares = (share_hint("", word.rpartition("=")[2], 1) for word in words if word.endswith("%"))
    hint = next(filter(None, shares), None)
    return f"{hint}\n" if hint and NUMBER[1] in message else ""


def _example(command: Any) -> str:
    """The example in a command's help, as the hint of a usage error."""
    if isinstance(command, TyperGroup):
        return "`noisescope --help` lists the commands."
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
    if context.invoked_subcommand == "doctor":  # it reports a damaged workspace itself
        return
    try:
        context.default_map = workspace_settings(context)
    except NoisescopeError as error:
        if not HELP.intersection(context.meta[WORDS]):
            raise
        print_note(f"{error.message}: the defaults below ignore this workspace")


#: Exit code of a command whose output is a closed pipe, as shells give it: 128 + SIGPIPE.
CLOSED = 141


def main() -> None:
    """Run the command line of this process and exit with its code."""
    listen()
    if not sys.stderr.isatty():  # bars of libraries would fill a log; tqdm reads this when imported
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        code = run(sys.argv[1:])
    except Exception as error:  # of `--debug`; a hook of ours would be replaced by typer's
        sys.stderr.write(masked("".join(traceback.format_exception(error))))
        code = 2
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    Every error becomes a message and exit code 2; with `--debug`, a traceback. CLOSED if a reader
    of the output is gone: typer exits with 1 then, which is a failed gate.
    """
    arguments, notes = current_words(arguments)
    for note in notes:
        print_note(note)
    try:
        app(args=arguments, prog_name="noisescope")
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):
            return CLOSED
        return leaving.code if isinstance(leaving.code, int) else 0
    except (Stopped, KeyboardInterrupt) as signal:
        _print_stopped(signal, arguments)
    except Exception as error:
        if interrupted():  # DuckDB, for one, raises an error of its own instead
            _print_stopped(error, arguments)
        elif "--debug" in arguments:
            raise
        elif isinstance(error, NoisescopeError):
            print_error(error.message, error.hint)
        else:
            print_error(*_explained(error))
    return 2


def _print_stopped(signal: BaseException, arguments: Sequence[str]) -> None:
    """What is kept, and the command that continues."""
    kept = " ".join(getattr(signal, "__notes__", ()))
    again = f"To continue, run it again: noisescope {shlex.join(arguments)}"
    print_note("\n".join([f"Stopped. {kept}".strip(), AGAIN if launched() else again]))


def _explained(error: Exception) -> tuple[str, str]:
    """Message and hint of an unexpected error."""
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, OSError) and error.errno is not None:
        message = f"{error.filename}: {error.strerror}" if error.filename else first
        return message, "Check free space (`df -h`) and permissions (`ls -l`)."
    if isinstance(error, MemoryError) or "torch" in sys.modules:
        from noisescope.models.memory import HINT, out_of_memory

        if out_of_memory(error):
            return f"out of memory: {first}", f"Finished work is kept. {HINT}"
    return (
        f"unexpected {type(error).__name__}: {error}",
        "This is a bug in noisescope. `noisescope --debug ...` shows the traceback.",
    )
