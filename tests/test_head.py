"""Log-linear replicas: algebra by hand, an independent solver, the interface's promises."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from noisescope.errors import NoisescopeError
from noisescope.pairs import hashed
from noisescope.replicas.cross_fit import assign
from noisescope.replicas.head import HeadConfig, fit_heads, recurring_responses, replica_weights
from noisescope.replicas.prior import evaluate, pose, unit_scale
from noisescope.replicas.solver import objective, solve
from noisescope.training.batch_order import bootstrap_weight, fold_of

QUICK = HeadConfig(replicas=2, folds=4, search_steps=4)


def synthetic(pairs: int, responses: int, *, seed: int = 0, flip: float = 0.0, taste: float = 0.0):
    """Pairs whose true reward is 2 x_0 + taste * (a free ability); a share of labels is flipped."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(responses, 5)).astype(np.float32)
    reward = 2 * x[:, 0] + taste * rng.normal(size=responses)
    a = rng.integers(0, responses, pairs)
    b = (a + rng.integers(1, responses, pairs)) % responses
    first = rng.random(pairs) < expit(reward[a] - reward[b])
    flipped = rng.random(pairs) < flip
    first ^= flipped
    low, high = np.minimum(a, b).astype(np.uint64), np.maximum(a, b).astype(np.uint64)
    key = hashed(low * np.uint64(1_000_003) + high, 7)
    return x, np.where(first, a, b), np.where(first, b, a), key, flipped


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    above = score[positive][:, None] > score[~positive][None]
    return float(above.mean())


# --- folds -----------------------------------------------------------------------------------


def test_splitmix64_reference_value() -> None:
    # First output of splitmix64 seeded with 0, from Vigna's reference implementation.
    from noisescope.pairs import mix

    assert int(mix(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50), st.integers(0, 2**31))
def test_folds_depend_on_content_alone(keys: list[int], seed: int) -> None:
    key = np.array(keys, np.uint64)
    fold = fold_of(key, seed=seed, replica=1, folds=5)
    alone = [fold_of(key[i : i + 1], seed=seed, replica=1, folds=5)[0] for i in range(len(key))]
    assert fold.tolist() == alone


def test_folds_are_even_and_replicas_differ() -> None:
    key = np.arange(20_000, dtype=np.uint64)
    one, two = (fold_of(key, seed=0, replica=m, folds=10) for m in (0, 1))
    assert np.bincount(one).min() > 1800
    assert abs((one == two).mean() - 0.1) < 0.01


def test_bootstrap_weights_have_mean_one_and_the_given_spread() -> None:
    key = np.arange(50_000, dtype=np.uint64)
    weight = bootstrap_weight(key, seed=0, replica=0, strength=0.5)
    assert weight.min() >= 0.5
    assert weight.mean() == pytest.approx(1, abs=0.01)
    assert weight.std() == pytest.approx(0.5, abs=0.02)
    assert (bootstrap_weight(key, seed=0, replica=0, strength=0) == 1).all()


# --- the solver ------------------------------------------------------------------------------


def problem_of(x, chosen, rejected, key, *, identity: bool):
    recurring = recurring_responses(chosen, rejected, key, len(x))
    scaled = {"x": x * unit_scale(x, chosen, rejected)}
    return pose(scaled, chosen, rejected, recurring if identity else np.zeros(len(x), bool))


def test_one_pair_by_hand() -> None:
    # One feature with difference 1, prior variance v: m minimises log(1 + e^-m) + m^2 / (2 v),
    # so m = v sigma(-m); v = 1 / sigma(-1) gives m = 1.
    x = np.array([[1.0], [0.0]], np.float32)
    none = np.zeros(2, bool)
    problem = pose({"x": x}, np.array([0]), np.array([1]), none)
    design = problem.design({"x": float(1 / expit(-1.0))})
    fit = solve(design, np.ones((1, 1), np.float32), tolerance=1e-8)
    assert fit.margins[0, 0] == pytest.approx(1.0, abs=1e-3)


def test_the_loss_of_many_pairs_is_summed_without_rounding_away_a_step() -> None:
    rng = np.random.default_rng(0)
    weights, margins, u = (rng.random((n, 3)).astype(np.float32) for n in (50_000, 50_000, 9))
    exact = np.square(u.astype(float)).sum(axis=0) / 2
    exact += (weights.astype(float) * np.logaddexp(0, -margins.astype(float))).sum(axis=0)
    assert objective(weights, margins, u) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize(("pairs", "responses"), [(120, 12), (60, 100)])
