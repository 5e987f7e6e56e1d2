"""docs/extending.md: its examples run, and the files and registries it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from noisescope.datasets import ADAPTERS
from noisescope.datasets.readers import Row
from noisescope.datasets.recognition import recognise
from noisescope.detectors import DETECTORS, Evidence
from noisescope.objectives import OBJECTIVES, PairValues

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of the page, run; what they registered is removed afterwards."""
    for name, registry in (("best_worst", ADAPTERS), ("squared", OBJECTIVES), ("worst", DETECTORS)):
        monkeypatch.setitem(registry, name, None)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, {"__name__": __name__})


@pytest.mark.usefixtures("examples")
def test_the_examples_run() -> None:
    row = {"question": "Bread?", "best": "Bake it.", "worst": "No."}
    adapter, _ = recognise([Row("a", number, row) for number in range(3)])
    (pair,) = adapter.parse(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Bread?", "Bake it.", "No.")
    assert adapter.flip(adapter.flip(row)) == row
    loss = OBJECTIVES["squared"](beta=0.5)(PairValues(torch.tensor([2.0, 0.0])))
    assert loss.tolist() == [0.0, 1.0]
    margins = np.array([[[1.0, -2.0]], [[3.0, 0.0]]])
    evidence = Evidence(margins, np.ones((2, 2), bool), beta=0.1)
    assert DETECTORS["worst"].score(evidence).tolist() == [-2.0, 1.0]


def test_named_files_exist_and_hold_the_named_registries() -> None:
    named = set(re.findall(r"`((?:noisescope|tests|\.ci)/[\w/.]*)`", PAGE))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []
    for registry, path in re.findall(r"`([A-Z]{5,})`\s+\(`([\w/.]+)`\)", PAGE):
        assert re.search(rf"^{registry}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
