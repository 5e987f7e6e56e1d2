"""SIGKILL, SIGINT and SIGTERM at seeded points: the same command again ends as an unbroken run.

A few of them; `python -m benchmarks.faults` makes more than a hundred, of all commands.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CODE = "import json; from benchmarks.faults.trials import few; print(json.dumps(few(5, 4)))"


def test_nothing_is_lost_or_there_twice_after_kills() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["faults"] == []
    assert (found["lost_rows"], found["repeated_rows"]) == (0, 0)
    assert found["kills"] >= 4
    assert found["stops"] >= 1
