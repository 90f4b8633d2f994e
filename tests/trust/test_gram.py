"""Distances and combinations of long vectors, beside float64."""

import numpy as np
import pytest
from numpy.typing import NDArray

from p2pfl.trust import gram
from p2pfl.trust.gram import Floats

# Several blocks, the last of them short, and too much for the float64 of small inputs.
N, D = 7, 20_011


def rows(seed: int = 0, n: int = N, d: int = D) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


def exact_squares(x: NDArray[np.float32]) -> Floats:
    y = x.astype(np.float64)
    squares: Floats = ((y[:, None] - y) ** 2).sum(axis=2)
    return squares


@pytest.mark.parametrize("offset", [0, 1e3, 1e4, 1e6])
def test_squares_are_those_of_float64_wherever_the_rows_lie(offset: float) -> None:
    x = rows() + np.float32(offset)
    expected = exact_squares(x)
    np.testing.assert_allclose(gram.squares(x), expected, rtol=1e-5)
    np.testing.assert_allclose(gram.squares(list(x), start=3), expected, rtol=1e-5)
    np.testing.assert_allclose(gram.squares_to(x, x[2]), expected[2], rtol=1e-6)


def test_norms_and_inner_products_would_lose_these_distances() -> None:
    x = rows() + np.float32(1e4)
    naive = (x**2).sum(axis=1)[:, None] + (x**2).sum(axis=1) - 2 * (x @ x.T)
    assert np.abs(naive - exact_squares(x)).max() > 0.1 * exact_squares(x).max()


@pytest.mark.parametrize("far", [1e3, 1e5, 1e7])
def test_an_outlier_that_is_taken_off_first_hides_nothing(far: float) -> None:
    x = rows()
    x[0] += np.float32(far)
    x[1] -= np.float32(far)
    np.testing.assert_allclose(gram.squares(x, start=0), exact_squares(x), rtol=1e-3)


def test_a_row_that_is_not_finite_shows_in_its_own_distances_only() -> None:
    x = rows()
    x[3, 100] = np.nan
    finite = np.isfinite(gram.squares(x))
    assert not finite[3].any()
    assert np.delete(np.delete(finite, 3, 0), 3, 1).all()
    assert np.flatnonzero(~np.isfinite(gram.squares_to(x, x[0]))).tolist() == [3]
    assert np.isfinite(gram.squares(x, start=3)).sum() == 1


def test_values_too_large_for_float32_squares_are_seen_and_wide_holds_them() -> None:
    x = rows()
    x[2] = 3e38
    x[4] = -3e38
    assert not np.isfinite(gram.squares(x)).all()
    np.testing.assert_allclose(gram.squares(x, wide=True), exact_squares(x), rtol=1e-9)
    expected = 0.5 * x[2].astype(np.float64) + 0.25 * x[4]
    shares = np.array([0, 0, 0.5, 0, 0.25, 0, 0])
    np.testing.assert_allclose(
        gram.combine(list(x), shares, np.zeros(D, np.float32), wide=True), expected, rtol=1e-6
    )


def test_products_are_inner_products_with_the_point_and_with_themselves() -> None:
    x = rows()
    y = x.astype(np.float64)
    dots, squares = gram.products(x, x[1])
    np.testing.assert_allclose(dots, y @ y[1], atol=1e-2)
    np.testing.assert_allclose(squares, (y**2).sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_combination_is_that_of_float64_to_a_few_roundings(as_list: bool) -> None:
    x = rows() + np.float32(100)
    shares = np.array([0.1, 0, 0.2, 0.3, 0, 0.15, 0])
    y = x.astype(np.float64)
    expected = y[6] + shares @ (y - y[6])
    out = gram.combine(list(x) if as_list else x, shares, x[6])
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=4e-7)


def test_a_list_of_equal_rows_combines_to_the_row_itself() -> None:
    x = np.tile(rows(1, 1), (N, 1))
    out = gram.combine(list(x), np.full(N, 1 / N), x[0])
    np.testing.assert_array_equal(out, x[0])


def test_no_share_gives_the_point_and_a_whole_share_the_row() -> None:
    x = rows()
    np.testing.assert_array_equal(gram.combine(list(x), np.zeros(N), x[0]), x[0])
    out = gram.combine(x, np.eye(N)[4], x[0])
    np.testing.assert_array_equal(out, x[4])
    assert not np.shares_memory(out, x)


def test_distances_of_mixtures_follow_from_those_of_the_rows() -> None:
    x = rows(2, 6, 50)
    mixing = np.random.default_rng(3).random((4, 6))
    mixing /= mixing.sum(axis=1, keepdims=True)
    mixed = mixing @ x.astype(np.float64)
    expected = ((mixed[:, None] - mixed) ** 2).sum(axis=2)
    np.testing.assert_allclose(gram.mixed_squares(exact_squares(x), mixing), expected, rtol=1e-9, atol=1e-9)


def test_blocks_cover_every_coordinate_once_and_stay_small() -> None:
    x = rows(4, 40, 9001)
    seen = np.zeros(9001, int)
    for columns, block in gram.differences(x, x[5]):
        seen[columns] += 1
        assert block.nbytes <= 2**20
        np.testing.assert_array_equal(block, x[:, columns] - x[5, columns])
    assert (seen == 1).all()
