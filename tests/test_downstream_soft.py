"""Training with what an audit knows: tables and targets; losses of lists by their formulas."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noisescope.training.objectives import DPO

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Make the benchmarks importable."""
    monkeypatch.syspath_prepend(ROOT)


def part(name: str) -> Any:
    return importlib.import_module(f"benchmarks.downstream.{name}")


def cells_of(soft, **accuracy: tuple[float, float]):
    """Two seeds of one cell: accuracies by method, with and without a penalty alike."""
    names = {"clean": soft.CLEAN, "dpo": "dpo", "known": f"{soft.CHOICE}, annotators"}
    return [
        {
            (names[name], regime): values[seed]
            for name, values in accuracy.items()
            for regime in soft.REGIMES
        }
        for seed in range(2)
    ]


def test_shares_recovered_and_the_worst_cell_are_targets_of_the_choice_of_train():
    soft, harness = part("soft"), importlib.import_module("benchmarks.harness")
    cells = {
        ("contrarian", 0.2): cells_of(soft, clean=(0.8, 0.9), dpo=(0.7, 0.8), known=(0.79, 0.89)),
        ("annotator", 0.2): cells_of(soft, clean=(0.8, 0.9), dpo=(0.7, 0.8), known=(0.69, 0.79)),
    }
    report = harness.Report("")
    soft.targets(cells, "simulated", report)
    found = {target.name: (target.value, target.met) for target in report.targets}
    assert found["simulated, contrarian 20%: recovered with annotators"] == (
        pytest.approx(0.9),
        True,
    )
    assert found["simulated, annotator 20%: recovered with annotators"][1] is False
    assert found["simulated: worst cell of train's choice, points over dpo"] == (
        pytest.approx(-1.0),
        False,
    )
    known = list(soft.overall(cells, "tuned"))[2]
    assert (known["worst cell"], known["gained"]) == ("annotator 20%", pytest.approx(4.0))
    assert known["recovered"] == pytest.approx(0.4)


def test_nothing_is_recovered_where_noise_costs_nothing_beyond_chance():
    soft = part("soft")
    cells = cells_of(soft, clean=(0.9, 0.7), dpo=(0.7, 0.8), known=(0.8, 0.8))
    assert {row["recovered"] for row in soft.rows(("uniform", 0.3), cells, "tuned")} == {"–"}


def test_methods_that_change_no_label_are_dpo():
    soft = part("soft")
    of, dpo = soft.Recipe, DPO(soft.BETA)
    nobody, first = np.zeros(3, bool), np.array([True, False, False])
    assert all(map(soft.is_dpo, (of(dpo), of(dpo, turn=nobody), of(dpo, keep=~nobody))))
    others = of(dpo, turn=first), of(dpo, keep=first), of(dpo, weight=np.ones(3)), of(DPO(0.2))
    assert not any(map(soft.is_dpo, others))


@pytest.fixture
def ranked():
    """One prompt of 8 responses, ranked as numbered; r of two columns; every loss."""
    lists = part("lists")
    chosen, rejected = np.triu_indices(8, 1)
    torch.manual_seed(0)
    return torch.randn(1, 8, 2), lists.losses(chosen, rejected, 1), lists.BETA


def test_plackett_luce_is_the_likelihood_of_the_ranking(ranked):
    r, losses, _ = ranked
    expected = -sum(torch.log_softmax(r[0, k:], 0)[0] for k in range(8)) / 8
    torch.testing.assert_close(losses["PRO"](r), expected)
    torch.testing.assert_close(losses["dpo"](r), losses["dpo on ranked lists"](r))


@pytest.mark.parametrize(("name", "by_policy"), [("LiPO-lambda", True), ("RankDPO", False)])
def test_pairs_of_lists_are_weighted_by_what_a_swap_changes_in_dcg(ranked, name, by_policy):
    r, losses, _ = ranked
    psi = [(7 - k) / 7 for k in range(8)]  # the share of comparisons won
    for column in range(2):
        s = r[0, :, column].double().numpy()
        rank = (1 + (s[None] > s[:, None]).sum(1)) if by_policy else np.arange(1, 9)
        total = 0.0
        for i, j in itertools.combinations(range(8), 2):
            by = abs(2 ** psi[i] - 2 ** psi[j])
            by *= abs(1 / np.log1p(rank[i]) - 1 / np.log1p(rank[j]))
            total += by * np.log1p(np.exp(s[j] - s[i]))
        assert float(losses[name](r)[column]) == pytest.approx(total / 28, rel=1e-4)


def test_unpaired_losses_compare_each_side_with_the_batch(ranked):
    r, losses, beta = ranked
    r = r * 0.1
    chosen, rejected = np.triu_indices(8, 1)
    for column in range(2):
        l = torch.log_softmax(r[0, :, column] / beta, 0).double().numpy() + np.log(8)  # noqa: E741
        kl = float((np.exp(l) / 8 * l).sum())
        sigma = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
        wanted, other = l[chosen], l[rejected]
        kto = (1 - sigma(beta * (wanted - kl))).mean() + (1 - sigma(beta * (kl - other))).mean()
        assert float(losses["KTO"](r)[column]) == pytest.approx(kto, rel=1e-4)
        shift = beta * (wanted.mean() + other.mean()) / 2
        bco = -np.log(sigma(beta * wanted - shift)).mean()
        bco -= np.log(sigma(shift - beta * other)).mean()
        assert float(losses["BCO"](r)[column]) == pytest.approx(bco, rel=1e-4)