@pytest.mark.parametrize("identity", [True, False])
def test_parity_with_scipy(pairs: int, responses: int, identity: bool) -> None:
    x, chosen, rejected, key, _ = synthetic(pairs, responses, taste=1.0)
    problem = problem_of(x, chosen, rejected, key, identity=identity)
    variance = dict.fromkeys(problem.names, 0.7)
    weight = bootstrap_weight(key, seed=0, replica=0, strength=1.0)
    ours = solve(problem.design(variance), weight[:, None], tolerance=1e-8).margins[:, 0]

    scaled = x * unit_scale(x, chosen, rejected) * np.sqrt(0.7)
    eye = np.diag(np.sqrt(0.7 * problem.recurring)) if identity else np.zeros((responses, 0))
    a = np.concatenate([scaled, eye], axis=1)
    a = a[chosen] - a[rejected]

    def loss(u: np.ndarray) -> float:
        return float(-(weight * log_expit(a @ u)).sum() + u @ u / 2)

    theirs = a @ minimize(loss, np.zeros(a.shape[1]), method="BFGS", options={"gtol": 1e-7}).x
    assert np.allclose(ours, theirs, atol=5e-3)


def test_kernel_and_columns_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, chosen, rejected, key, _ = synthetic(200, 15, taste=1.0)
    problem = problem_of(x, chosen, rejected, key, identity=True)
    variance = {"x": 0.5, "identity": 0.3}
    weight = np.ones((200, 1), np.float32)
    kernel = solve(problem.design(variance), weight, tolerance=1e-8)
    monkeypatch.setattr("noisescope.replicas.prior.KERNEL_ROWS", 0)
    problem = problem_of(x, chosen, rejected, key, identity=True)
    design = problem.design(variance)
    assert design.identity is not None
    assert np.allclose(solve(design, weight, tolerance=1e-8).margins, kernel.margins, atol=2e-3)


@pytest.mark.parametrize(("pairs", "responses"), [(150, 14), (60, 100)])
def test_gradient_of_the_search(pairs: int, responses: int) -> None:
    x, chosen, rejected, key, _ = synthetic(pairs, responses, taste=1.0)
    problem = problem_of(x, chosen, rejected, key, identity=True)
    folds = assign(key, seed=0, replica=0, folds=3)

    def at(log_variance: np.ndarray):
        variance = dict(zip(problem.names, np.exp(log_variance), strict=True))
        return evaluate(problem, folds, variance, None)

    origin = np.array([-1.0, -0.5])
    for axis in np.eye(2):
        numeric = at(origin + 0.05 * axis).log_likelihood - at(origin - 0.05 * axis).log_likelihood
        assert at(origin).gradient @ axis == pytest.approx(numeric / 0.1, rel=0.05, abs=2e-5)


# --- the heads -------------------------------------------------------------------------------


def test_margins_are_held_out() -> None:
    """A pair's margin does not move when its own label does."""
    x, chosen, rejected, key, _ = synthetic(80, 200)
    config = HeadConfig(replicas=2, folds=4, identity=False, search_steps=0)
    problem = pose({"x": x}, chosen, rejected, np.zeros(200, bool))
    swapped = [rejected.copy(), chosen.copy()]
    side = [chosen.copy(), rejected.copy()]
    for arrays, other in zip(side, swapped, strict=True):
        arrays[3] = other[3]
    from noisescope.replicas.head import cross_fit

    here, _ = cross_fit(problem, {"x": 0.5}, key, key, config, None)
    turned = pose({"x": x}, side[0], side[1], np.zeros(200, bool))
    there, _ = cross_fit(turned, {"x": 0.5}, key, key, config, None)
    assert np.allclose(here[:, 3], -there[:, 3], atol=1e-3)


def test_a_fold_has_no_weight_where_it_is_held_out() -> None:
    key = np.arange(50, dtype=np.uint64)
    folds = assign(key, seed=0, replica=1, folds=4)
    weights = replica_weights(key, folds, 1, QUICK)
    fold = fold_of(key, seed=0, replica=1, folds=4)
    assert (folds.own == fold).all()
    assert (weights[np.arange(50), fold] == 0).all()
    assert (np.delete(weights[0], fold[0]) > 0).all()


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_swapping_all_sides_negates_nothing_but_the_labels(seed: int) -> None:
    """Learning from reversed preferences gives reversed rewards, hence the same margins."""
    x, chosen, rejected, key, _ = synthetic(60, 20, seed=seed)
    one = fit_heads({"x": x}, chosen, rejected, key, QUICK)
    two = fit_heads({"x": x}, rejected, chosen, key, QUICK)
    assert np.allclose(one.margins, two.margins, atol=1e-3)
    assert np.allclose(one.rewards({"x": x}), -two.rewards({"x": x}), atol=1e-3)


