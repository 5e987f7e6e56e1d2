"""The training benchmarks: what they train, keep and count, on cases small enough to work out."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noisescope.objectives import CDPO, DPO, RDPO, ROPO, DistilledDPO

ROOT = Path(__file__).resolve().parent.parent

#: Four responses whose worth is their first coordinate; the second is noise.
ROWS = torch.tensor([[2.0, 0.3], [1.0, -0.2], [-1.0, 0.1], [-2.0, -0.4]])
BETTER, WORSE, NOBODY = np.array([0, 0, 1]), np.array([2, 3, 3]), np.zeros(3, np.int64)


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Benchmarks stand beside the tests."""
    monkeypatch.syspath_prepend(ROOT)


def part(name: str) -> Any:
    return importlib.import_module(f"benchmarks.downstream{name}")


def learnt(objective, chosen=BETTER, rejected=WORSE, **told) -> torch.Tensor:
    """theta of every penalty, [K, Q]."""
    policies = part("_policies")
    split = policies.Split(ROWS, *(np.arange(3) for _ in range(3)))
    lesson = policies.Lesson(objective, **told)
    return policies.train(split, (chosen, rejected), lesson, NOBODY[: len(chosen)])


def margins_of(theta: torch.Tensor) -> torch.Tensor:
    """Margins of the training pairs under every penalty, [n, Q]."""
    return (ROWS @ theta)[BETTER] - (ROWS @ theta)[WORSE]


def test_a_policy_learns_its_labels_and_a_penalty_holds_it_back():
    margins = margins_of(learnt(DPO(0.1)))
    assert margins.shape == (3, len(part("_policies").PENALTIES))
    assert (margins > 0).all()
    assert (margins[0].diff() < 0).all()
    assert (margins_of(learnt(DPO(0.1), WORSE, BETTER)) < 0).all()


def test_a_pair_of_weight_zero_teaches_nothing():
    chosen, rejected = np.array([0, 0, 3]), np.array([2, 3, 1])  # the last one is wrong
    without = learnt(DPO(0.1), chosen[:2], rejected[:2])
    found = learnt(DPO(0.1), chosen, rejected, weight=np.array([1.5, 1.5, 0.0]))
    torch.testing.assert_close(found, without, rtol=1e-3, atol=1e-3)


def test_a_distilled_policy_ends_at_the_beliefs():
    belief = np.array([1.14, 1.39, 1.14])  # of theta = (.4, -.3)
    margins = margins_of(learnt(DistilledDPO(0.1), gamma=belief))
    assert margins[:, 0].numpy() == pytest.approx(belief, abs=0.1)


@pytest.mark.parametrize(
    ("objective", "slope"),
    [
        (DPO(0.1), 1.0),
        (DistilledDPO(0.1), 1.0),
        (CDPO(0.1, flip_rate=0.2), 0.6),
        (RDPO(0.1, flip_rate=0.2), 1 / 0.6),
        (ROPO(0.1), 4 * 14 / 15**2 * (1 + 14 / 2)),
    ],
)
def test_losses_are_scaled_by_their_slope_at_zero(objective, slope):
    assert part("_policies").slope_at_zero(objective) == pytest.approx(slope, rel=1e-4)


def test_regimes_take_the_tuned_the_clean_and_no_penalty():
    groups = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    found = {
        (7, ("uniform", 0.0)): {"dpo": (groups, 2)},
        (7, ("uniform", 0.2)): {"dpo": (groups, 1), "rdpo": (groups, 0)},
    }
    cells = part("").by_regime(found)
    assert cells["uniform", 0.2, "dpo", "tuned"].tolist() == [[0.2, 0.5]]
    assert cells["uniform", 0.2, "rdpo", "recipe"].tolist() == [[0.3, 0.6]]
    assert cells["uniform", 0.2, "rdpo", "unregularised"].tolist() == [[0.1, 0.4]]


def test_what_is_kept_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls, kept = [], part("_kept").kept

    def make():
        calls.append(1)
        return {"dpo": (np.array([[0.5, 0.25]]), 1)}

    for _ in range(2):
        groups, best = kept(make, "model", "seed 1")["dpo"]
        assert (groups.tolist(), best) == ([[0.5, 0.25]], 1)
    assert len(calls) == 1
    kept(make, "model", "seed 2")
    assert len(calls) == 2
    assert len(list(tmp_path.glob("noisescope/downstream/*.json"))) == 2
    assert all(json.loads(path.read_text()) for path in tmp_path.glob("noisescope/downstream/*"))


def test_shares_recovered_and_targets():
    tables = part("_tables")
    assert tables.share(0.7, 0.8, 0.6) == pytest.approx(0.5)
    assert np.isnan(tables.share(0.7, 0.6, 0.6))
    cell = {name: np.full((2, 3), value) for name, value in (("a", 0.7), ("b", 0.8), ("c", 0.6))}
    draws = tables.resamples(2, 3)
    assert tables.recovered(cell["a"], cell["b"], cell["c"], draws) == "0.50 [0.50, 0.50]"
    assert tables.recovered(cell["a"], cell["c"], cell["c"], draws) == "nan [-, -]"
    where = ("uniform", 0.3)
    cells = {
        ("uniform", 0.0, "dpo", ""): cell["b"],
        (*where, "dpo", ""): cell["c"],
        (*where, "rdpo", ""): cell["a"],
        (*where, "ours", ""): cell["a"] + 0.08,
    }
    assert tables.best_rival(cells, where, "") == "rdpo"
    report = importlib.import_module("benchmarks.harness").Report("x")
    tables.targets(cells, "ours", "", report, "text")
    assert [(t.name, round(t.value, 6), t.met) for t in report.targets] == [
        ("text, 30%: share recovered by ours", 0.9, True),
        ("text, 30%: ours less rdpo", 0.08, True),
    ]
