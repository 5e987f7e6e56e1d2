"""The command line, gate and query load no heavy library; --help stays quick because of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "diffusers",
    "matplotlib",
    "datasets",
    "pyarrow",
    "duckdb",
    "scipy",
)
LIGHT = (
    "noisescope",
    "noisescope.cli",
    "noisescope.storage.sql",
    "noisescope.storage.run",
    "noisescope.cli.doctor",
    "noisescope.gate.policy",
    "noisescope.scoring.diff",
)


def loaded(statement: str) -> set[str]:
    """Heavy libraries that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_loads_nothing_heavy(module: str) -> None:
    assert loaded(f"import {module}") == set()


def test_help_needs_no_rich() -> None:
    asked = "from noisescope.cli import run; assert run(['--help']) == 0"
    code = f"{asked}\nimport sys\nassert 'rich' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: noisescope" in done.stdout


def test_this_test_can_fail() -> None:
    assert "duckdb" in loaded("import duckdb")
