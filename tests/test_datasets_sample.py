"""The sample data: made by its generator to the byte, in HH format, with an honest truth."""

from __future__ import annotations

import hashlib
import importlib
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from noisescope.datasets import load
from noisescope.storage.workspace import find_workspace

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generator() -> Any:
    sys.path.insert(0, str(ROOT / "sample_data"))
    try:
        return importlib.import_module("make_hh_rlhf")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def stored() -> Any:
    return load("hh-rlhf", workspace=find_workspace(ROOT))


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """P(score of a positive > score of a negative), ties half."""
    one, other = score[positive][:, None], score[~positive][None, :]
    return float(((one > other) + 0.5 * (one == other)).mean())


def test_stored_data_is_recognised(stored: Any) -> None:
    assert (stored.adapter, len(stored), stored.facts.rejected) == ("hh_rlhf", 4000, {})
    assert (stored.facts.duplicates, stored.facts.contradictions) == (0, 0)
    assert stored.facts.annotators == 16
    assert len(set(stored.table["prompt"].to_pylist())) > 2500
    several = sum(len(turns) > 1 for turns in stored.table["turns"].to_pylist())
    assert 1000 < several < 1400


def test_truth_beside_it(stored: Any) -> None:
    truth = pq.read_table(ROOT / "sample_data/hh-rlhf/truth.parquet")
    assert truth["pair_id"].to_pylist() == stored.table["pair_id"].to_pylist()
    assert truth["annotator"].to_pylist() == stored.table["annotator"].to_pylist()
    wrong = truth["mislabelled"].to_numpy()
    assert 0.15 < wrong.mean() < 0.18
    gap = truth["gap"].to_numpy()
    hard = gap < np.quantile(gap, 0.2)
    assert wrong[hard].mean() > 1.5 * wrong[~hard].mean()
    names = np.array(truth["annotator"].to_pylist())
    rates = {name: wrong[names == name].mean() for name in set(names)}
    assert max(rates, key=lambda name: rates[name]) == "june"
    assert rates["june"] > 0.6
    assert all(0.2 < rates[name] < 0.45 for name in ("femi", "lena", "otto"))


def test_length_does_not_give_the_answer_away(stored: Any) -> None:
    wrong = pq.read_table(ROOT / "sample_data/hh-rlhf/truth.parquet")["mislabelled"].to_numpy()
    lengths = [
        np.array([len(side) for side in stored.table[name].to_pylist()])
        for name in ("chosen", "rejected")
    ]
    assert 0.47 < auroc(lengths[1] - lengths[0], wrong) < 0.6


def test_generator_makes_the_stored_rows(generator: Any, stored: Any) -> None:
    made = list(islice(generator.dataset(), 200))
    assert [row.chosen for row in made] == stored.table["chosen"].to_pylist()[:200]
    assert [row.rejected for row in made] == stored.table["rejected"].to_pylist()[:200]
    assert [row.annotator for row in made] == stored.table["annotator"].to_pylist()[:200]


def test_same_seed_same_bytes(generator: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        generator.write(tmp_path / name, seed=1, n=30)
    for name in ("train.jsonl.gz", "truth.parquet"):
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert hashlib.sha256(one).digest() == hashlib.sha256(two).digest()
    assert (ROOT / "sample_data/hh-rlhf/train.jsonl.gz").stat().st_size < 1_000_000


def test_fresh_transcripts(generator: Any) -> None:
    drawn = list(generator.transcripts(5, 200))
    assert drawn == list(generator.transcripts(5, 200))
    assert drawn != list(generator.transcripts(6, 200))
    for turns, good, bad in drawn:
        assert turns[-1].role == "user"
        assert good.strip()
        assert bad.strip()
        assert "{" not in good + bad + turns[-1].content
    assert sum(good != bad for _, good, bad in drawn) == 200
