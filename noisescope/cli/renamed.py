"""Old spellings of options: accepted with a note for one version, here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Command -> old option -> the option that replaces it.
RENAMED: dict[str, dict[str, str]] = {
    "flip": {"--out": "--output"},
    "evaluate": {"--out": "--output", "--batch": "--batch-size"},
    "train": {"--batch": "--batch-size", "--lr": "--learning-rate"},
}
#: Command -> old option whose value is now its last argument.
ARGUMENT = {"query": "--run", "show": "--run", "validate": "--run"}
_LATER = "the old name goes in the next version"


def current_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line with old options replaced, and a note for each."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    renamed, argument = RENAMED.get(command, {}), ARGUMENT.get(command)
    words: list[str] = []
    last: list[str] = []
    notes: dict[str, None] = {}
    given = iter(arguments)
    for word in given:
        if word == "--":
            words += [word, *given]
            break
        name, equals, value = word.partition("=")
        if name in renamed:
            words.append(renamed[name] + equals + value)
            notes[f"{name} is now {renamed[name]}; {_LATER}"] = None
        elif name == argument:
            last = [value] if equals else [next(given, "")]
            notes[f"{name} is now an argument: noisescope {command} ... RUN; {_LATER}"] = None
        else:
            words.append(word)
    return words + last, list(notes)


def current_settings(section: str, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings of a section of noisescope.toml with old keys replaced, and notes."""
    renamed = {_key(old): _key(new) for old, new in RENAMED.get(section, {}).items()}
    notes = [
        f"noisescope.toml: [{section}] {key} is now {renamed[key]}; {_LATER}"
        for key in values
        if key in renamed
    ]
    return {renamed.get(key, key): value for key, value in values.items()}, notes


def _key(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")
