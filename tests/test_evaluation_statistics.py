"""Win rates and paired differences: worked cases, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noisescope.errors import EvidenceError
from noisescope.evaluate import (
    JudgeCard,
    Verdict,
    by_order,
    by_score,
    paired_difference,
    summarise_verdicts,
    win_rate,
)
from noisescope.scoring.metrics import share

CARD = JudgeCard("j", "m", "Apache-2.0", "text", "f", is_pairwise=True)


def test_without_ties_it_is_wilsons_interval() -> None:
    won = win_rate([1.0] * 13 + [0.0] * 7)
    wilson = share(13, 20)
    assert (won.wins, won.ties, won.losses) == (13, 0, 7)
    assert won.rate.estimate == wilson.estimate
    assert won.rate.low == pytest.approx(wilson.low, abs=1e-12)
    assert won.rate.high == pytest.approx(wilson.high, abs=1e-12)


def test_ties_count_half_and_narrow_the_interval() -> None:
    tied = win_rate([1.0] * 5 + [0.5] * 10 + [0.0] * 5).rate
    plain = win_rate([1.0] * 10 + [0.0] * 10).rate
    assert tied.estimate == plain.estimate == 0.5
    assert plain.low < tied.low < 0.5 < tied.high < plain.high


def test_nothing_but_ties_still_has_a_width() -> None:
    rate = win_rate([0.5] * 20).rate
    assert rate.low < 0.5 < rate.high


def test_unjudged_prompts_are_left_out() -> None:
    assert win_rate([1.0, math.nan, 0.0]).judged == 2
    with pytest.raises(EvidenceError):
        win_rate([math.nan])


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=60))
def test_swapping_the_models_mirrors_the_interval(outcomes: list[float]) -> None:
    one, other = win_rate(outcomes).rate, win_rate([1 - x for x in outcomes]).rate
    assert 0 <= one.low <= one.estimate <= one.high <= 1
    assert one.low == pytest.approx(1 - other.high, abs=1e-9)
    assert one.high == pytest.approx(1 - other.low, abs=1e-9)


@pytest.mark.parametrize(("wins", "ties"), [(0.5, 0.0), (0.4, 0.3), (0.7, 0.1), (0.1, 0.8)])
@pytest.mark.parametrize(("n", "mass"), [(50, 0.9), (200, 0.9), (200, 0.95)])
def test_the_interval_covers(wins: float, ties: float, n: int, mass: float) -> None:
    random = np.random.default_rng(3)
    drawn = random.choice([1.0, 0.5, 0.0], size=(1500, n), p=[wins, ties, 1 - wins - ties])
    truth = wins + ties / 2
    covered = [(r := win_rate(row, mass).rate).low <= truth <= r.high for row in drawn]
    assert mass - 0.02 < np.mean(covered) < mass + 0.04  # few untied prompts: a little wide


def test_the_paired_interval_covers_where_prompts_differ_widely() -> None:
    random = np.random.default_rng(4)
    covered = []
    for _ in range(1500):
        hard = random.normal(0, 5, 30)  # what both models share cancels
        gap = paired_difference(hard + random.normal(0.3, 1, 30), hard + random.normal(0, 1, 30))
        covered.append(gap.low <= 0.3 <= gap.high)
    assert abs(np.mean(covered) - 0.9) < 0.03


def test_one_prompt_has_no_finite_interval() -> None:
    gap = paired_difference([2.0], [1.0])
    assert gap.estimate == 1.0
    assert math.isinf(gap.low)
    assert math.isinf(gap.high)


def test_scores_decide_and_equal_scores_tie() -> None:
    verdicts = by_score([1.0, 2.0, 0.0, math.nan], [0.0, 2.0, 1.0, 1.0])
    assert [v.outcome for v in verdicts] == [1.0, 0.5, 0.0, None]
    result = summarise_verdicts(JudgeCard("j", "m", "-", "text", "f"), verdicts)
    assert result.unjudged == 1
    assert result.policy_mean == 1.0
    assert result.order is None


@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        (("first", "second"), 1.0),
        (("second", "first"), 0.0),
        (("first", "first"), 0.5),
        (("second", "second"), 0.5),
        (("tie", "tie"), 0.5),
        (("first", "tie"), 0.5),
        (("first", "unparsable"), None),
        (("failed", "second"), None),
    ],
)
def test_a_swapped_judge_must_agree_with_itself(
    told: tuple[str, str], outcome: float | None
) -> None:
    assert by_order(told).outcome == outcome


def swapped_judge(random: np.random.Generator, n: int, right: float, first: float) -> list[Verdict]:
    """A judge that names the first output with chance `first`, else the better one at `right`.

    The policy is better on 60 % of prompts.
    """
    better = random.random(n) < 0.6
    told = []
    for is_better in better:
        answers = []
        for policy_is_first in (True, False):
            sees = is_better if random.random() < right else not is_better
            names_first = random.random() < first or sees == policy_is_first
            answers.append("first" if names_first else "second")
        told.append(by_order(answers))
    return told


@pytest.mark.parametrize("first", [0.0, 0.3, 0.8])
def test_position_bias_moves_no_win_rate_and_is_reported(first: float) -> None:
    random = np.random.default_rng(5)
    result = summarise_verdicts(CARD, swapped_judge(random, 20_000, right=1.0, first=first))
    assert result.won is not None
    assert result.order is not None
    assert result.order.first is not None
    # A share `first` of answers is position alone: what is left decides, the rest is tied.
    expected = 0.5 + (0.6 - 0.5) * (1 - first)
    assert result.won.rate.estimate == pytest.approx(expected, abs=0.01)
    assert result.order.first.estimate == pytest.approx(0.5 + first / 2, abs=0.01)
    assert (result.order.first.low > 0.5) == (first > 0)


def test_a_judge_blind_to_all_but_position_decides_nothing() -> None:
    result = summarise_verdicts(CARD, [by_order(("first", "first")) for _ in range(50)])
    assert result.won is not None
    assert result.order is not None
    assert (result.won.wins, result.won.ties, result.won.losses) == (0, 50, 0)
    assert result.order.agreed == 0
    assert result.order.first is not None
    assert result.order.first.estimate == 1.0


def test_unjudged_answers_are_counted_not_invented() -> None:
    verdicts = [by_order(("first", "unparsable"), 2), by_order(("failed", "failed"), 3)]
    result = summarise_verdicts(CARD, verdicts)
    assert result.won is None
    assert result.unjudged == 2
    assert result.order is not None
    assert (result.order.unparsable, result.order.failed, result.order.retries) == (1, 2, 5)
    assert result.to_json()["win_rate"] is None
