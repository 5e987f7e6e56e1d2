"""How the package hangs together, read from its imports: no cycles, and a terminal on top alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import noisescope

ROOT = Path(noisescope.__file__).parent
#: What draws on a terminal; a library must not.
TERMINAL = {"typer", "rich", "click"}
LONGEST = 300

Imports = Mapping[str, set[str]]


def imported(source: str, package: str) -> set[str]:
    """Modules that a file of `package` imports as it runs, in functions too; not for types alone.

    `from a import b` counts as `a.b` as well: b may be a module.
    """
    found: set[str] = set()
    for node in _run(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join([*above, *filter(None, [node.module])]) if node.level else node.module
            assert start is not None
            found |= {start, *(f"{start}.{alias.name}" for alias in node.names)}
    return found


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `tree`, without what stands under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from (other, *_run(other))
            continue
        yield node
        yield from _run(node)


def read_imports(root: Path) -> dict[str, set[str]]:
    """By module of the package at `root`, what it imports."""
    result = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        inner = parts[:-1]
        name = inner if parts[-1] == "__init__" else parts
        result[".".join(name)] = imported(path.read_text("utf-8"), ".".join(inner))
    return result


def parts_of(modules: Imports, package: str) -> dict[str, set[str]]:
    """The same between the modules and packages right below `package`."""
    parts = {_part(name, package) for name in modules} - {""}
    result: dict[str, set[str]] = {part: set() for part in parts}
    for name, others in modules.items():
        if part := _part(name, package):
            result[part] |= {_part(other, package) for other in others} & parts - {part}
    return result


def _part(name: str, package: str) -> str:
    """`b` of `package.b.c`; nothing of what is outside it, or is the package itself."""
    return name.removeprefix(f"{package}.").split(".")[0] if name.startswith(f"{package}.") else ""


def find_cycle(graph: Imports) -> list[str]:
    """One way round, its first name again at its end; empty where there is none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if cycle := walk(other, [*way, name]):
                return cycle
        done.add(name)
        return []

    return next((cycle for name in sorted(graph) if (cycle := walk(name, []))), [])


def terminal_faults(modules: Imports, package: str = "noisescope") -> list[str]:
    """Imports of the command line from elsewhere, and of terminal libraries outside it."""
    inside = f"{package}.cli"
    return [
        f"{name} imports {other}"
        for name, others in sorted(modules.items())
        if name not in (inside, f"{package}.__main__") and not name.startswith(f"{inside}.")
        for other in sorted(others)
        if other == inside or other.startswith(f"{inside}.") or other.split(".")[0] in TERMINAL
    ]


MODULES = read_imports(ROOT)


def packages() -> list[str]:
    inner = [path.parent.relative_to(ROOT.parent).parts for path in ROOT.rglob("__init__.py")]
    return sorted(".".join(parts) for parts in inner)


@pytest.mark.parametrize("package", packages())
def test_no_cycle_among_the_parts_of_a_package(package):
    cycle = find_cycle(parts_of(MODULES, package))
    assert not cycle, f"{package}: " + " -> ".join(cycle)


def test_only_the_command_line_knows_a_terminal():
    assert terminal_faults(MODULES) == []


def test_no_file_is_long():
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in ROOT.rglob("*.py")}
    assert {str(path): lines for path, lines in lengths.items() if lines > LONGEST} == {}


def write_package(root: Path, **sources: str) -> dict[str, set[str]]:
    """A package called p with these modules; `__` in a name is a folder."""
    for name, source in {"__init__": "", **sources}.items():
        path = root / "p" / name if name == "__init__" else root / "p" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(source)
    return read_imports(root / "p")


@pytest.mark.parametrize(
    "back",
    [
        "import p.a",
        "from p import a",
        "from p.a import thing",
        "from . import a",
        "from .a import thing",
        "def later():\n    from p.a import thing",
        "try:\n    import p.a\nexcept ImportError:\n    pass",
        "if not TYPE_CHECKING_NOT:\n    pass\nelse:\n    import p.a",
    ],
)
def test_a_cycle_is_named(tmp_path, back):
    modules = write_package(tmp_path, a="import p.b.c", b__c="import p.d", d=back)
    assert find_cycle(parts_of(modules, "p")) == ["a", "b", "d", "a"]


def test_an_import_for_types_alone_is_no_cycle(tmp_path):
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p import a"
    modules = write_package(tmp_path, a="import p.b", b=typed)
    assert find_cycle(parts_of(modules, "p")) == []
    assert "p.a" not in modules["p.b"]


def test_a_terminal_in_a_library_is_named(tmp_path):
    modules = write_package(
        tmp_path,
        a="def show():\n    from rich.table import Table",
        b="from p import cli",
        cli="import typer\nimport p.a",
        __main__="from p.cli import main",
    )
    assert terminal_faults(modules, "p") == [
        "p.a imports rich.table",
        "p.a imports rich.table.Table",
        "p.b imports p.cli",
    ]
