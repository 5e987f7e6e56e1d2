"""docs/extending.md and datasets.md: examples run, and files and registries named are there."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.gate_runs import made_pairs, made_run

from noisescope.datasets import ADAPTERS, recognise
from noisescope.evaluate.comparison import Comparison, Prompt
from noisescope.evaluate.judges import JUDGES, JudgeOptions, open_judge
from noisescope.gate.checks import CHECKS
from noisescope.gate.evaluate import check_gate
from noisescope.gate.input import Subject
from noisescope.gate.policy import Policy
from noisescope.scoring.detectors import DETECTORS, Evidence
from noisescope.training.objectives import OBJECTIVES, PairValues

ROOT = Path(__file__).parent.parent
#: What the page registers, in the order of its sections.
NAMES = ("best_worst", "squared", "worst", "long_prompts", "brief")
PAGE = "".join(
    (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("datasets.md", "extending.md")
)


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block of the page, run; what they registered is removed afterwards."""
    registries: tuple[dict[str, Any], ...] = (ADAPTERS, OBJECTIVES, DETECTORS, CHECKS, JUDGES)
    for name, registry in zip(NAMES, registries, strict=True):
        monkeypatch.setitem(registry, name, None)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, {"__name__": __name__})


@pytest.mark.usefixtures("examples")
def test_the_examples_run() -> None:
    row = {"question": "Bread?", "best": "Bake it.", "worst": "No."}
    adapter = recognise([row] * 3)
    (pair,) = adapter.parse(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Bread?", "Bake it.", "No.")
    assert adapter.flip(adapter.flip(row)) == row
    loss = OBJECTIVES["squared"](beta=0.5)(PairValues(torch.tensor([2.0, 0.0])))
    assert loss.tolist() == [0.0, 1.0]
    margins = np.array([[[1.0, -2.0]], [[3.0, 0.0]]])
    evidence = Evidence(margins, np.ones((2, 2), bool), beta=0.1)
    assert DETECTORS["worst"].score(evidence).tolist() == [-2.0, 1.0]


@pytest.mark.usefixtures("examples")
def test_the_check_and_the_judge_of_the_examples_decide(tmp_path: Path) -> None:
    pairs = made_pairs(20)
    run = made_run(tmp_path, [*pairs, replace(pairs[0], prompt="x" * 20_001)], np.ones(21))
    results = {result.check: result for result in check_gate(Subject(run), Policy()).results}
    assert results["long_prompts"].status == "fail"
    assert "1 prompts" in results["long_prompts"].message
    judge = open_judge("brief", "text", JudgeOptions("cpu"))
    (verdict,) = judge.judge([Comparison(Prompt("Bread?"), "Bake it.", "No, never, not at all.")])
    assert verdict.outcome == 1.0


def test_named_files_exist_and_hold_the_named_registries() -> None:
    named = set(re.findall(r"`((?:noisescope|tests|\.ci)/[\w/.]*)`", PAGE))
    assert len(named) >= 8
    assert [name for name in named if not (ROOT / name).exists()] == []
    for registry, path in re.findall(r"`([A-Z]{5,})`\s+\(`([\w/.]+)`\)", PAGE):
        assert re.search(rf"^{registry}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
