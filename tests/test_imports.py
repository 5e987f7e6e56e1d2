"""The command line, gate and query load no heavy library; --help stays quick because of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_a_mistyped_file_is_answered_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    code = (
        f"import os, sys; os.chdir({str(tmp_path)!r}); from noisescope.cli import run\n"
        "assert run(['score', 'pairz.jsonl']) == 2\n"
        "assert not {'torch', 'transformers', 'datasets', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Did you mean pairs.jsonl?" in done.stderr


def test_this_test_can_fail() -> None:
    assert "duckdb" in loaded("import duckdb")
