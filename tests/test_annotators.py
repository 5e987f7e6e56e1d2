"""Annotators: simulated crowds whose care is known."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit
from scipy.stats import spearmanr

from noisescope.errors import EvidenceError
from noisescope.scoring.annotators import Annotator, annotator_table, coded, fit_crowd
from noisescope.scoring.flip_rate import FlipRate, fit_flip_rate


def crowd(rates: dict[str, float], labels: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Names and margins of `labels` labels each, flipped at each annotator's own rate."""
    rng = np.random.default_rng(seed)
    names = [name for name in rates for _ in range(labels)]
    gap = rng.normal(0, 3, len(names))
    flipped = rng.random(len(names)) < np.repeat(list(rates.values()), labels)
    label = np.where(rng.random(len(names)) < expit(gap), 1, -1) * np.where(flipped, -1, 1)
    return names, gap * label


def table_of(names: list[str | None], margins: np.ndarray, rate: FlipRate) -> list[Annotator]:
    return annotator_table(*coded(pa.chunked_array([names], pa.string())), margins, rate)


def table(rates: dict[str, float], labels: int, seed: int = 0) -> dict[str, Annotator]:
    names, margins = crowd(rates, labels, seed)
    return {row.name: row for row in table_of(names, margins, fit_flip_rate(margins))}


def test_careless_and_contrarian_annotators_are_found() -> None:
    good = {f"good{i}": 0.03 for i in range(10)}
    rows = table(good | {"careless": 0.35, "contrarian": 0.9}, 200)
    assert [name for name, row in rows.items() if row.careless] == ["contrarian", "careless"]
    assert [name for name, row in rows.items() if row.contrarian] == ["contrarian"]
    assert rows["careless"].low < 0.35 < rows["careless"].high
    assert rows["contrarian"].reliability < 0.3 < 0.9 < rows["good0"].reliability


def test_reliability_orders_a_mixed_crowd() -> None:
    rng = np.random.default_rng(1)
    rates = {f"a{i}": rate for i, rate in enumerate(rng.beta(1.5, 8, 60))}
    rows = table(rates, 80)
    assert spearmanr([rows[n].flip_rate for n in rates], list(rates.values()))[0] > 0.7
    covered = sum(rows[n].low <= rate <= rows[n].high for n, rate in rates.items())
    assert covered >= 0.8 * len(rates)


def test_few_labels_stay_near_the_crowd() -> None:
    names, margins = crowd({f"a{i}": 0.05 for i in range(20)}, 100)
    rate = fit_flip_rate(margins)
    rows = table_of([*names, "once"], np.append(margins, -9.0), rate)
    once = next(row for row in rows if row.name == "once")
    assert once.labels == 1
    assert once.agreement == 0.0
    assert once.flip_rate < 0.5
    assert not once.contrarian


def test_unknown_annotators_are_left_out_and_order_does_not_matter() -> None:
    names, margins = crowd({"a": 0.1, "b": 0.3}, 50)
    rate = fit_flip_rate(margins)
    with_unknown = table_of([*names, None], np.append(margins, -9.0), rate)
    backwards = table_of(names[::-1], margins[::-1], rate)
    assert [row.name for row in with_unknown] == [row.name for row in backwards]
    assert [r.flip_rate for r in with_unknown] == pytest.approx([r.flip_rate for r in backwards])
    with pytest.raises(EvidenceError, match="no pair names its annotator"):
        table_of([None, None], np.array([1.0, 2.0]), rate)


def test_names_are_coded_in_their_order_whatever_the_chunks() -> None:
    column = pa.chunked_array([["w2", None], [], ["", "w10", "w2"]], pa.string())
    names, codes = coded(column)
    assert names == ["", "w10", "w2"]
    assert codes.tolist() == [2, -1, 0, 1, 2]
    names, codes = coded(pa.chunked_array([[None, None]], pa.string()))
    assert names == []
    assert codes.tolist() == [-1, -1]


def test_labels_in_blocks_give_the_crowd_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    codes, share, weights = rng.integers(0, 3, 100), rng.random(100), rng.random(100)
    whole = fit_crowd(codes, share, weights)
    monkeypatch.setattr("noisescope.scoring.annotators.BLOCK", 1)
    assert fit_crowd(codes, share, weights).posterior == pytest.approx(whole.posterior, abs=1e-5)
    assert fit_crowd(codes, share).mean != whole.mean