def test_row_order_does_not_matter_and_a_second_run_is_identical() -> None:
    x, chosen, rejected, key, _ = synthetic(150, 40, taste=1.0)
    order = np.random.default_rng(1).permutation(150)
    rows = np.random.default_rng(2).permutation(40)
    back = np.argsort(rows)
    one = fit_heads({"x": x}, chosen, rejected, key, QUICK)
    again = fit_heads({"x": x}, chosen, rejected, key, QUICK)
    shuffled = fit_heads(
        {"x": x[rows]}, back[chosen][order], back[rejected][order], key[order], QUICK
    )
    assert np.array_equal(one.margins, again.margins)
    assert np.allclose(one.margins[:, order], shuffled.margins, atol=2e-2)


def test_flips_are_found_and_margins_have_the_scale_of_log_odds() -> None:
    x, chosen, rejected, key, flipped = synthetic(1500, 3000, flip=0.2)
    fit = fit_heads({"x": x}, chosen, rejected, key, QUICK)
    margin = fit.margins.mean(axis=0)
    assert fit.pooled < 1000
    assert auroc(-margin, flipped) > 0.8
    assert fit.accuracy.mean() > 0.65
    assert fit.log_likelihood > -0.62


def test_pooling_by_identity_adds_what_features_miss() -> None:
    x, chosen, rejected, key, _ = synthetic(1200, 40, taste=2.0)
    plain = fit_heads({"x": x}, chosen, rejected, key, HeadConfig(2, 5, identity=False))
    pooled = fit_heads({"x": x}, chosen, rejected, key, HeadConfig(2, 5))
    control = fit_heads({}, chosen, rejected, key, HeadConfig(2, 5))
    assert plain.pooled == 0
    assert pooled.pooled == 40
    assert pooled.log_likelihood > plain.log_likelihood + 0.02
    assert pooled.log_likelihood > control.log_likelihood - 0.005


def test_identity_costs_nothing_where_no_response_recurs() -> None:
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    chosen, rejected = np.arange(0, 200, 2), np.arange(1, 200, 2)
    key = np.arange(100, dtype=np.uint64)
    free = fit_heads({"x": x}, chosen, rejected, key, QUICK)
    bare = fit_heads(
        {"x": x}, chosen, rejected, key, HeadConfig(2, 4, search_steps=4, identity=False)
    )
    assert free.pooled == 0
    assert np.array_equal(free.margins, bare.margins)


def test_recurring_counts_keys_not_rows() -> None:
    chosen, rejected = np.array([0, 0, 2]), np.array([1, 1, 1])
    key = np.array([5, 5, 9], np.uint64)
    assert recurring_responses(chosen, rejected, key, 3).tolist() == [False, True, False]


def test_rewards_score_new_pairs() -> None:
    x, chosen, rejected, key, _ = synthetic(400, 800)
    fit = fit_heads({"x": x}, chosen, rejected, key, QUICK)
    new, better, worse, _, _ = synthetic(400, 800, seed=9)
    reward = fit.rewards({"x": new}).mean(axis=0)
    assert (reward[better] > reward[worse]).mean() > 0.7


def test_noise_reads_as_chance_and_twenty_pairs_are_enough_to_run() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 30)).astype(np.float32)
    fit = fit_heads(
        {"x": x},
        np.arange(20),
        np.arange(20, 40),
        np.arange(20, dtype=np.uint64),
        HeadConfig(replicas=2),
    )
    assert np.isfinite(fit.margins).all()
    assert fit.log_likelihood > -1.0


def test_constant_and_huge_columns_are_harmless() -> None:
    x, chosen, rejected, key, _ = synthetic(300, 500)
    odd = np.concatenate([x * 1e6, np.full((500, 2), 3e5, np.float32)], axis=1)
    plain = fit_heads({"x": x}, chosen, rejected, key, QUICK)
    scaled = fit_heads({"x": odd.astype(np.float32)}, chosen, rejected, key, QUICK)
    assert np.allclose(plain.margins, scaled.margins, atol=2e-2)


def test_problems_are_collected() -> None:
    x = np.full((2, 2), np.nan, np.float32)
    with pytest.raises(NoisescopeError, match=r"one row per response.*not finite"):
        fit_heads({"x": x}, np.array([0, 2]), np.array([1, 1]), np.zeros(2, np.uint64), QUICK)
    with pytest.raises(NoisescopeError, match="nothing to fit"):
        fit_heads({}, np.array([0]), np.array([1]), np.zeros(1, np.uint64), QUICK)
    with pytest.raises(NoisescopeError, match=r"replicas.*folds.*bootstrap"):
        HeadConfig(replicas=0, folds=1, bootstrap=2)


def test_no_torch_is_imported() -> None:
    code = "import sys, noisescope.replicas.head; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
