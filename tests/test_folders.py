"""The package's folders import one way, and only the command line uses a terminal."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import noisescope

ROOT = Path(noisescope.__file__).parent
#: Folders and root modules from bottom to top; each may import those on lower lines.
LEVELS = (
    ("errors", "pairs", "progress"),
    ("storage",),
    ("datasets", "scoring"),
    ("models",),
    ("training",),
    ("replicas",),
    ("auditing",),
    ("export", "report"),
    ("gate", "evaluate"),
    ("audited",),
    ("api",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
#: What draws on a terminal.
TERMINAL = {"typer", "rich", "click"}
#: What scores, reports, gates and exports must do without.
TORCH = {"torch", "transformers", "diffusers", "peft", "accelerate"}


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere, also in functions and for types."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files() -> Iterator[tuple[str, Path]]:
    """Each file with the folder or root module it belongs to."""
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).parts[0].removesuffix(".py"), path


def upward(room: str, names: Iterator[str]) -> list[str]:
    """Imports from `room` that do not point downward."""
    inside = [name.split(".")[1] for name in names if name.startswith("noisescope.")]
    return [
        other
        for other in inside
        if other in LEVEL and other != room and LEVEL[other] >= LEVEL[room]
    ]


def test_every_entry_has_a_level():
    rooms = {room for room, _ in files()} - {"__init__", "__main__"}
    assert rooms == set(LEVEL)


def test_imports_point_downward():
    found = {
        str(path.relative_to(ROOT)): wrong
        for room, path in files()
        if room in LEVEL and (wrong := upward(room, imports(path)))
    }
    assert found == {}


def test_an_upward_import_is_found():
    assert upward("storage", iter(["noisescope.scoring.margins", "os.path"])) == ["scoring"]
    assert upward("cli", iter(["noisescope.gate.checks"])) == []


def test_only_the_command_line_uses_a_terminal():
    found = {
        str(path.relative_to(ROOT))
        for room, path in files()
        if room not in ("cli", "__main__")
        and TERMINAL & {name.split(".")[0] for name in imports(path)}
    }
    assert found == set()


def test_answers_are_made_without_torch():
    found = {
        str(path.relative_to(ROOT))
        for room, path in files()
        if room in ("scoring", "report", "gate", "export")
        and TORCH & {name.split(".")[0] for name in imports(path)}
    }
    assert found == set()


def test_every_folder_has_a_docstring():
    for path in ROOT.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path
