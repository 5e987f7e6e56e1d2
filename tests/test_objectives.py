"""Objectives: worked algebra, identities between them, Eq. 18, autograd against finite steps."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from noisescope.errors import UsageError
from noisescope.scoring.weights import belief
from noisescope.training.objectives import (
    CDPO,
    DPO,
    IPO,
    OBJECTIVES,
    RDPO,
    REPO,
    ROPO,
    RPO,
    AdaptiveDPO,
    AdaptiveIPO,
    DistilledDPO,
    DrDPO,
    ForwardDPO,
    Hinge,
    HolderDPO,
    LengthNormalisedDPO,
    MaPO,
    Objective,
    PairValues,
    SoftDPO,
)

ratios = st.lists(st.floats(-30, 30), min_size=1, max_size=6)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def full_values(logratio: torch.Tensor) -> PairValues:
    """Values with everything any objective asks for."""
    ones = torch.ones_like(logratio)
    return PairValues(
        logratio,
        weight=0.5 * ones,
        gamma=0.1 * ones,
        chosen_logps=logratio - 20,
        rejected_logps=-20 * ones,
        chosen_ratio=logratio,
        rejected_ratio=0 * ones,
        chosen_tokens=8 * ones,
        rejected_tokens=4 * ones,
    )


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_worked_values():
    """l = 5, beta = 0.2: h = 1 and p = sigma(1)."""
    values, p = PairValues(tensor(5.0)), sigmoid(1.0)
    worked = {
        DPO(0.2): -math.log(p),
        IPO(0.2): (5 - 2.5) ** 2,
        Hinge(0.2): 0.0,
        CDPO(0.2, flip_rate=0.25): -0.75 * math.log(p) - 0.25 * math.log(1 - p),
        RDPO(0.2, flip_rate=0.25): (-0.75 * math.log(p) + 0.25 * math.log(1 - p)) / 0.5,
        ROPO(0.2): 56 / 225 * (-math.log(p) + 14 * (1 - p)),
        DrDPO(0.2): -math.log(p),
        HolderDPO(0.2): -3 * p**2 + 2 * p**3,
    }
    for objective, expected in worked.items():
        assert objective(values).item() == pytest.approx(expected), objective


def test_adaptive_objectives_are_equations_16_and_19():
    values = PairValues(tensor(5.0), weight=tensor(0.3), gamma=tensor(-0.5))
    assert AdaptiveDPO(0.2)(values).item() == pytest.approx(-0.3 * math.log(sigmoid(1.5)))
    assert AdaptiveIPO(0.2)(values).item() == pytest.approx(0.3 * (5 + 0.5 - 2.5) ** 2)


@pytest.mark.parametrize("odds", [-2.0, 0.0, 0.5, 4.0])
def test_distilled_dpo_is_smallest_at_the_belief_and_dpo_where_that_is_certain(odds):
    """beta = 0.2: dL/dl = beta (sigma(h) - sigma(Gamma)), 0 at h = Gamma."""
    objective, one = DistilledDPO(0.2), tensor(1.0)
    l = tensor(odds / 0.2, 0.0, 7.0).requires_grad_()  # noqa: E741 - the paper's symbol
    values = PairValues(l, weight=one, gamma=one * odds)
    (slope,) = torch.autograd.grad(objective(values).sum(), l)
    expected = [0.2 * (sigmoid(h) - sigmoid(odds)) for h in (odds, 0.0, 1.4)]
    assert slope.tolist() == pytest.approx(expected, abs=1e-12)
    for sure, side in ((math.inf, 1), (-math.inf, -1)):
        certain = PairValues(l, weight=one, gamma=one * sure)
        torch.testing.assert_close(objective(certain), DPO(0.2)(PairValues(side * l)))


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_soft_dpo_is_cdpo_with_the_pairs_own_p_wrong(p):
    gamma = torch.tensor(belief(np.array([p, p])))
    values = PairValues(tensor(3.0, -1.0), weight=tensor(1.0, 1.0), gamma=gamma)
    for h, loss in zip((0.6, -0.2), SoftDPO(0.2)(values).tolist(), strict=True):
        by_hand = -(1 - p) * math.log(sigmoid(h)) - p * math.log(sigmoid(-h))
        assert loss == pytest.approx(by_hand, abs=1e-5)  # certain labels: sigma(12), not 1


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.9])
def test_forward_dpo_is_the_likelihood_of_a_noisy_label(p):
    h = [0.6, -0.2, 3.0]
    ratio = torch.tensor([value / 0.2 for value in h], requires_grad=True)
    gamma = torch.tensor(belief(np.full(3, p)), dtype=torch.float32)
    losses = ForwardDPO(0.2)(PairValues(ratio, weight=torch.ones(3), gamma=gamma))
    likelihoods = [(1 - p) * sigmoid(at) + p * sigmoid(-at) for at in h]
    expected = [-math.log(likelihood) for likelihood in likelihoods]
    assert losses.tolist() == pytest.approx(expected, abs=1e-4)  # certain: sigma(12), not 1
    losses.sum().backward()
    slopes = [0.2 * (1 - 2 * p) * sigmoid(at) * sigmoid(-at) for at in h]
    expected = [-slope / share for slope, share in zip(slopes, likelihoods, strict=True)]
    assert ratio.grad.tolist() == pytest.approx(expected, abs=1e-5)


def test_side_likelihoods_enter_where_they_should():
    values = full_values(tensor(2.0))  # r_w = 2, s_w = -18/8, s_l = -5
    unweighted = {
        MaPO(0.2): -math.log(sigmoid(0.2 * (-18 / 8 + 5))) + 18 / 8,
        LengthNormalisedDPO(2.0): -math.log(sigmoid(2 * 2 / 8)),
        RPO(0.2, a=0.5): -math.log(sigmoid(0.4)) + 0.5 * 18 / 8,
    }
    for objective, expected in unweighted.items():
        assert objective.loss(values).item() == pytest.approx(expected), objective


@given(ratios)
def test_adaptive_with_nothing_to_adapt_is_plain(found):
    ratio = tensor(*found)
    ones = torch.ones_like(ratio)
    adapted = PairValues(ratio, weight=ones, gamma=0 * ones)
    assert torch.equal(AdaptiveDPO()(adapted), DPO()(PairValues(ratio)))
    assert torch.equal(AdaptiveIPO()(adapted), IPO()(PairValues(ratio)))


@given(ratios, st.floats(0, 0.45))
def test_rdpo_averages_to_dpo_over_flips(found, e):
    ratio = tensor(*found)
    robust = RDPO(flip_rate=e)
    mean = (1 - e) * robust(PairValues(ratio)) + e * robust(PairValues(-ratio))
    assert torch.allclose(mean, DPO()(PairValues(ratio)), atol=1e-9)


@given(ratios)
def test_cdpo_without_flips_is_dpo(found):
    values = PairValues(tensor(*found))
    assert torch.allclose(CDPO(flip_rate=0.0)(values), DPO()(values))


@given(st.floats(0.01, 10))
def test_ipo_minimum(beta):
    ratio = torch.tensor([1 / (2 * beta)], dtype=torch.float64, requires_grad=True)
    loss = IPO(beta)(PairValues(ratio)).sum()
    loss.backward()
    assert loss.item() == 0
    assert ratio.grad.item() == 0


@given(ratios, st.floats(0.1, 1), st.floats(-2, 2))
def test_adaptive_gradient_is_equation_18(found, weight, gamma):
    """dL/dl = -W beta sigma(Gamma - beta l)."""
    ratio = tensor(*found).requires_grad_()
    w, g = torch.full_like(ratio, weight).detach(), torch.full_like(ratio, gamma).detach()
    AdaptiveDPO(0.3)(PairValues(ratio, weight=w, gamma=g)).sum().backward()
    assert torch.allclose(ratio.grad, -w * 0.3 * torch.sigmoid(g - 0.3 * ratio.detach()))


@given(ratios)
def test_re_po_posterior(found):
    values = PairValues(tensor(*found))
    certain = REPO(reliability=1 - 1e-12)
    assert torch.allclose(certain.posterior(values), torch.ones(len(found), dtype=torch.float64))
    assert torch.allclose(
        REPO(reliability=0.5).posterior(values), (0.1 * values.logratio).sigmoid()
    )
    named = PairValues(values.logratio, reliability=torch.full_like(values.logratio, 0.5))
    assert torch.equal(REPO().posterior(named), REPO(reliability=0.5).posterior(values))


@given(ratios)
def test_dr_dpo_is_a_soft_minimum_between_best_and_mean(found):
    values = PairValues(tensor(*found))
    plain, robust = DPO()(values), DrDPO()(values)
    assert robust.mean() <= plain.mean() + 1e-9
    assert robust.mean() >= plain.min() - 1e-9
    cold = DrDPO(temperature=1e6)(values).mean()
    assert cold.item() == pytest.approx(plain.mean().item(), abs=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(name):
    """One loss a pair, scaled by its weight, with a gradient that finite steps confirm."""
    objective: Objective = OBJECTIVES[name]()
    ratio = tensor(-3.0, 0.5, 4.0).requires_grad_()
    loss = objective(full_values(ratio))
    assert loss.shape == (3,)
    if name not in ("dr-dpo", "re-po"):  # a batch loss; a loss with a detached posterior
        assert torch.allclose(loss, 0.5 * objective.loss(full_values(ratio)))
        assert torch.autograd.gradcheck(lambda x: objective(full_values(x)).sum(), ratio)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="--beta"):
            OBJECTIVES[name](beta=wrong)


def test_missing_columns_are_named():
    with pytest.raises(UsageError, match="weight, gamma"):
        AdaptiveDPO()(PairValues(tensor(1.0)))
    with pytest.raises(UsageError, match="--flip-rate"):
        RDPO(flip_rate=0.5)


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        ("ropo", "a", 0.0),
        ("rpo", "a", math.nan),
        ("dr-dpo", "temperature", 0.0),
        ("holder-dpo", "g", -1.0),
        ("re-po", "reliability", 1.0),
    ],
)
def test_impossible_parameters_are_named(name, parameter, value):
    with pytest.raises(UsageError, match=f"--parameter {parameter} must be between 0"):
        OBJECTIVES[name](**{parameter: value})


def test_weights_carry_no_gradient():
    weight = tensor(0.5).requires_grad_()
    ratio = tensor(1.0).requires_grad_()
    DPO()(PairValues(ratio, weight=weight)).sum().backward()
    assert weight.grad is None
    assert ratio.grad is not None
