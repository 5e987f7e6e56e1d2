"""How the package hangs together, read from its imports: no cycles, and a terminal on top alone."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from pathlib import Path

import pytest

import noisescope

ROOT = Path(noisescope.__file__).parent
#: What draws the architecture page reads the imports, too.
SCRIPT = runpy.run_path(str(ROOT.parent / "docs" / "make_architecture.py"))
LAYERS, read_imports, parts_of = (SCRIPT[n] for n in ("LAYERS", "read_imports", "parts_of"))
#: What draws on a terminal; a library must not.
TERMINAL = {"typer", "rich", "click"}
#: What the half that turns evidence into answers never needs.
TORCH = {"torch", "transformers", "diffusers", "peft", "accelerate"}
LONGEST = 300

Imports = Mapping[str, set[str]]


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


def test_layers_import_one_way_and_every_part_is_in_one():
    graph = SCRIPT["layers"](parts_of(MODULES, "noisescope"))
    assert find_cycle(graph) == []
    with pytest.raises(AssertionError, match="unheard"):
        SCRIPT["layers"](parts_of(MODULES, "noisescope") | {"unheard": set()})


@pytest.mark.parametrize("layer", ["Verdicts", "Results"])
def test_evidence_becomes_answers_without_torch(layer):
    inside = tuple(f"noisescope.{name}" for name in LAYERS[layer][1])
    loaded = {
        name: {other.partition(".")[0] for other in others} & TORCH
        for name, others in MODULES.items()
        if name in inside or name.startswith(tuple(f"{one}." for one in inside))
    }
    assert len(loaded) > 10
    assert {name: found for name, found in loaded.items() if found} == {}


def test_the_page_and_its_picture_are_those_of_the_code():
    graph = SCRIPT["layers"](parts_of(MODULES, "noisescope"))
    text = SCRIPT["PAGE"].read_text("utf-8")
    again = "type: python docs/make_architecture.py"
    assert SCRIPT["page"](text, SCRIPT["modules_of"](ROOT)) == text, again
    assert SCRIPT["picture"](graph) == SCRIPT["PICTURE"].read_text("utf-8"), again


def test_every_module_states_its_one_job():
    jobs = {name: SCRIPT["job"](source) for name, source in SCRIPT["modules_of"](ROOT).items()}
    assert {name: job for name, job in jobs.items() if not 20 <= len(job) <= 130} == {}
    assert len(set(jobs.values())) == len(jobs)


def test_arrows_that_follow_from_others_are_left_out():
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert SCRIPT["needed"](graph) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert SCRIPT["levels"](graph) == {"a": 3, "b": 2, "c": 1, "d": 0}


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
