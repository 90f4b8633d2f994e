import math

import pytest
from scipy import stats

from p2pfl.errors import LocalError
from p2pfl.simulations.student import cdf, interval, quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 29, 100, 999])
def test_the_distribution_is_scipys(freedom: int) -> None:
    for t in (-50.0, -2.0, 0.0, 0.3, 1.0, 50.0):
        assert cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), rel=1e-10, abs=1e-14)
    for p in (0.5, 0.6, 0.9, 0.975, 0.995, 0.9999):
        assert quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-10, abs=1e-12)


def test_one_degree_of_freedom_is_cauchys_distribution() -> None:
    assert quantile(0.975, 1) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-12)


def test_the_interval_is_scipys_and_shrinks_to_a_point_where_nothing_varies() -> None:
    values = [0.1, 0.3, 0.2, 0.25, 0.15]
    expected = stats.t.interval(0.95, 4, loc=0.2, scale=stats.sem(values))
    assert interval(values) == pytest.approx(expected, rel=1e-12)
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(LocalError, match="two values"):
        interval([1.0])
    with pytest.raises(LocalError, match="probability"):
        quantile(1.0, 3)
