"""Estimates from judgements: worked values, the design's promises, coverage whatever p_wrong is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logit

from noisescope.errors import EvidenceError
from noisescope.scoring.review_estimate import (
    CENSUS,
    SLICES,
    STRATA,
    Votes,
    beta_interval,
    error_rate,
    levelled,
    queue,
    recalibrate,
    review,
    strata_for,
    stratify,
    stratum_of,
)


def votes(place, wrong, reviewers=1):
    """`wrong` [n] of `reviewers` judgements of each pair found the label wrong."""
    against = np.asarray(wrong, float)
    return Votes(np.asarray(place), against, reviewers - against, np.zeros(len(against)))


def sample(p, count, seed):
    rng = np.random.default_rng(seed)
    cells = stratify(p, seed, strata=strata_for(count))
    return cells, queue(cells, rng.random(len(p)), rng.random(len(p)), seed)[:count]


def test_strata_hold_equal_shares_of_the_square_roots():
    p = np.random.default_rng(0).beta(0.3, 1.5, 5000)
    strata = stratum_of(stratify(p, 0))
    q = 0.05 + 0.9 * p
    sums = np.bincount(strata, np.sqrt(q * (1 - q)))[1:]
    assert len(sums) == STRATA
    assert sums == pytest.approx(np.full(STRATA, sums.mean()), rel=0.02)
    tops = [p[strata == s].max() for s in range(1, STRATA)]
    assert all(top <= p[strata == s + 2].min() for s, top in enumerate(tops))


def test_slices_of_a_stratum_are_of_equal_size():
    cells = stratify(np.random.default_rng(1).random(4000), 0)
    for stratum in range(STRATA):
        sizes = np.bincount(cells, minlength=STRATA * SLICES + 1)[1 + SLICES * stratum :][:SLICES]
        assert sizes.max() - sizes.min() <= 1


@given(st.integers(1, 300), st.integers(0, 5), st.data())
def test_every_beginning_of_the_queue_is_balanced(size, seed, data):
    p = np.random.default_rng(seed).random(size)
    cells, order = sample(p, size, seed)
    assert sorted(order.tolist()) == list(range(size))
    strata = stratum_of(cells)
    begin = data.draw(st.integers(0, size))
    taken = np.bincount(strata[order[:begin]], minlength=strata.max() + 1)[1:]
    left = np.bincount(strata, minlength=strata.max() + 1)[1:] > taken
    if left.any():  # strata that still have pairs differ by one turn at most
        assert taken.max() - taken[left].min() <= 1


def test_every_pair_of_a_stratum_is_as_likely_to_be_drawn():
    p = np.linspace(0.01, 0.99, 80)
    drawn = np.zeros(80)
    for seed in range(3000):
        cells, order = sample(p, 12, seed)
        drawn[order] += 1
    strata = stratum_of(cells)
    for stratum in range(1, strata.max() + 1):
        rates = drawn[strata == stratum] / 3000
        assert rates == pytest.approx(np.full(len(rates), rates.mean()), abs=0.025)


def test_worked_value_of_one_stratum():
    cells = np.ones(1000, np.uint8)
    found = review(cells, np.full(1000, 0.3), votes(np.arange(9), [1] * 3 + [0] * 6))
    centre = found.p[0]
    share = (3 + centre) / 10
    expected = 0.009 * 3 / 9 + 0.991 * share  # nine of a thousand are known
    assert found.share().share.estimate == pytest.approx(expected)
    assert found.share().judged == 9


def test_answers_count_through_the_recalibration_too():
    """The same p everywhere and as many answers a stratum: the variance of a plain mean."""
    p = np.where(np.arange(40_000) < 20_000, 0.2, 0.2001)  # two strata of one p
    cells = stratify(p, 0, strata=2)
    sizes = np.bincount(stratum_of(cells))[1:]
    place = np.r_[np.arange(200), 39_999 - np.arange(200)]
    assert list(np.bincount(stratum_of(cells)[place])[1:]) == [200, 200]
    assert sizes == pytest.approx([20_000, 20_000], rel=0.01)
    share = review(cells, p, votes(place, [1, 0, 0, 0] * 100)).share().share
    plain = 2 * 1.645 * np.sqrt(0.25 * 0.75 / 400)
    assert share.high - share.low == pytest.approx(plain, rel=0.01)


def test_undefined_p_wrong_counts_as_one_half():
    cells = stratify(np.array([np.nan] * 50 + [0.0] * 50), 0)
    assert stratum_of(cells)[:50].min() >= stratum_of(cells)[50:].max()
    found = review(cells, np.full(100, np.nan), votes([0, 60], [1, 0]))
    assert np.isfinite(found.share().share.high)


def test_a_census_is_exact():
    cells = np.full(40, CENSUS, np.uint8)
    found = review(cells, np.full(40, 0.2), votes(np.arange(40), [1] * 10 + [0] * 30))
    share = found.share().share
    assert (share.low, share.estimate, share.high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_census_and_a_sample_add_up():
    p = np.r_[np.full(100, 0.9), np.full(900, 0.1)]
    cells = stratify(p, 0, p > 0.5)
    assert (cells[:100] == CENSUS).all()
    rng = np.random.default_rng(0)
    drawn = queue(cells, rng.random(1000), rng.random(1000), 0)[:100]
    assert drawn.min() >= 100
    place = np.r_[np.arange(100), drawn]
    wrong = np.r_[np.ones(100), np.zeros(100)]
    found = review(cells, p, votes(place, wrong))
    assert found.share().share.estimate == pytest.approx(0.1, abs=0.02)
    assert found.share(p > 0.5).share.low == pytest.approx(1.0)


def test_no_pairs_have_no_share():
    found = review(np.ones(10, np.uint8), np.full(10, 0.5), votes([0], [1]))
    with pytest.raises(EvidenceError):
        found.share(np.zeros(10, bool))


def worlds():
    rng = np.random.default_rng(7)
    strength = rng.normal(-2.5, 2.5, 4000)
    honest = 1 / (1 + np.exp(-strength))
    wrong = rng.random(4000) < honest
    return {
        "calibrated": (honest, wrong),
        "far too sure": (1 / (1 + np.exp(-2 * strength - 2)), wrong),
        "blind and sure": (rng.beta(0.2, 6, 4000), wrong),
        "too suspicious": (np.sqrt(honest), wrong),
        "knows nothing": (rng.beta(20, 80, 4000), rng.random(4000) < 0.2),
    }


def covered(p, wrong, *, count=100, error=0.0, reviewers=1, draws=300):
    truth, inside, widths = wrong.mean(), 0, []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        cells, place = sample(p, count, seed)
        judged = wrong[place] ^ (rng.random((reviewers, count)) < error)
        share = review(cells, p, votes(place, judged.sum(axis=0), reviewers)).share().share
        inside += share.low <= truth <= share.high
        widths.append(share.high - share.low)
    return inside / draws, float(np.mean(widths))


@pytest.mark.parametrize("count", [50, 100])
@pytest.mark.parametrize("world", sorted(worlds()))
def test_intervals_cover_whatever_p_wrong_claims(world, count):
    share, _ = covered(*worlds()[world], count=count)
    assert 0.85 <= share <= 0.95  # nominal .90; 300 draws scatter by .017


@pytest.mark.parametrize("world", ["calibrated", "blind and sure"])
def test_intervals_cover_where_two_reviewers_err(world):
    share, _ = covered(*worlds()[world], error=0.1, reviewers=2, draws=150)
    assert share >= 0.84


def test_one_reviewer_who_errs_would_mislead():
    share, _ = covered(*worlds()["calibrated"], error=0.1, draws=100)
    assert share < 0.7  # why the page asks for a second one


def test_a_good_audit_narrows_the_interval():
    _, good = covered(*worlds()["calibrated"], draws=50)
    p, wrong = worlds()["calibrated"]
    _, none = covered(np.full(len(p), 0.2), wrong, draws=50)
    assert good < 0.75 * none


def test_disagreements_measure_the_reviewers():
    rng = np.random.default_rng(3)
    wrong = rng.random(400) < 0.2
    judged = (wrong ^ (rng.random((2, 400)) < 0.1)).sum(axis=0)
    found = error_rate(votes(np.arange(400), judged, 2))
    assert found.known
    interval = found.interval()
    assert interval.low < 0.1 < interval.high
    assert interval.high - interval.low < 0.06


def test_few_shared_pairs_measure_nobody():
    found = error_rate(votes(np.arange(9), np.ones(9), 2))
    assert not found.known
    assert found.mean == 0


def test_agreement_counts_a_tie_against_a_side_as_half():
    both = Votes(np.arange(3), np.array([2.0, 1, 1]), np.array([0.0, 1, 0]), np.array([0.0, 0, 1]))
    assert both.agreement == (pytest.approx(0.5), 3)


def test_reviewers_who_hardly_err_change_little():
    cells, p = np.ones(2000, np.uint8), np.full(2000, 0.2)
    wrong = np.r_[np.ones(40), np.zeros(160)]
    alone = review(cells, p, votes(np.arange(200), wrong)).share().share
    two = review(cells, p, votes(np.arange(200), 2 * wrong, 2)).share().share
    assert two.estimate == pytest.approx(alone.estimate, abs=0.01)


def test_levelled_moves_every_log_odds_by_the_same():
    p = np.array([0.05, 0.2, np.nan, 0.6])
    moved = levelled(p, 0.4)
    shifts = logit(moved) - logit(p)
    assert np.nanmean(moved) == pytest.approx(0.4)
    assert shifts[[0, 1]] == pytest.approx(shifts[3])
    assert np.isnan(moved[2])
    assert np.isnan(levelled(np.full(2, np.nan), 0.4)).all()


def test_recalibration_recovers_a_slope_and_ignores_pairs_without_weight():
    rng = np.random.default_rng(0)
    x = rng.normal(-1, 2, 4000)
    wrong = rng.random(4000) < 1 / (1 + np.exp(-(0.7 + 0.6 * x)))
    p = 1 / (1 + np.exp(-x))
    some = votes(np.arange(4000), wrong)
    fitted = recalibrate(p, some, np.ones(4000), 0.0)
    assert fitted.intercept == pytest.approx(0.7, abs=0.15)
    assert fitted.slope == pytest.approx(0.6, abs=0.08)
    weights = np.r_[np.ones(2000), np.zeros(2000)]
    lied = votes(np.arange(4000), np.r_[wrong[:2000], ~wrong[2000:]])
    half = recalibrate(p, lied, weights, 0.0)
    assert half.slope == pytest.approx(fitted.slope, abs=0.1)
    assert (np.diff(fitted(np.sort(p))) >= 0).all()


def test_judged_pairs_follow_their_judgements():
    cells, p = np.ones(100, np.uint8), np.linspace(0.01, 0.6, 100)
    found = review(cells, p, votes([0, 50, 99], [1, 0, 1]))
    after = found.posterior()
    assert after[0] > 0.3
    assert after[50] < 0.05
    assert after[99] > 0.95
    assert after[20] == pytest.approx(found.p[20])


def test_ties_count_half():
    cells, p = np.ones(1000, np.uint8), np.full(1000, 0.5)
    tied = Votes(np.arange(20), np.zeros(20), np.zeros(20), np.ones(20))
    assert review(cells, p, tied).share().share.estimate == pytest.approx(0.5, abs=0.02)


@given(st.floats(0.001, 0.999), st.floats(1e-6, 0.3))
def test_intervals_stay_within_0_and_1(mean, variance):
    interval = beta_interval(mean, variance)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1
