"""Rules by coordinate: worked examples, shares, and what is not finite."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from p2pfl.trust.coordinates import Averaged, Window, around_median, average_window, middle, trimmed


def column(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)[:, None]


def averaged(x: NDArray[np.float32], window: Window) -> Averaged:
    result = average_window(x, window, explain=True)
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("window", "values", "expected"),
    [
        (middle(3), (5, 99, 1), 5),
        (middle(4), (5, 99, 1, 7), 6),
        (middle(1), (5,), 5),
        (trimmed(5, 1), (-100, 1, 2, 6, 100), 3),
        (trimmed(5, 2), (-100, 1, 2, 6, 100), 2),
        (trimmed(3, 0), (1, 2, 6), 3),
        # The median is 2.5; 0 and 5 are equally far, and the smaller is taken.
        (around_median(6, 5), (0, 1, 2, 3, 5, 90), 11 / 5),
        (around_median(5, 3), (0, 8, 9, 10, 20), 9),
        (around_median(4, 1), (0, 4, 5, 90), 4),
    ],
)
def test_each_window_is_as_written_by_hand(
    window: Window, values: tuple[float, ...], expected: float
) -> None:
    assert averaged(column(*values), window).vector[0] == pytest.approx(expected, rel=1e-6)


def test_shares_are_the_mean_part_of_each_row_over_the_coordinates() -> None:
    x = np.array([[1, 9], [2, 8], [3, 1]], np.float32)
    np.testing.assert_allclose(averaged(x, middle(3)).shares, [0, 1, 0])
    x = np.array([[1, 5], [2, 8], [3, 1], [4, 7]], np.float32)
    np.testing.assert_allclose(averaged(x, trimmed(4, 1)).shares, [0.25, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(averaged(column(1, 2, 2, 9), middle(4)).shares, [0, 0.5, 0.5, 0])


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 30))
@settings(deadline=None)
def test_median_and_trimmed_mean_are_numpys_and_scipys(seed: int, n: int, d: int) -> None:
    x = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    np.testing.assert_allclose(averaged(x, middle(n)).vector, np.median(x, axis=0), rtol=1e-6)
    f = (n - 1) // 2
    expected = stats.trim_mean(x.astype(np.float64), f / n + 1e-9, axis=0)
    np.testing.assert_allclose(averaged(x, trimmed(n, f)).vector, expected, rtol=1e-5, atol=1e-6)


def test_many_blocks_give_what_one_does() -> None:
    x = np.random.default_rng(1).standard_normal((5, 10_007), dtype=np.float32)
    np.testing.assert_array_equal(averaged(x, middle(5)).vector, np.median(x, axis=0))
    as_list = average_window(list(x), middle(5))
    assert as_list is not None
    np.testing.assert_array_equal(as_list.vector, np.median(x, axis=0))


def test_a_mixing_is_applied_before_the_window() -> None:
    x = column(0, 2, 10, 30)
    mixing = np.array([[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]])
    result = average_window(x, middle(3), mixing=mixing, explain=True)
    assert result is not None
    assert result.vector[0] == 6
    np.testing.assert_allclose(result.shares, [0, 1, 0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_reported_by_none(value: float) -> None:
    x = np.zeros((5, 9000), np.float32)
    x[2, 8999] = value
    assert average_window(x, trimmed(5, 1)) is None
    assert average_window(x, middle(5)) is None
    assert average_window(list(x), around_median(5, 4)) is None


def test_the_rows_are_not_sorted_in_place() -> None:
    for x in (column(3, 1, 2), np.array([[3, 1, 2]], np.float32)):
        before = x.copy()
        averaged(x, middle(len(x)))
        np.testing.assert_array_equal(x, before)
