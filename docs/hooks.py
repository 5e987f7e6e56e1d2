"""Build steps of the documentation site: the command reference, and links into the repository.

mkdocs.yml names this file under `hooks`. `reference()` returns the page of all commands, generated
from the commands themselves, so the page is not kept in git.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from typer.main import get_command

from noisescope.cli import app

HEAD = """# Commands

Every command also takes `--help`. `noisescope --debug COMMAND` shows tracebacks. Results go to
stdout, progress and messages to stderr.
[Exit codes](output.md#exit-codes): 0 done or gate passed, 1 gate failed, 2 anything else.
"""


def on_files(files: Any, config: Any) -> Any:
    """Add cli.md to the pages of the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "cli.md", content=reference()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace links to repository files, which the site does not have, by their paths."""
    return re.sub(r"\[([^\]]+)\]\(\s*\.\./([^)\s]+)\s*\)", r"\1 (`\2` in the repository)", markdown)


def reference() -> str:
    """Return the command reference: one section per command, in the order of `--help`."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    shown = (_section(name, command) for name, command in commands.items() if not command.hidden)
    return "\n".join([HEAD, *shown])


def _section(name: str, command: Any) -> str:
    text, _, example = inspect.cleandoc(command.help or "").partition("Example:")
    context = command.make_context(name, [], resilient_parsing=True)
    lines = [f"## {name}", "", _prose(text), ""]
    if example.strip():
        lines += ["```text", " ".join(example.split()), "```", ""]
    for title in ("argument", "option"):
        found = [
            parameter
            for parameter in command.params
            if parameter.param_type_name == title and not parameter.hidden
        ]
        if found:
            rows = [_row(parameter, context) for parameter in found]
            lines += [f"| {title} | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _prose(text: str) -> str:
    """Convert help text to Markdown: remove click's line marks and rich's markup."""
    return re.sub(
        r"\[/?(?:bold|dim|italic|cyan|green|yellow|red)\]", "", text.replace("\b", "")
    ).strip()


def _row(parameter: Any, context: Any) -> str:
    """Return the table row of a parameter: how it is written, its help, its default."""
    written, text = parameter.get_help_record(context) or (parameter.name.upper(), parameter.help)
    return f"| `{_cell(written)}` | {_cell(text or '')} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
