"""Ranking metrics, calibration, the flip rate and what margins say about themselves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import expit

from benchmarks.resampling import bootstrap
from noisescope.errors import EvidenceError
from noisescope.scoring.flip_rate import FlipRate, fit_flip_rate
from noisescope.scoring.metrics import (
    Interval,
    auroc,
    average_precision,
    bayes_auroc,
    calibration,
    efficiency,
    expected_auroc_interval,
    held_out_accuracy,
    precision_at,
    share,
    signed_rank,
    signed_rank_error,
)

Judged = tuple[np.ndarray, np.ndarray]


@st.composite
def judged(draw: st.DrawFn) -> Judged:
    """Scores with many ties, and a truth of both kinds."""
    rows = draw(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40))
    score, truth = (np.array(column) for column in zip(*rows, strict=True))
    truth[0], truth[1] = True, False
    return score.astype(float), truth.astype(bool)


def planted(seed: int, pairs: int, e: float, spread: float = 2.0) -> Judged:
    """Margins known exactly, labels from them, and a share e of labels flipped."""
    rng = np.random.default_rng(seed)
    gap = rng.normal(0, spread, pairs)
    label = np.where(rng.random(pairs) < expit(gap), 1, -1)
    flipped = rng.random(pairs) < e
    return gap * np.where(flipped, -label, label), flipped


@given(judged())
def test_auroc_against_all_comparisons(case: Judged) -> None:
    score, truth = case
    gap = score[truth][:, None] - score[~truth][None]
    assert auroc(score, truth) == pytest.approx(((gap > 0) + (gap == 0) / 2).mean())


@given(judged())
def test_auroc_of_the_reversed_score(case: Judged) -> None:
    score, truth = case
    assert auroc(-score, truth) == pytest.approx(1 - auroc(score, truth))


@given(judged())
def test_weights_are_repetitions(case: Judged) -> None:
    score, truth = case
    times = np.arange(len(score)) % 3 + 1
    for metric in (auroc, average_precision, lambda s, t, w=None: precision_at(s, t, 0.3, w)):
        repeated = metric(np.repeat(score, times), np.repeat(truth, times))
        assert metric(score, truth, times.astype(float)) == pytest.approx(float(repeated))


def test_average_precision_and_precision_by_hand() -> None:
    """Order wrong, right, wrong, right: AP = (1 + 2/3) / 2; the top half holds 1 of 2."""
    score, truth = np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False])
    assert average_precision(score, truth) == pytest.approx((1 + 2 / 3) / 2)
    assert precision_at(score, truth, 0.5) == pytest.approx(0.5)
    assert precision_at(np.zeros(4), truth, 0.25) == pytest.approx(0.5)


def test_metrics_refuse_missing_scores_and_leave_one_kind_undefined() -> None:
    with pytest.raises(EvidenceError, match="1 of 2 scores are missing"):
        auroc(np.array([1.0, np.nan]), np.array([True, False]))
    assert math.isnan(auroc(np.array([1.0, 2.0]), np.array([True, True])))


def test_bootstrap_is_seeded_and_covers() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(600) < 0.2
    score = rng.normal(0, 1, 600) + truth
    first = bootstrap(auroc, score, truth, draws=200)
    assert first == bootstrap(auroc, score, truth, draws=200)
    assert first.low < first.estimate < first.high
    assert first.low < 0.760 < first.high  # Phi(1 / sqrt 2)


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilson_contains_its_estimate(successes: int, trials: int) -> None:
    interval = share(min(successes, trials), trials)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


def test_wilson_by_hand() -> None:
    """n = 100, p = 1/2, z = 1.645: half width z / (1 + z^2/n) sqrt(1/400 + z^2/(4 n^2)) = .0811."""
    interval = share(50, 100)
    assert interval.high - 0.5 == pytest.approx(0.0811, abs=1e-4)
    assert held_out_accuracy(np.array([0.0, 1.0, np.nan])).estimate == 0.75
    with pytest.raises(EvidenceError):
        share(0, 0)


def test_calibration_of_honest_and_dishonest_probabilities() -> None:
    rng = np.random.default_rng(2)
    p = rng.random(20_000)
    truth = rng.random(20_000) < p
    honest, wrong = calibration(p, truth), calibration(1 - p, truth)
    assert honest.ece < 0.02
    assert wrong.ece == pytest.approx(0.5, abs=0.02)
    assert honest.count.sum() == 20_000
    assert honest.brier == pytest.approx(1 / 6, abs=0.01)


def test_calibration_by_hand() -> None:
    """All p = 0.3, one of the two in each bin true: ECE 0.2, Brier 0.29."""
    curve = calibration(np.full(30, 0.3), np.array([True, False] * 15))
    assert_allclose([curve.ece, curve.brier], [0.2, 0.29])
    assert_allclose([curve.predicted, curve.observed], [[0.3] * 15, [0.5] * 15])


def test_signed_rank_by_hand_and_against_pairs() -> None:
    """|m| = 1, 2, 3 with the 2 negative: (1 + 3) / 6; it is P(M_i + M_j > 0)."""
    m = np.array([1.0, -2.0, 3.0])
    assert signed_rank(m) == pytest.approx(4 / 6)
    sums = m[:, None] + m[None]
    walsh = sums[np.triu_indices(3)]
    assert signed_rank(m) == pytest.approx((walsh > 0).mean())


def test_self_measured_auroc_meets_the_true_one() -> None:
    margins, flipped = planted(0, 20_000, 0.2)
    found = expected_auroc_interval(margins, Interval(0.2, 0.2, 0.2)).estimate
    assert found == pytest.approx(auroc(-margins, flipped), abs=0.01)
    assert bayes_auroc(margins) == pytest.approx(auroc(-margins, flipped), abs=0.01)
    with pytest.raises(EvidenceError):
        expected_auroc_interval(margins, Interval(0.5, 0.5, 0.5))


def test_efficiency_is_the_share_of_the_ceiling() -> None:
    assert efficiency(0.7, 0.9) == pytest.approx(0.5)
    assert math.isnan(efficiency(0.7, 0.5))


@pytest.mark.parametrize("e", [0.0, 0.1, 0.3])
def test_flip_rate_covers_what_was_planted(e: float) -> None:
    """20 plantings: the 90 % interval holds the rate in 17 or more."""
    fits = [fit_flip_rate(planted(seed, 4000, e, 3.0)[0]) for seed in range(20)]
    assert sum(fit.low <= e <= fit.high for fit in fits) >= 17
    assert abs(np.mean([fit.estimate for fit in fits]) - e) < 0.02


def test_flip_rate_of_another_link_is_still_found() -> None:
    """Labels that follow sigma(g) while the margin is only sign(g) |g|^1.4."""
    margins, _ = planted(1, 12_000, 0.2, 3.0)
    fit = fit_flip_rate(np.sign(margins) * np.abs(margins) ** 1.4)
    assert fit.low <= 0.2 <= fit.high
    assert fit.exponent < 0.9


def test_flip_rate_admits_what_it_cannot_know() -> None:
    fit = fit_flip_rate(planted(0, 400, 0.2, 0.7)[0])
    assert not fit.identifiable
    assert fit.low <= 0.2 <= fit.high
    coin = fit_flip_rate(np.random.default_rng(0).normal(0, 1, 500))
    assert not coin.identifiable


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=10, max_size=60).filter(any))
def test_flip_rate_is_always_a_rate(margins: list[float]) -> None:
    fit = fit_flip_rate(np.array(margins))
    assert 0 <= fit.low <= fit.estimate <= fit.high < 0.5
    p = fit.p_flip(np.array(margins))
    assert ((p >= 0) & (p <= 1)).all()


def test_flip_rate_does_not_depend_on_the_margins_unit() -> None:
    margins, _ = planted(3, 2000, 0.1)
    one, other = fit_flip_rate(margins), fit_flip_rate(1000 * margins)
    assert one.estimate == pytest.approx(other.estimate)
    assert_allclose(one.p_flip(margins), other.p_flip(1000 * margins), atol=1e-9)


def test_flip_rate_refuses_too_little_evidence() -> None:
    with pytest.raises(EvidenceError, match="9 pairs"):
        fit_flip_rate(np.r_[np.ones(9), np.nan])
    with pytest.raises(EvidenceError, match="learnt nothing"):
        fit_flip_rate(np.zeros(20))


def test_a_lower_flip_rate_has_a_flatter_link() -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(1.0, 1.5, 2000)
    agree = 0.85 * expit(2 * np.abs(margins)) + 0.15 * expit(-2 * np.abs(margins))
    margins = np.where(rng.random(2000) < agree, 1, -1) * np.abs(margins)
    rate = fit_flip_rate(margins)
    assert rate.at(rate.estimate) == rate
    low, high = rate.at(rate.low), rate.at(rate.high)
    assert low.gap(np.array([3.0])) < rate.gap(np.array([3.0])) < high.gap(np.array([3.0]))
    worst = np.sort(margins)[:200]
    unmoved = replace(rate, estimate=rate.low)
    assert low.p_flip(worst).sum() < unmoved.p_flip(worst).sum()
    assert RATE.at(0.05) == replace(RATE, estimate=0.05)  # no profile: the link as it is


RATE = FlipRate(0.1, 0.05, 0.15, temperature=2.0, exponent=1.0, scale=1.0, pairs=100)


def test_p_flip_by_hand() -> None:
    """e = 0.1, g = 2 m: at m = 0 the prior; at m = -ln(9)/2 the odds 1/9 are outweighed by 9."""
    p = RATE.p_flip(np.array([0.0, -math.log(9) / 2, np.nan]))
    assert_allclose(p, [0.1, 0.5, np.nan])


def test_p_flip_and_p_mislabelled_are_calibrated_where_their_assumptions_hold() -> None:
    rng = np.random.default_rng(4)
    margins, flipped = planted(5, 20_000, 0.2)
    assert calibration(fit_flip_rate(margins).p_flip(margins), flipped).ece < 0.02
    gap = rng.normal(0, 2, 20_000)
    theta = rng.beta(2 * expit(gap), 2 - 2 * expit(gap))  # people who side with one response
    label = np.where(rng.random(20_000) < theta, 1, -1)
    fit = fit_flip_rate(gap * label)
    wrong = label != np.where(theta > 0.5, 1, -1)
    assert calibration(fit.p_mislabelled(gap * label), wrong).ece < 0.03


def test_p_mislabelled_at_a_coin_toss_is_a_quarter() -> None:
    """Without flips every share theta is equally likely: E(theta; theta < 1/2) / E(theta) = 1/4."""
    none = FlipRate(0.0, 0.0, 0.01, temperature=1.0, exponent=1.0, scale=1.0, pairs=100)
    assert none.p_mislabelled(np.array([0.0]))[0] == pytest.approx(0.25)
    assert none.p_flip(np.array([-50.0]))[0] == 0.0


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=30))
def test_probabilities_fall_with_the_margin(margins: list[float]) -> None:
    m = np.sort(np.array(margins))
    for p in (RATE.p_flip(m), RATE.p_mislabelled(m)):
        assert (np.diff(p) <= 1e-9).all()
        assert ((p >= 0) & (p <= 1)).all()


def test_contested_is_one_where_replicas_cancel() -> None:
    margins = np.array([[5.0, 0.0, 9.0], [-5.0, 0.0, 9.0], [np.nan, 0.0, np.nan]])
    assert_allclose(RATE.contested(margins), [1.0, 1.0, 0.0], atol=1e-4)


def test_the_error_of_the_signed_rank_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(3)
    samples = rng.normal(0.7, 1.0, (400, 150))
    found = np.array([signed_rank(sample) for sample in samples])
    stated = np.array([signed_rank_error(sample) for sample in samples])
    assert stated.mean() == pytest.approx(found.std(), rel=0.1)


def test_the_expected_auroc_interval_holds_both_errors() -> None:
    margins = np.random.default_rng(4).normal(0.4, 1.0, 200)
    known = expected_auroc_interval(margins, Interval(0.1, 0.1, 0.1))
    half = 1.6449 * signed_rank_error(margins) / 0.8
    assert known.estimate - known.low == pytest.approx(half, rel=1e-3)
    open_rate = expected_auroc_interval(margins, Interval(0.1, 0.05, 0.2))
    assert open_rate.low < known.low < known.estimate < known.high < open_rate.high <= 1
    assert open_rate.high > known.estimate
    agreed = expected_auroc_interval(np.full(20, 2.0), Interval(0.0, 0.0, 0.0))
    assert agreed.high == 1.0
    assert agreed.low == pytest.approx(1 / (1 + 1.6449**2 / 20), rel=1e-4)  # 20 of 20, no more
