"""Detectors: worked examples, an independent computation in SQL, and their symmetries."""

from __future__ import annotations

import math
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose

from noisescope.errors import EvidenceError
from noisescope.scoring.detectors import (
    DETECTORS,
    Evidence,
    available,
    confidence,
    mean_over,
    re_po_posterior,
    stability,
    u,
    u_released,
    variance_over,
)
from noisescope.scoring.margins import write_margins
from noisescope.scoring.opinions import OPINIONS, second_opinions

logratios = arrays(
    np.float64,
    st.tuples(st.integers(2, 6), st.integers(1, 12)),
    elements=st.floats(-30, 30, allow_nan=False),
)


def evidence(replicas: int = 4, steps: int = 3, pairs: int = 200, seed: int = 0) -> Evidence:
    rng = np.random.default_rng(seed)
    margins = rng.normal(0.8, 1.5, pairs) + rng.normal(0, 0.4, (replicas, steps, pairs))
    opinions = {name: rng.normal(size=pairs) for name in OPINIONS}
    held = np.ones((replicas, pairs), bool)
    return Evidence(margins, held, beta=0.5, rho=2.0, opinions=opinions)


def test_worked_example() -> None:
    """Two replicas, l = 0 and ln 3: sigma = 1/2 and 3/4, so c = 3/8, s = (ln 3)^2 / 2."""
    ratio = np.array([[0.0], [math.log(3)]])
    assert confidence(ratio)[0] == pytest.approx(3 / 8)
    assert stability(ratio)[0] == pytest.approx(math.log(3) ** 2 / 2)
    assert u(ratio)[0] == pytest.approx(3 / 16 * math.log(3) ** 2)


def test_worked_example_of_rho() -> None:
    """rho scales l inside the confidence only: sigma(2 ln 3) = 9/10."""
    ratio = np.array([[0.0], [math.log(3)]])
    assert confidence(ratio, rho=2.0)[0] == pytest.approx(1 - (1 / 2 + 9 / 10) / 2)
    assert u(ratio, rho=2.0)[0] == pytest.approx(0.3 * math.log(3) ** 2 / 2)


def test_worked_example_of_the_released_variant() -> None:
    """Replica 1 is (3, -4) with root mean square 5 / sqrt 2; replica 2 is (1, 1) with 1.

    The norm over a text micro-batch of 4 pairs is twice that.
    """
    ratio = np.array([[3.0, -4.0], [1.0, 1.0]])
    first = np.array([3.0, -4.0]) / (2 * 5 / math.sqrt(2))
    std = np.minimum(np.abs(first - 1 / 2) / math.sqrt(2), 1)
    sigma = 1 / (1 + np.exp(-np.stack([first, [0.5, 0.5]])))
    assert_allclose(u_released(ratio), std * (1 - sigma.mean(axis=0)))
    assert u_released(100 * ratio, rho=15).max() <= 1


def test_missing_replicas_are_left_out() -> None:
    ratio = np.array([[0.0, 1.0, np.nan], [np.nan, 3.0, np.nan]])
    assert_allclose(mean_over(ratio), [0.0, 2.0, np.nan])
    assert_allclose(variance_over(ratio), [np.nan, 2.0, np.nan])
    assert_allclose(confidence(ratio)[0], 0.5)
    assert np.isnan(u(ratio)[[0, 2]]).all()


@given(logratios, st.randoms(use_true_random=False))
def test_replica_order_does_not_matter(ratio: np.ndarray, random: object) -> None:
    order = np.random.default_rng(random.getrandbits(32)).permutation(len(ratio))  # type: ignore[attr-defined]
    assert_allclose(u(ratio[order]), u(ratio), rtol=1e-9, atol=1e-12)
    assert_allclose(u_released(ratio[order]), u_released(ratio), rtol=1e-9, atol=1e-12)


@given(logratios)
def test_flipping_a_label_mirrors_confidence_and_keeps_stability(ratio: np.ndarray) -> None:
    assert_allclose(confidence(-ratio), 1 - confidence(ratio), atol=1e-12)
    assert_allclose(stability(-ratio), stability(ratio))
    assert (u(ratio) >= 0).all()


