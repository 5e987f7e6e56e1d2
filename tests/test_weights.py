"""W and Gamma against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from noisescope.errors import UsageError
from noisescope.scoring.weights import WeightConfig, adaptive_weights


def test_worked_example() -> None:
    """k1 = 10, k2 = -2, c2 = 0.5: u = 0, 0.1, 2 give W = 1, 1/2, 1/21 and Gamma = .5, .48, -7.5."""
    w, gamma = adaptive_weights(np.array([0.0, 0.1, 2.0]), WeightConfig(10, -2, 0.5))
    assert_allclose(w, [1, 1 / 2, 1 / 21])
    assert_allclose(gamma, [0.5, 0.48, -7.5])


def test_constants_left_out_leave_a_trusted_pair_to_plain_dpo() -> None:
    """k2 = -1, c2 = 0: u = 0 gives W = 1, Gamma = 0; u = 1 gives 1/11 and -1."""
    w, gamma = adaptive_weights(np.array([0.0, 1.0]), WeightConfig())
    assert_allclose(w, [1, 1 / 11])
    assert_allclose(gamma, [0, -1])


def test_missing_u_stays_missing() -> None:
    w, gamma = adaptive_weights(np.array([np.nan]), WeightConfig())
    assert np.isnan([w[0], gamma[0]]).all()


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_more_suspicious_never_weighs_more(a: float, b: float) -> None:
    low, high = sorted((a, b))
    w, gamma = adaptive_weights(np.array([low, high]), WeightConfig())
    assert 0 < w[1] <= w[0] <= 1
    assert gamma[1] <= gamma[0]


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"--k1 .*--k2 .*--c2"):
        WeightConfig(k1=-1, k2=1, c2=float("nan"))
