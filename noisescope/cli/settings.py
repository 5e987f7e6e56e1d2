"""Settings of noisescope.toml as defaults of the commands they are named after.

Flags override them. An error in a setting names the file and line, not a flag that nobody typed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import typer
from typer.core import TyperGroup

from noisescope.cli.console import print_note
from noisescope.cli.renamed import current_settings
from noisescope.errors import NoisescopeError, UsageError
from noisescope.storage.workspace import FILE_NAME, Section, Workspace, find_workspace

#: Type of an option's value, its name in messages, and the TOML types accepted for it.
KINDS: tuple[tuple[type, str, tuple[type, ...]], ...] = (
    (bool, "true or false", (bool,)),
    (int, "a whole number", (int,)),
    (float, "a number", (int, float)),
    (list, "a list", (list,)),
)


def workspace_settings(context: typer.Context) -> dict[str, dict[str, object]]:
    """Settings of noisescope.toml as defaults of the commands they are named after.

    [gate] is excluded: the gate reads its own section, to report all faults of a policy at once.
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
    values, notes = current_settings(section, workspace.sections.get(section, {}))
    workspace = replace(workspace, sections={**workspace.sections, section: values})
    workspace.settings(section, [option.name or "" for option in command.params])
    if context.invoked_subcommand == section:
        for note in notes:
            print_note(note)
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
    """Describe why a setting does not fit its option, or return None.

    TOML has types, so text is not accepted for a number, as it would be on the command line.
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


def blamed(
    error: NoisescopeError, command: str, settings: Mapping[str, Any], words: Sequence[str]
) -> NoisescopeError:
    """Replace each flag in an error message that noisescope.toml set by the line of that file."""
    mine = settings.get(command) or {}
    typed = {word.partition("=")[0] for word in words}
    section = "score" if command == "fine-tune" else command
    message, lines = error.message, []
    for key in mine:
        flag = f"--{key.replace('_', '-')}"
        pattern = rf"(?<![\w-]){re.escape(flag)}(?![\w-])"
        if flag not in typed and re.search(pattern, message):
            message = re.sub(pattern, f"[{section}] {key}", message)
            lines.append(_place(section, key))
    if not lines:
        return error
    return type(error)(
        f"{'; '.join(lines)}: {message}",
        hint=f"Correct or remove that line; `noisescope {command} --help` lists the options.",
    )


def _place(section: str, key: str) -> str:
    """File and line of a setting."""
    workspace = find_workspace()
    path = workspace.root / FILE_NAME if workspace else FILE_NAME
    table = ""
    for number, line in enumerate(_lines(workspace), 1):
        if opened := re.match(r"\s*\[([^\[\]]+)\]", line):
            table = opened[1].strip()
        elif table == section and re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line):
            return f"{path}, line {number}"
    return str(path)


def _lines(workspace: Workspace | None) -> list[str]:
    return (workspace.root / FILE_NAME).read_text("utf-8-sig").splitlines() if workspace else []
