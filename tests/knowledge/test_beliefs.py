"""Log-probabilities as they travel: bounded, one spelling, a known loss."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from p2pfl.knowledge.beliefs import (
    LOGIT_FLOOR,
    PROBE_FLOOR,
    agreement,
    cross_entropy,
    from_codes,
    log_softmax,
    softmax,
    to_codes,
)

ANY_LOGITS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.floats(width=32)
)


@given(ANY_LOGITS)
def test_whatever_a_model_gives_becomes_probabilities_within_the_floor(z: np.ndarray) -> None:
    log_p = log_softmax(z)
    assert ((log_p >= PROBE_FLOOR) & (log_p <= 0)).all()
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, atol=1e-7)
    np.testing.assert_allclose(softmax(z).sum(axis=1), 1, rtol=1e-12)


@given(st.floats(-50, 50), st.floats(0.5, 10))
def test_a_constant_and_the_logarithm_leave_the_softmax_at_any_temperature(shift: float, T: float) -> None:
    z = np.array([[1.0, -2.0, 0.5], [7.0, 7.0, -9.0]])
    sent = log_softmax(z + shift, LOGIT_FLOOR)
    np.testing.assert_allclose(softmax(sent / T), softmax(z / T), rtol=1e-9)


def test_two_classes_by_hand() -> None:
    log_p = log_softmax(np.array([[math.log(3.0), 0.0]]))
    np.testing.assert_allclose(log_p, [[math.log(0.75), math.log(0.25)]])
    assert cross_entropy(log_p, np.array([1])) == -math.log(0.25)
    assert agreement(log_p, np.array([1])) == 0


def test_a_row_without_a_number_says_nothing() -> None:
    np.testing.assert_allclose(softmax(np.array([[np.nan, np.inf, -np.inf]])), [[1 / 3] * 3])


@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(PROBE_FLOOR, 0)))
def test_a_code_is_off_by_at_most_half_a_step_and_stands_for_itself(log_p: np.ndarray) -> None:
    codes = to_codes(log_p)
    assert np.abs(from_codes(codes) - log_p).max() <= 10 / 255 + 1e-12
    np.testing.assert_array_equal(to_codes(from_codes(codes)), codes)
