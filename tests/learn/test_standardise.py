from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn.standardise import Rows, apply, from_sums, sums


def _rows(seed: int = 0, n: int = 60) -> Any:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, 3)) * [1, 20, 0.01] + [0, 130, 5]).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    return x


def test_sums_of_a_worked_example() -> None:
    x = np.array([[1.0, np.nan], [3.0, 2.0]], np.float32)
    assert sums(x).tolist() == [2, 1, 4, 2, 10, 4]
    mean, std = from_sums(sums(x))
    assert mean.tolist() == [2, 2]
    assert std.tolist() == [1, 0]


@given(st.integers(1, 59), st.floats(1e-6, 1e6))
def test_pooled_sums_of_parts_give_the_statistics_of_the_whole_up_to_any_factor(
    cut: Any, factor: Any
) -> None:
    x = _rows()
    whole = StandardScaler().fit(x.astype(np.float64))
    mean, std = from_sums((sums(x[:cut]) + sums(x[cut:])) * factor)
    np.testing.assert_allclose(mean, whole.mean_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(std, whole.scale_, rtol=1e-6)


def test_missing_values_and_constant_columns_become_zero() -> None:
    x = np.array([[1.0, 0.1, np.nan], [3.0, 0.1, np.nan], [np.nan, 0.1, np.nan]], np.float32)
    z = apply(x, *from_sums(sums(np.repeat(x, 1000, axis=0))))
    assert z.dtype == np.float32
    assert z[:, 0].tolist() == [-1, 1, 0]
    assert not z[:, 1:].any()


def test_a_large_mean_keeps_its_variance() -> None:
    x = np.array([[1e5 + 1], [1e5 - 1]] * 500, np.float32)
    assert from_sums(sums(x))[1][0] == pytest.approx(1.0, rel=1e-5)


def test_a_spread_below_a_millionth_of_the_mean_counts_as_constant() -> None:
    x = np.array([[1e7 + 1], [1e7 - 1]] * 500, np.float32)
    assert from_sums(sums(x))[1][0] == 0.0


@pytest.mark.parametrize(
    "total",
    [np.zeros(4), np.array([1.0, np.nan, 1.0]), np.array([-1.0, 0.0, 0.0]), np.array([1.0, 0.0, -1.0])],
)
def test_sums_that_no_rows_could_give_are_refused(total: Any) -> None:
    with pytest.raises(LearnerError):
        from_sums(total)


def test_rows_wait_for_the_federation_and_then_show_through() -> None:
    x = _rows()
    rows = Rows(x, x[:5], "federation")
    held = rows.x_train
    assert not rows.is_ready
    with pytest.raises(LearnerError, match=r"call standardise\(sums\) first"):
        rows.check_ready()
    rows.standardise(rows.statistics() + sums(_rows(seed=1)))
    assert rows.is_ready
    assert held is rows.x_train
    both = np.concatenate([_rows(), _rows(seed=1)])
    np.testing.assert_allclose(held, apply(x, *from_sums(sums(both))), rtol=1e-6)
    np.testing.assert_array_equal(rows.transform(x[:5]), rows.x_test)


def test_rows_of_one_site_are_ready_at_once_and_share_no_sums() -> None:
    rows = Rows(_rows(), _rows()[:5], "site")
    assert rows.is_ready
    assert len(rows.statistics()) == 0
    np.testing.assert_allclose(rows.x_train.sum(axis=0), 0, atol=1e-3)


def test_missing_values_without_standardisation_are_refused_with_the_column() -> None:
    with pytest.raises(ConfigError, match="column pressure has missing values"):
        Rows(_rows(), _rows(), "none", ("pressure", "ratio", "age"))


def test_statistics_of_other_columns_are_refused() -> None:
    rows = Rows(_rows(), _rows(), "federation")
    with pytest.raises(LearnerError, match="expected 3 x 3 columns"):
        rows.standardise(np.ones(6))
    with pytest.raises(LearnerError, match="agreements differ"):
        Rows(np.zeros((2, 1), np.float32), np.zeros((1, 1), np.float32)).standardise(np.ones(3))
    with pytest.raises(LearnerError, match='standardise = "site"'):
        Rows(_rows(), _rows(), "site").standardise(np.ones(9))
