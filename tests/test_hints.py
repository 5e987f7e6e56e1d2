"""Every hint can be followed: its commands, options and extras exist."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from noisescope.cli import app

ROOT = Path(__file__).parent.parent
#: Commands of other tools, whose options are theirs.
OTHERS = re.compile(r"\b(?:pip|git|hf|accelerate|torchrun|python|ls|df|huggingface-cli)\s[^`;.]*")
COMMAND = re.compile(r"noisescope ([a-z][a-z-]+)([^`;]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*(?![\w-])")  # accelerate's have a _
EXTRA = re.compile(r"noisescope\[([a-z,-]+)\]")
#: What follows the name of the program in a sentence, not in a command.
WORDS = {"from", "that"}
#: Commands under way, whose options exist once they do.
COMING = {"review": {"--reviewer"}}


@cache
def options() -> dict[str, frozenset[str]]:
    """Options by command."""
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    return {
        name: frozenset(
            option
            for parameter in command.params
            for option in (*parameter.opts, *parameter.secondary_opts)
        )
        | {"--help"}
        for name, command in commands.items()
    }


def texts(node: ast.expr, named: dict[str, ast.expr]) -> Iterator[str]:
    """Every text that an expression may be; {} stands for what is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            parts = [v.value if isinstance(v, ast.Constant) else "{}" for v in values]
            yield "".join(map(str, parts))
        case ast.BinOp(left=left, right=right):
            for one in texts(left, named):
                for other in texts(right, named):
                    yield one + other
        case ast.IfExp(body=body, orelse=other):
            yield from texts(body, named)
            yield from texts(other, named)
        case ast.Name(id=name) if name in named:
            yield from texts(named[name], named)
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            yield from texts(value, named)
        case _:
            yield ""


@cache
def constants() -> dict[str, ast.expr]:
    """Module-level texts of the package by name (hints kept as constants)."""
    found: dict[str, ast.expr] = {}
    for path in (ROOT / "noisescope").rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found[node.targets[0].id] = node.value
    return found


@cache
def hints() -> list[tuple[str, str]]:
    """(file:line, text) of every hint in the package."""
    found = []
    for path in sorted((ROOT / "noisescope").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "hint":
                place = f"{path.relative_to(ROOT)}:{node.value.lineno}"
                found += [(place, text) for text in texts(node.value, constants()) if text]
    return found


def faults(text: str) -> list[str]:
    """What of a hint does not exist."""
    known = options()
    every = frozenset().union(*known.values())
    every |= {o for name, own in COMING.items() if name not in known for o in own}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = [
        f"extra {name}"
        for names in EXTRA.findall(text)
        for name in names.split(",")
        if name not in extras["optional-dependencies"]
    ]
    text = OTHERS.sub("", text)
    for name, rest in COMMAND.findall(text):
        if name in WORDS:
            continue
        if name not in known:
            found.append(f"command {name}")
            continue
        own = OPTION.findall(re.split(r"[,.] ", rest)[0])
        found += [f"{name} {option}" for option in own if option not in known[name]]
    return found + [f"option {o}" for o in OPTION.findall(text) if o not in every]


def test_there_are_hints_of_every_kind() -> None:
    found = " ".join(text for _, text in hints())
    assert len(hints()) > 200
    assert COMMAND.search(found)
    assert len(set(OPTION.findall(found))) > 20
    assert EXTRA.search(found)


@pytest.mark.parametrize("place", sorted({place.rpartition(":")[0] for place, _ in hints()}))
def test_every_hint_names_what_exists(place: str) -> None:
    wrong = {
        where: bad
        for where, text in hints()
        if where.startswith(f"{place}:") and (bad := faults(text))
    }
    assert not wrong


@pytest.mark.parametrize(
    "text",
    [
        "`noisescope fly` helps.",
        "Type noisescope gate --rank 1.",
        "Give --chat-templates never.",
        "pip install 'noisescope[wings]'",
    ],
)
def test_this_test_can_fail(text: str) -> None:
    assert faults(text)
