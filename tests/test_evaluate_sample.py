"""The sample tasks' own judges against the samples' truth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from noisescope.datasets import load
from noisescope.datasets.images import decode
from noisescope.evaluate.judges.custom import open_custom
from noisescope.evaluate.prompts import of_dataset
from noisescope.storage.workspace import find_workspace

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FILE = ROOT / "sample_data" / "judges.py"


def better_shares(name: str, function: Any, limit: int) -> tuple[float, float]:
    """Shares of pairs (right, wrong) of a judge, and by the way it is no worse than the labels."""
    dataset = load(str(ROOT / "sample_data" / name), limit=limit)
    truth = {
        row["pair_id"]: row["mislabelled"]
        for row in pq.read_table(ROOT / "sample_data" / name / "truth.parquet").to_pylist()
    }
    table = dataset.table
    right = []
    for prompt, pair, *sides in zip(
        of_dataset(dataset),
        table["pair_id"].to_pylist(),
        table["chosen"].to_pylist(),
        table["rejected"].to_pylist(),
        strict=True,
    ):
        shown = [
            side if dataset.images is None else decode(dataset.images.get(side)) for side in sides
        ]
        gap = function(prompt, shown[0]) - function(prompt, shown[1])
        right.append(np.sign(gap) * (-1 if truth[pair] else 1))
    return float(np.mean(np.array(right) > 0)), float(np.mean(np.array(right) < 0))


@pytest.mark.parametrize(
    ("name", "function", "limit", "least", "most"),
    [("hh-rlhf", "text_quality", 400, 0.9, 0.06), ("pick-a-pic", "image_quality", 160, 0.9, 0.1)],
)
def test_the_samples_judges_know_the_better_side(
    name: str, function: str, limit: int, least: float, most: float
) -> None:
    judge = open_custom(f"{FILE}:{function}", "text" if name == "hh-rlhf" else "image")
    right, wrong = better_shares(name, judge.function, limit)
    assert right > least
    assert wrong < most
    assert str(FILE.parent) not in sys.path


def test_the_workspace_names_them() -> None:
    workspace = find_workspace(ROOT)
    assert workspace is not None
    for name in ("hh-rlhf", "pick-a-pic"):
        judge = workspace.datasets[name].judge
        assert judge is not None
        assert Path(judge.rpartition(":")[0]) == FILE
