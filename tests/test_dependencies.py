"""The policy on dependencies (SECURITY.md): floors, reasoned ceilings, versions tested."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = PROJECT["optional-dependencies"].values()
ALL = NEEDED + [Requirement(text) for extra in EXTRAS for text in extra]
TESTED = {
    Requirement(line).name.lower(): Version(line.split("==")[1])
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}


def bounds(specifier: SpecifierSet) -> dict[str, Version]:
    return {one.operator: Version(one.version) for one in specifier}


@pytest.mark.parametrize("needed", ALL, ids=str)
def test_every_dependency_has_a_floor_and_at_most_a_major_ceiling(needed: Requirement) -> None:
    found = bounds(needed.specifier)
    assert ">=" in found, f"{needed.name} has no floor"
    assert set(found) <= {">=", "<"}, f"{needed.name}: a floor, and at most a ceiling"
    if "<" in found:
        assert found["<"].release[1:] in ((), (0,)), f"{needed.name}: ceilings are major releases"
        assert found["<"].major > found[">="].major


@pytest.mark.parametrize("needed", NEEDED, ids=str)
def test_the_tested_versions_are_within_the_bounds(needed: Requirement) -> None:
    assert needed.specifier.contains(TESTED[needed.name.lower()])
    assert needed.specifier.contains(metadata.version(needed.name))


def test_only_calendar_versions_of_what_is_needed_have_no_ceiling() -> None:
    without = {one.name: bounds(one.specifier) for one in NEEDED}
    free = {name: found[">="] for name, found in without.items() if "<" not in found}
    assert all(floor.major > 2000 for floor in free.values()), free


def test_the_policy_is_written_down() -> None:
    told = (ROOT / "SECURITY.md").read_text()
    assert "floor" in told
    assert "ceiling" in told
    assert "pip-audit" in (ROOT / "CONTRIBUTING.md").read_text()
