import math

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.trust.beta import cdf, quantile

SHAPES = st.floats(0.3, 500.0)
INSIDE = st.floats(0.001, 0.999)


@given(INSIDE, SHAPES, SHAPES)
def test_it_agrees_with_scipy(p: float, a: float, b: float) -> None:
    assert quantile(p, a, b) == pytest.approx(scipy.stats.beta.ppf(p, a, b), abs=1e-11)
    assert cdf(p, a, b) == pytest.approx(scipy.stats.beta.cdf(p, a, b), abs=1e-11)


@given(INSIDE, st.floats(0.5, 50.0))
def test_with_one_parameter_one_the_quantile_is_a_power(p: float, a: float) -> None:
    assert quantile(p, a, 1.0) == pytest.approx(p ** (1 / a), abs=1e-12)
    assert quantile(p, 1.0, a) == pytest.approx(-math.expm1(math.log1p(-p) / a), abs=1e-12)


@given(INSIDE, st.floats(1.0, 500.0), st.floats(1.0, 500.0))
def test_the_quantile_undoes_the_distribution(p: float, a: float, b: float) -> None:
    # With parameters below 1 the density has no bound, and one bit of x is many of its probability.
    assert cdf(quantile(p, a, b), a, b) == pytest.approx(p, abs=1e-9)


@given(INSIDE, SHAPES, SHAPES)
def test_more_good_evidence_raises_it_and_more_bad_lowers_it(p: float, a: float, b: float) -> None:
    assert quantile(p, a + 1, b) >= quantile(p, a, b) >= quantile(p, a, b + 1)


@pytest.mark.parametrize("x", [-1.0, 0.0, 1.0, 2.0])
def test_beyond_the_interval_the_distribution_is_flat(x: float) -> None:
    assert cdf(x, 2.0, 3.0) == (1.0 if x >= 1 else 0.0)
