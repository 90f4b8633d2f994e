import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import AggregationError, ConfigError, StoreError
from p2pfl.trust.privacy import (
    ORDERS,
    Account,
    clip,
    decode,
    encode,
    epsilon_of,
    noisy,
    normals,
    renyi,
    spend,
)

# Opacus 1.6.0, RDPAccountant: `a.history = [(sigma, q, steps)]; a.get_epsilon(1e-5)`.
OPACUS = [
    (1.1, 0.01, 1000, 1.7117700912203435),
    (1.1, 1.0, 10, 16.856677599575104),
    (0.5, 0.6, 10, 37.782642602382744),
    (4.0, 0.02, 5000, 1.516164181505065),
    (0.8, 0.1, 300, 21.230768420730225),
]


@pytest.mark.parametrize(("sigma", "q", "steps", "epsilon"), OPACUS)
def test_epsilon_is_the_one_that_opacus_finds(sigma: float, q: float, steps: int, epsilon: float) -> None:
    assert epsilon_of(spend(Account(), sigma=sigma, q=q, steps=steps), 1e-5) == pytest.approx(
        epsilon, abs=1e-3
    )


def test_opacus_itself_agrees_where_it_is_installed() -> None:
    accountants = pytest.importorskip("opacus.accountants", reason="the extra `dp` is not installed")
    theirs = accountants.RDPAccountant()
    theirs.history = [(1.3, 0.05, 200), (0.9, 0.01, 50)]
    ours = spend(spend(Account(), sigma=1.3, q=0.05, steps=200), sigma=0.9, q=0.01, steps=50)
    assert epsilon_of(ours, 1e-6) == pytest.approx(theirs.get_epsilon(1e-6), abs=1e-3)


def test_the_whole_data_set_has_the_divergence_of_the_gaussian_mechanism() -> None:
    assert renyi(2.0, 1.0, (2.0, 10.0)) == (2 / 8, 10 / 8)


def test_at_order_two_the_sampled_mechanism_has_its_closed_form() -> None:
    # E[(1 - q + q e^{(2x - 1) / 2 sigma^2})^2] = 1 + q^2 (e^{1 / sigma^2} - 1)
    for sigma, q in ((1.0, 0.1), (0.7, 0.5), (5.0, 0.001)):
        (found,) = renyi(sigma, q, (2.0,))
        assert found == pytest.approx(math.log1p(q**2 * math.expm1(1 / sigma**2)), rel=1e-9)


@pytest.mark.slow
@given(sigma=st.floats(0.3, 20), q=st.floats(1e-4, 1.0))
@settings(max_examples=60, deadline=None)
def test_divergences_are_finite_rise_with_the_order_and_never_beat_the_whole_data_set(
    sigma: float, q: float
) -> None:
    found = renyi(sigma, q)
    whole = renyi(sigma, 1.0)
    assert all(math.isfinite(r) for r in found)
    assert all(a <= b * (1 + 1e-6) + 1e-9 for a, b in itertools.pairwise(found))
    assert all(r <= w * (1 + 1e-6) + 1e-9 for r, w in zip(found, whole, strict=True))


def test_fractional_and_whole_orders_lie_on_one_curve() -> None:
    low, middle, high = renyi(1.0, 0.1, (3.0, 3.0 + 1e-6, 3.1))
    assert low == pytest.approx(middle, rel=1e-4)
    assert middle < high


def test_spending_adds_up_in_any_order_and_over_runs() -> None:
    first = spend(spend(Account(), sigma=1.0, q=0.1, steps=5), sigma=2.0)
    second = spend(spend(spend(Account(), sigma=2.0), sigma=1.0, q=0.1, steps=2), sigma=1.0, q=0.1, steps=3)
    assert epsilon_of(first, 1e-5) == pytest.approx(epsilon_of(second, 1e-5), rel=1e-12)
    assert len(first.spent) == len(second.spent) == 2
    assert spend(first, sigma=3.0, steps=0) == first
    assert epsilon_of(spend(first, sigma=2.0), 1e-5) > epsilon_of(first, 1e-5)


def test_nothing_released_costs_nothing() -> None:
    assert epsilon_of(Account(), 1e-5) == 0.0


@pytest.mark.parametrize(("sigma", "q"), [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, 1.1)])
def test_a_mechanism_that_protects_nothing_is_refused(sigma: float, q: float) -> None:
    with pytest.raises(ConfigError):
        spend(Account(), sigma=sigma, q=q)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_delta_is_a_probability(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        epsilon_of(Account(), delta)


def test_an_update_is_shortened_to_the_bound_and_keeps_its_direction() -> None:
    assert clip(np.array([3.0, 4.0], np.float32), 1.0) == pytest.approx([0.6, 0.8])
    short = np.array([0.1, 0.2], np.float32)
    assert clip(short, 1.0) is short
    huge = clip(np.full(3, 3e38, np.float32), 2.0)
    assert float(np.linalg.norm(huge)) == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_cannot_be_clipped(bad: float) -> None:
    with pytest.raises(AggregationError, match="finite"):
        clip(np.array([bad, 1.0], np.float32), 1.0)


def test_noise_has_the_stated_deviation_and_the_mean_of_the_clipped_update() -> None:
    delta = np.full(40_000, 10.0, np.float32)
    found = noisy(delta, bound=2.0, sigma=1.5, key=b"secret")
    assert float(found.std()) == pytest.approx(3.0, rel=0.02)
    assert float(found.mean()) == pytest.approx(2.0 / 200, abs=0.05)


def test_more_orders_than_the_last_never_decide_for_usual_settings() -> None:
    # The least is found inside the range of orders, not at its end, for the settings of OPACUS.
    for sigma, q, steps, _ in OPACUS:
        curve = [
            steps * r - (math.log(1e-5) + math.log(a)) / (a - 1) + math.log1p(-1 / a)
            for a, r in zip(ORDERS, renyi(sigma, q), strict=True)
        ]
        assert 0 < curve.index(min(curve)) < len(ORDERS) - 1


def test_normal_numbers_have_the_normal_moments_and_follow_from_the_key_alone() -> None:
    z = normals(b"key", 200_001)
    assert z.shape == (200_001,)
    assert [float(np.mean(z**k)) for k in (1, 2, 3, 4)] == pytest.approx([0, 1, 0, 3], abs=0.06)
    assert float(np.mean(np.abs(z) < 1.96)) == pytest.approx(0.95, abs=0.003)
    assert np.array_equal(z, normals(b"key", 200_001))
    assert abs(float(np.corrcoef(z, normals(b"kez", 200_001))[0, 1])) < 0.01
    half = z.size // 2
    assert abs(float(np.corrcoef(z[:half], z[half : 2 * half])[0, 1])) < 0.015


def test_blocks_of_many_numbers_are_drawn_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pfl.trust.privacy._PAIRS", 8)
    z = normals(b"key", 53)
    assert len(set(z.tolist())) == 53


def test_an_account_comes_back_from_its_bytes_and_others_do_not() -> None:
    account = spend(spend(Account(data_set="rows ab"), sigma=1.0), sigma=2.0, q=0.1, steps=7)
    assert decode(encode(account)) == account
    with pytest.raises(StoreError, match="privacy account"):
        decode(encode(account)[:-1])