def test_equals_sql_over_the_margins_file(tmp_path: Path) -> None:
    """An independent computation: DuckDB's aggregates over margins.parquet."""
    rng = np.random.default_rng(3)
    margins = rng.normal(0.2, 0.5, (5, 300)).astype(np.float32)
    ids = pa.array([f"p{i:03d}" for i in range(300)])
    held = np.ones((5, 300), bool)
    write_margins(tmp_path / "m.parquet", ids, margins[:, None], steps=[7], held_out=held)
    beta, rho = 0.1, 1.5
    rows = duckdb.sql(
        f"""WITH evidence AS (SELECT pair_id, replica, margin::DOUBLE / {beta} AS ratio
                              FROM read_parquet('{tmp_path / "m.parquet"}')),
                 scaled AS (SELECT pair_id, ratio, {rho} * ratio
                            / sqrt(4 * avg(ratio * ratio) OVER (PARTITION BY replica)) AS x
                            FROM evidence)
            SELECT 1 - avg(1 / (1 + exp(-{rho} * ratio))) AS c, var_samp(ratio) AS s,
                   least(stddev_samp(x), 1) * (1 - avg(1 / (1 + exp(-x)))) AS released
            FROM scaled GROUP BY pair_id ORDER BY pair_id"""
    ).fetchall()
    c, s, released = (np.array(column) for column in zip(*rows, strict=True))
    ratio = margins.astype(np.float64) / beta
    assert_allclose(confidence(ratio, rho), c, rtol=1e-6)
    assert_allclose(stability(ratio), s, rtol=1e-6)
    assert_allclose(u(ratio, rho), s * c, rtol=1e-6)
    assert_allclose(u_released(ratio, rho), released, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(DETECTORS) - {"length"}))
def test_every_detector_scores_every_pair(name: str) -> None:
    given_evidence = evidence()
    score = DETECTORS[name].score(given_evidence)
    assert score.shape == (200,)
    assert np.isfinite(score).all()


@pytest.mark.parametrize("name", sorted(n for n, d in DETECTORS.items() if d.axis == "wrong"))
def test_higher_is_more_suspicious(name: str) -> None:
    """The pair whose replicas oppose its label scores above the one they agree with."""
    detector = DETECTORS[name]
    margins = evidence().margins.copy()
    margins[:, :, 0] = [[-3.0, -3.5, -4.0]] * 2 + [[-3.2, -3.1, -4.4]] * 2
    margins[:, :, 1] = -margins[:, :, 0]
    lengths = np.tile([[9.0], [5.0]], 200)
    lengths[:, 0] = [5.0, 9.0]
    opinions = {name: np.r_[-1.0, np.ones(199)] for name in OPINIONS}
    held = np.ones((4, 200), bool)
    score = detector.score(Evidence(margins, held, lengths=lengths, opinions=opinions))
    assert score[0] > score[1]


def test_length_needs_lengths_and_follows_the_labels() -> None:
    with pytest.raises(EvidenceError, match="lengths"):
        DETECTORS["length"].score(evidence())
    shorter_wins = np.array([[1.0, 2.0, 9.0], [5.0, 6.0, 3.0]])
    few = Evidence(np.ones((2, 1, 3)), np.ones((2, 3), bool), lengths=shorter_wins)
    assert DETECTORS["length"].score(few).argmax() == 2


def test_second_opinions_by_hand() -> None:
    """Mean log-probabilities -1, -3, -2 of three responses, -1.5, -2, -4 under a second model."""
    own, other = np.zeros((3, 9), np.float32), np.zeros((3, 9), np.float32)
    own[:, 2], other[:, 2] = [-1, -3, -2], [-1.5, -2, -4]
    sides = np.array([0, 1]), np.array([1, 2])
    found = second_opinions({"statistics": own, "lm:big statistics": other}, *sides)
    assert_allclose(found["nll_gap"], [2, -1])
    assert_allclose(found["cdr"], [(-0.5) - 1, 1 - (-2)])
    assert list(second_opinions({"statistics": own, "reward:x statistics": other}, *sides)) == [
        "nll_gap"
    ]
    assert second_opinions({"error_statistics": own}, *sides) == {}


def test_available_says_what_the_evidence_allows() -> None:
    one = Evidence(np.ones((1, 1, 3)), np.zeros((1, 3), bool))
    assert set(available(one)) == {"confidence", "mean"}
    assert set(available(evidence())) == set(DETECTORS) - {"length"}


def test_re_po_fixed_point() -> None:
    """At the fixed point each annotator's reliability is the mean posterior of their labels."""
    rng = np.random.default_rng(1)
    p, who = rng.uniform(0.05, 0.95, 400), rng.integers(0, 3, 400)
    w = re_po_posterior(p, who)
    for annotator in range(3):
        mine = who == annotator
        n = w[mine].mean()
        assert_allclose(w[mine], p[mine] * n / (p[mine] * n + (1 - p[mine]) * (1 - n)), atol=1e-5)
