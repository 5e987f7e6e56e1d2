"""Noise models, groups held out whole, the test of chance, clusters and cyclic triads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import expit, logit, stdtrit

from noisescope.errors import EvidenceError, UsageError
from noisescope.pairs import Pair, to_table
from noisescope.replicas.chance import FOLDS, random_signs, sign_flip_test
from noisescope.replicas.cross_fit import assign
from noisescope.replicas.groups import held_out_groups
from noisescope.replicas.head import HeadConfig, fit_heads
from noisescope.replicas.prior import pose
from noisescope.scoring.clusters import (
    auroc_interval,
    half_width,
    no_better_than_chance,
    share_interval,
)
from noisescope.scoring.contrasts import HELD_OUT, POOLED, Contrast, differ, explain
from noisescope.scoring.flip_rate import ONE_ANSWER, fit_flip_rate
from noisescope.scoring.metrics import Interval, auroc
from noisescope.scoring.noise_models import fit_noise
from noisescope.scoring.pair_facts import PairFacts, read_facts
from noisescope.scoring.triads import Triads, count_triads


def test_what_is_known_beside_margins_gives_the_likelihood_of_the_label() -> None:
    """(1 - e_this) F + e_other (1 - F) is proportional to (1 - p) F + p (1 - F) in F."""
    noise = fit_noise(np.random.default_rng(0).normal(1, 2, 300))
    this, other = np.array([0.0, 0.1, 0.4, 0.9]), np.array([0.0, 0.3, 0.05, 0.9])
    p = replace(noise, this=this, other=other).p_prior()
    share = np.linspace(0.01, 0.99, 9)[:, None]
    ratio = ((1 - this) * share + other * (1 - share)) / ((1 - p) * share + p * (1 - share))
    assert_allclose(ratio, np.broadcast_to(ratio[0], ratio.shape), rtol=1e-4)
    odds = np.array([2.0, 0.0, -1.0, 0.5])
    moved = replace(noise, this=this, other=other).p_prior(odds, odds)
    assert_allclose(logit(p[1:]) - logit(moved[1:]), 2 * odds[1:], atol=1e-6)


def labelled(seed: int, pairs: int, rate, slope: float = 3.0):
    """Margins of calibrated log odds and which labels are flipped; `rate` a number or [N]."""
    rng = np.random.default_rng(seed)
    gap = rng.normal(0, slope, pairs)
    honest = np.where(rng.random(pairs) < expit(gap), 1, -1)
    flipped = rng.random(pairs) < rate
    return gap * honest * np.where(flipped, -1, 1), flipped


# --- noise models ----------------------------------------------------------------------------


def test_one_rate_is_chosen_for_uniform_flips_and_not_identified() -> None:
    codes = np.random.default_rng(1).integers(0, 40, 4000)
    plain = []
    for seed in range(6):
        margins, _ = labelled(seed, 4000, 0.2)
        noise = fit_noise(margins, PairFacts(annotators=codes, longer=codes % 2))
        assert noise.rate.estimate == pytest.approx(0.2, abs=0.04)
        assert noise.rate.low == 0.0  # 40 % of the pairs may be beyond the model instead
        assert noise.rate.high >= (margins < 0).mean()  # or every disagreement is wrong
        assert not noise.rate.identifiable
        plain.append(noise.chosen == "one rate")
        if plain[-1]:
            assert_allclose(noise.p_wrong(margins), noise.single.p_wrong(margins))
    assert sum(plain) >= 5


def test_careless_annotators_are_found_and_identify_the_rate() -> None:
    codes = np.random.default_rng(1).integers(0, 40, 6000)
    margins, flipped = labelled(0, 6000, np.where(codes < 8, 0.5, 0.0)[codes])
    noise = fit_noise(margins, PairFacts(annotators=codes))
    assert noise.chosen == "annotator"
    assert noise.rate.identifiable
    assert noise.rate.low <= flipped.mean() <= noise.rate.high
    plain = fit_noise(margins)
    assert auroc(noise.p_wrong(margins), flipped) > auroc(plain.p_wrong(margins), flipped) + 0.02


def test_judgements_that_take_the_first_side() -> None:
    """30 % take the first side: e_first = 0, e_second = .3, and half of those are right anyway."""
    rng = np.random.default_rng(3)
    gap = np.abs(rng.normal(0, 1.5, 6000))
    better_first = rng.random(6000) < 0.5
    lazy = rng.random(6000) < 0.3
    honest = rng.random(6000) < expit(gap)
    picks_first = np.where(lazy, True, honest == better_first)
    right = picks_first == better_first
    margins = np.where(right, gap, -gap)
    noise = fit_noise(margins, PairFacts(first=picks_first.astype(np.int64)))
    assert noise.chosen == "first side"
    wrong = lazy & ~better_first
    assert noise.rate.low <= wrong.mean() <= noise.rate.high
    found = auroc(noise.p_wrong(margins), wrong)
    assert found > auroc(fit_noise(margins).p_wrong(margins), wrong) + 0.02


def test_sources_may_differ_in_difficulty_so_they_do_not_identify() -> None:
    codes = np.repeat([0, 1], 3000)
    margins, _ = labelled(0, 6000, np.where(codes == 1, 0.4, 0.0))
    noise = fit_noise(margins, PairFacts(sources=codes))
    assert noise.chosen == "source"
    assert noise.rate.low == 0.0


@pytest.mark.parametrize("strength", ["tells", "random"])
def test_the_strength_of_a_preference_counts_only_if_it_tells_of_flips(strength: str) -> None:
    """Labels of the weakest fifth are coins; a strength that is drawn at random changes nothing."""
    size = np.random.default_rng(5).integers(0, 10, 6000)
    weak = size < 2
    margins, flipped = labelled(2, 6000, np.where(weak, 0.5, 0.02))
    known = size if strength == "tells" else np.random.default_rng(6).permutation(size)
    noise, plain = fit_noise(margins, PairFacts(strengths=known)), fit_noise(margins)
    gained = auroc(noise.p_wrong(margins), flipped) - auroc(plain.p_wrong(margins), flipped)
    if strength == "tells":
        assert noise.chosen == "strength"
        assert gained > 0.02
    else:
        assert noise.chosen == "one rate"
        assert gained == 0


def test_copies_count_once() -> None:
    margins, _ = labelled(0, 500, 0.1)
    once = fit_flip_rate(margins)
    thrice = fit_flip_rate(np.tile(margins, 3), np.full(1500, 1 / 3))
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.15)
    assert fit_flip_rate(np.tile(margins, 3)).high < once.high


@given(st.floats(-5, 5), st.floats(0, 0.4), st.floats(0, 0.4))
def test_p_wrong_is_a_mean_of_two_readings(margin: float, this: float, other: float) -> None:
    rate = fit_flip_rate(labelled(0, 300, 0.1)[0])
    one, two = np.array([this]), np.array([other])
    at = np.array([margin])
    share = np.clip(expit(rate.gap(at)), 1e-9, 1 - 1e-9)
    flip = two * (1 - share) / ((1 - one) * share + two * (1 - share))
    split = rate.p_mislabelled(at, one, two)
    found = rate.p_wrong(at, one, two)
    assert_allclose(found, ONE_ANSWER * flip + (1 - ONE_ANSWER) * split)
    assert 0 <= found[0] <= 1


# --- what is held out together ---------------------------------------------------------------


def table_of(*rows: tuple[str, str, str]) -> pa.Table:
    return to_table(Pair(*row, source="x", annotator="ann") for row in rows)


def test_prompts_are_held_out_whole_whatever_their_white_space() -> None:
    table = table_of(
        ("Why?", "a", "b"), (" why? ", "c", "d"), ("How?", "a", "b"), ("Who?", "e", "f")
    )
    keys = held_out_groups(table, "prompt").keys
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == 3


def test_connected_responses_are_one_group() -> None:
    rows = [("p", "a", "b"), ("p", "c", "b"), ("p", "d", "e"), ("p", "e", "f"), ("q", "a", "b")]
    keys = held_out_groups(table_of(*rows), "response").keys
    assert keys[0] == keys[1]
    assert keys[2] == keys[3]
    assert len(set(keys.tolist())) == 3  # the same text under another prompt is another response


def test_a_dominant_group_is_cut_and_reported() -> None:
    ring = [("one prompt", str(i), str((i + 1) % 30)) for i in range(30)]
    groups = held_out_groups(table_of(*ring), "prompt")
    assert groups.keys.shape == (30, 2)
    assert groups.remark is not None
    assert "100% of the pairs are of one prompt" in groups.remark
    alone = held_out_groups(table_of(*[("p", f"a{i}", f"b{i}") for i in range(9)]), "prompt")
    assert alone.keys.shape == (9,)
    assert len(set(alone.keys.tolist())) == 9


def test_an_unknown_column_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="--folds-by topic"):
        held_out_groups(table_of(("p", "a", "b")), "topic")
    assert len(held_out_groups(table_of(("p", "a", "b"), ("q", "a", "b")), "annotator").keys) == 2


@given(st.integers(0, 50))
@settings(max_examples=10, deadline=None)
def test_no_side_of_a_held_out_pair_is_trained_on(seed: int) -> None:
    sides = np.random.default_rng(seed).integers(0, 25, (80, 2)).astype(np.uint64)
    folds = assign(sides, seed=seed, replica=1, folds=10)
    for pair in range(80):
        trained = sides[folds.train[:, folds.own[pair]] == 1]
        assert not np.isin(trained, sides[pair]).any()


def test_shared_errors_pass_pooling_and_not_whole_groups() -> None:
    """One score a response, a third of them redrawn: only holding out prompts sees the errors."""
    rng = np.random.default_rng(0)
    topics, each, width = 30, 12, 8
    x = rng.normal(size=(topics * each, width)).astype(np.float32)
    truth = (x @ rng.normal(size=width)) / 2
    score = np.where(rng.random(len(x)) < 0.35, rng.permutation(truth), truth)
    i, j = np.triu_indices(each, 1)
    left = (np.arange(topics)[:, None] * each + i).ravel()
    right = (np.arange(topics)[:, None] * each + j).ravel()
    swap = score[left] < score[right]
    chosen, rejected = np.where(swap, right, left), np.where(swap, left, right)
    wrong = truth[chosen] < truth[rejected]
    key = np.arange(len(chosen), dtype=np.uint64)
    topic = (chosen // each).astype(np.uint64)
    settings_ = {"replicas": 2, "folds": 5, "search_steps": 8}
    pooled = fit_heads({"x": x}, chosen, rejected, key, HeadConfig(**settings_))
    held = fit_heads(
        {"x": x}, chosen, rejected, key, HeadConfig(identity=False, **settings_), held_out=topic
    )
    rates = [fit_flip_rate(fit.margins.mean(axis=0, dtype=np.float64)) for fit in (pooled, held)]
    assert rates[0].high < wrong.mean() / 2
    assert rates[1].estimate == pytest.approx(wrong.mean(), abs=0.08)
    assert count_triads(chosen, rejected).cyclic == 0


# --- chance ----------------------------------------------------------------------------------


def test_signs_are_shared_by_a_group_and_fair() -> None:
    signs = random_signs(np.repeat(np.arange(500, dtype=np.uint64), 2), 0)
    assert (signs[0] == 1).all()
    assert (signs[:, ::2] == signs[:, 1::2]).all()
    assert abs(signs[1:].mean()) < 0.03


def chance_of(pairs: int, width: int, signal: float, seed: int) -> float:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * pairs, width)).astype(np.float32)
    left, right = np.arange(pairs), np.arange(pairs) + pairs
    gap = signal * (x[left, 0] - x[right, 0])
    swap = rng.random(pairs) > expit(gap)
    problem = pose(
        {"x": x / np.float32(np.sqrt(2 * width))},
        np.where(swap, right, left),
        np.where(swap, left, right),
        np.zeros(2 * pairs, bool),
    )
    keys = np.arange(pairs, dtype=np.uint64)
    return sign_flip_test(problem, keys, assign(keys, seed=0, replica=0, folds=FOLDS), seed=seed)


def test_pure_noise_passes_one_time_in_twenty() -> None:
    p = np.array([chance_of(120, 40, 0.0, seed) for seed in range(120)])
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.05)
    assert p.mean() == pytest.approx(0.5, abs=0.09)


def test_a_signal_is_seen() -> None:
    assert chance_of(300, 20, 1.0, 0) == pytest.approx(1 / 40)


def test_the_margin_test_doubles_the_variance_of_cross_fits() -> None:
    margins = np.r_[np.ones(60), -np.ones(40)]  # z = 2, and 1.41 with twice the variance
    assert not no_better_than_chance(margins, None, cross_fitted=False)
    assert no_better_than_chance(margins, None, cross_fitted=True)
    one = np.zeros(100, np.int64)
    assert no_better_than_chance(margins, one, cross_fitted=False)


# --- intervals -------------------------------------------------------------------------------


def test_clusters_of_one_are_pairs_and_copies_add_nothing() -> None:
    values = np.random.default_rng(0).random(200)
    influence = values - values.mean()
    alone = half_width(influence, np.arange(200))
    copies = half_width(np.repeat(influence, 3), np.repeat(np.arange(200), 3))
    assert copies == pytest.approx(alone)
    twice = half_width(influence, np.stack([np.arange(200), np.arange(200) + 200], axis=1))
    assert twice == pytest.approx(alone, rel=0.01)
    unknown = half_width(influence, np.full(200, -1))
    assert unknown == pytest.approx(alone)


def test_a_cluster_is_deleted_from_each_class() -> None:
    """The jackknife of AUROC by hand: influences of a deleted cluster, over what it leaves."""
    score, wrong, group = clustered(3, 6, 40)
    keep = [group != g for g in range(6)]
    whole = float(auroc(score, wrong))
    moved = [float(auroc(score[k], wrong[k])) - whole for k in keep]
    held = np.bincount(group[wrong])
    t = stdtrit(held.sum() ** 2 / np.square(held).sum() - 1, 0.95)
    exact = t * np.sqrt(5 / 6 * np.square(moved).sum())
    found = auroc_interval(score, wrong, [group])
    half = (logit(found.high) - logit(found.low)) / 2 * whole * (1 - whole)
    assert half == pytest.approx(exact, rel=0.1)


def test_one_cluster_with_every_wrong_label_proves_nothing() -> None:
    score, wrong, group = clustered(4, 6, 40)
    found = auroc_interval(score, wrong & (group == 0), [group])
    assert found.high - found.low > 0.9


def clustered(seed: int, groups: int, each: int):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), each)
    skill = rng.normal(1.2, 0.8, groups)
    wrong = rng.random(groups * each) < 0.2
    return wrong * skill[group] + rng.normal(size=len(group)), wrong, group


def test_auroc_intervals_cover_where_pairs_share_a_prompt() -> None:
    truth = np.mean([float(auroc(*clustered(seed, 2000, 25)[:2])) for seed in range(10)])
    inside = {True: 0, False: 0}
    for seed in range(150):
        score, wrong, group = clustered(1000 + seed, 30, 50)
        for knows in inside:
            found = auroc_interval(score, wrong, [group] if knows else [])
            inside[knows] += found.low <= truth <= found.high
    assert inside[True] / 150 > 0.82
    assert inside[False] / 150 < 0.75


def test_the_estimate_is_the_auroc_and_a_share_stays_in_range() -> None:
    score, wrong, group = clustered(0, 20, 30)
    assert auroc_interval(score, wrong, [group]).estimate == pytest.approx(
        float(auroc(score, wrong))
    )
    sure = share_interval(np.ones(30), [np.arange(30) // 3])
    assert (sure.estimate, sure.high) == (1.0, 1.0)
    assert 0 < sure.low < 1
    with pytest.raises(EvidenceError):
        share_interval(np.array([np.nan]), [])


# --- triads and contrasts --------------------------------------------------------------------


def test_triads_by_hand() -> None:
    cycle = count_triads(np.array([0, 1, 2]), np.array([1, 2, 0]))
    assert cycle == Triads(1, 1)
    order = count_triads(np.array([0, 1, 0]), np.array([1, 2, 2]))
    assert order == Triads(1, 0)
    # two votes against one make the cycle an order; an even split leaves no triad
    assert count_triads(np.array([0, 1, 2, 0, 0]), np.array([1, 2, 0, 2, 2])) == Triads(1, 0)
    assert count_triads(np.array([0, 1, 2, 0]), np.array([1, 2, 0, 2])) == Triads(0, 0)


def test_triads_decide_only_where_there_are_enough() -> None:
    assert Triads(1000, 87).verdict(0.1) == "votes"  # .09 expected
    assert Triads(1000, 60).verdict(0.15) == "unknown"
    assert Triads(1000, 2).verdict(0.15) == "scores"
    assert Triads(1000, 20).verdict(0.15) == "unknown"
    assert Triads(20, 0).verdict(0.3) == "unknown"
    assert Triads(1000, 0).verdict(0.0) == "unknown"


def test_disagreeing_fits_are_explained() -> None:
    held = Contrast(HELD_OUT, Interval(0.7, 0.68, 0.72), Interval(0.17, 0.14, 0.2))
    pooled = Contrast(POOLED, Interval(0.91, 0.9, 0.92), Interval(0.002, 0.0, 0.004))
    assert differ(held, pooled)
    assert not differ(held, held)
    assert "Do not pool" in explain(held, pooled, Triads(5000, 0))
    assert "--pool" in explain(held, pooled, Triads(5000, 750))
    assert "17.0% (14.0% to 20.0%)" in explain(held, pooled, None)
    assert Contrast.of(pooled.to_json()) == pooled


# --- facts of pairs --------------------------------------------------------------------------


def test_facts_are_read_in_the_order_of_the_pairs(tmp_path: Path) -> None:
    rows = [
        Pair("p", "long one", "b", source="x", annotator="ann"),
        Pair("p", "b", "long  ONE", source="x", annotator="bob"),
        Pair("q", "c", "d", source="y"),
        Pair("p", "long one", "b ", source="x", annotator="ann"),
    ]
    pq.write_table(to_table(rows), tmp_path / "pairs.parquet")
    facts = read_facts(tmp_path / "pairs.parquet")
    assert facts.longer is not None
    assert facts.longer.tolist() == [1, 0, -1, 1]
    assert facts.annotators is not None
    assert facts.annotators[2] == -1
    assert facts.annotators[0] == facts.annotators[3] != facts.annotators[1]
    assert facts.weights is not None
    assert facts.weights.tolist() == [0.5, 1.0, 1.0, 0.5]  # Ann's copy; Bob's vote is his own
    assert facts.prompts is not None
    assert len(set(facts.prompts[[0, 1, 3]].tolist())) == 1
    turned = facts.flipped(np.array([True, False, True, False]))
    assert turned.longer is not None
    assert turned.longer.tolist() == [0, 0, -1, 1]
    assert read_facts(tmp_path / "pairs.parquet", "image").longer is None


@pytest.mark.parametrize(
    "text", ["A b c", " a b c", "a b c  ", "a  b c", "a\tb c", "a b\nc", "ab c"]
)
def test_copies_differ_in_case_and_spaces_alone(text: str, tmp_path: Path) -> None:
    rows = [Pair("p", "a b c", "d", annotator="ann"), Pair("p", text, "d", annotator="ann")]
    pq.write_table(to_table(rows), tmp_path / "pairs.parquet")
    weights = read_facts(tmp_path / "pairs.parquet").weights
    assert weights is not None
    assert weights.tolist() == ([1.0, 1.0] if text == "ab c" else [0.5, 0.5])
