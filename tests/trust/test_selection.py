"""Rules by distance: worked examples, the papers' bounds, and the geometric median beside an optimiser."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from p2pfl.trust import selection
from p2pfl.trust.gram import Floats
from p2pfl.trust.robust import aggregate, weigh

rng_seed = st.integers(0, 10**6)


def squares(points: Floats) -> Floats:
    between: Floats = ((points[:, None] - points) ** 2).sum(axis=2)
    return between


def line(*values: float) -> Floats:
    return np.array(values, np.float64)[:, None]


def test_krum_on_a_line_is_as_written_by_hand() -> None:
    # Of 0, 1, 2 and 10 with f = 1, scores of the 3 nearest, itself among them: 5, 2, 5, 145.
    between = squares(line(0, 1, 2, 10))
    assert selection.krum_order(between, 1)[[0, -1]].tolist() == [1, 3]
    np.testing.assert_array_equal(selection.krum(between, 1), [0, 1, 0, 0])
    np.testing.assert_allclose(selection.multi_krum(between, 1), [1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(selection.multi_krum(between, 1, 1), [0, 1, 0, 0])


def test_nnm_replaces_each_row_by_the_mean_of_its_nearest() -> None:
    mixing = selection.nearest_neighbour_mixing(squares(line(0, 1, 2, 10)), 1)
    np.testing.assert_allclose(mixing @ line(0, 1, 2, 10), line(1, 1, 1, 13 / 3))


def test_buckets_average_their_rows_and_the_last_may_be_smaller() -> None:
    mixing = selection.bucket_mixing(np.array([4, 0, 3, 1, 2]), 2)
    np.testing.assert_allclose(mixing @ line(0, 10, 20, 30, 40), line(20, 20, 20))


def test_bulyan_picks_by_krum_one_after_another() -> None:
    # n = 7, f = 1: five picks, of which the outlier is none.
    points = line(0, 1, 2, 3, 4, 5, 100)
    picked = selection.bulyan_selection(squares(points), 1)
    assert len(picked) == 5
    assert 6 not in picked
    out = aggregate("bulyan", points.astype(np.float32), f=1)
    assert 0 <= out[0] <= 5


def test_an_attacker_that_krum_picks_moves_one_coordinate_less_under_bulyan() -> None:
    x = np.random.default_rng(0).standard_normal((11, 30), dtype=np.float32)
    honest = x[2:].mean(axis=0)
    x[:2] = honest
    x[:2, 7] += 4
    krum, bulyan = (aggregate(rule, x, f=2) for rule in ("krum", "bulyan"))
    assert krum[7] > 3
    assert abs(bulyan[7]) < 1


def median_of(points: Floats) -> Floats:
    result: Floats = selection.geometric_median(squares(points)) @ points
    return result


def test_the_geometric_median_of_regular_figures_is_their_centre() -> None:
    triangle = np.array([[np.cos(t), np.sin(t)] for t in 2 * np.pi * np.arange(3) / 3])
    np.testing.assert_allclose(median_of(triangle), [0, 0], atol=1e-6)
    # Of a convex quadrilateral it is where the diagonals meet.
    kite = np.array([[0.0, 0], [4, 0], [1, 3], [1, -5]])
    np.testing.assert_allclose(median_of(kite), [1, 0], atol=1e-6)


def test_the_geometric_median_is_a_corner_of_120_degrees_or_more() -> None:
    obtuse = np.array([[0.0, 0], [1, 0.2], [-1, 0.2]])
    np.testing.assert_allclose(median_of(obtuse), [0, 0], atol=1e-9)


def test_the_geometric_median_on_a_line_is_the_median() -> None:
    assert median_of(line(0, 1, 5, 30, 31))[0] == pytest.approx(5)
    assert median_of(line(0, 1, 5, 30))[0] == pytest.approx(3)
    assert median_of(line(7, 7, 7, 0, 50))[0] == pytest.approx(7)


@given(rng_seed, st.integers(3, 9), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_no_point_near_the_geometric_median_is_closer_to_all(seed: int, n: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, d)) * rng.choice([1, 100], (n, 1))
    found = median_of(points)

    def total(point: Floats) -> float:
        return float(np.linalg.norm(points - point, axis=1).sum())

    nearby = [found + s * rng.standard_normal(d) for s in (1e-3, 1e-2, 1, 10) for _ in range(20)]
    # On nearly collinear points Weiszfeld crawls, along a valley that is as flat.
    assert total(found) <= min(total(point) for point in (*nearby, *points)) * (1 + 1e-6)


def test_centered_clipping_is_as_written_by_hand() -> None:
    # v = 0 -> (0 + 1) / 2 -> .5 + (-.5 + 1) / 2, with the rows 0 and 3 and tau = 1.
    x = np.array([[0], [3]], np.float32)
    for iterations, expected in ((1, 0.5), (2, 0.75)):
        result = weigh("centered-clipping", x, f=0, anchor=x[0], tau=1.0, iterations=iterations)
        assert result.vector[0] == pytest.approx(expected)
        assert result.weights[1] == pytest.approx(expected / 3)
    # An anchor that is no row is only where v starts.
    out = aggregate("centered-clipping", x, f=0, anchor=np.array([1], np.float32), tau=1.0, iterations=1)
    assert out[0] == pytest.approx(1 + (-1 + 1) / 2)


@given(rng_seed, st.floats(0.01, 100))
@settings(deadline=None)
def test_centered_clipping_moves_at_most_tau_an_iteration(seed: int, tau: float) -> None:
    x = np.random.default_rng(seed).standard_normal((8, 5)).astype(np.float32) * 50
    out = aggregate("centered-clipping", x, f=2, anchor=x[0], tau=tau, iterations=3)
    assert np.linalg.norm(out - x[0]) <= 3 * tau * (1 + 1e-4)


def test_self_centered_clipping_takes_the_radius_of_its_theorem() -> None:
    # w = 1/4 each, b = 1/4: tau^2 = 4 (1/4 (0 + 1 + 4)) = 5, the farthest clipped to it.
    x = np.array([[0], [1], [-2], [100]], np.float32)
    result = weigh("self-centered-clipping", x, f=1, anchor=x[0])
    assert result.vector[0] == pytest.approx((1 - 2 + 5**0.5) / 4, rel=1e-5)
    assert aggregate("self-centered-clipping", x, f=1, anchor=x[0], tau=1.0)[0] == pytest.approx(1 / 4)
    assert aggregate("self-centered-clipping", x, f=0, anchor=x[0])[0] == pytest.approx(99 / 4)


def test_cs_plus_clips_the_farthest_2b_and_gts_drops_the_farthest_b() -> None:
    x = np.array([[0], [1], [-2], [4], [100]], np.float32)
    # The two farthest are clipped to 4.
    assert aggregate("cs-plus", x, f=1, anchor=x[0])[0] == pytest.approx((1 - 2 + 4 + 4) / 5)
    assert aggregate("gts", x, f=1, anchor=x[0])[0] == pytest.approx((1 - 2 + 4) / 5)
    weights = [0.3, 0.1, 0.3, 0.2, 0.1]
    # b is the heaviest in-edge, .3: all of the farthest row and of the next.
    assert aggregate("gts", x, f=1, anchor=x[0], weights=weights)[0] == pytest.approx(0.1 * 1 - 0.3 * 2)
    # Twice b passes the third, too.
    assert aggregate("cs-plus", x, f=1, anchor=x[0], weights=weights)[0] == pytest.approx(
        0.1 * 1 - 0.3 * 2 + 0.2 * 2 + 0.1 * 2
    )


@given(rng_seed, st.integers(2, 8), st.integers(1, 3), st.sampled_from([("cs-plus", 2.0), ("gts", 4.0)]))
@settings(max_examples=100, deadline=None)
def test_the_robust_sums_err_by_no_more_than_rho_b_times_the_spread(
    seed: int, n: int, d: int, rule: tuple[str, float]
) -> None:
    """Gaucher et al. 2025, (b, rho)-robustness: |F - sum over S of w z|^2 <= rho b sum over S of w |z|^2."""
    rng = np.random.default_rng(seed)
    w = rng.dirichlet(np.ones(n))
    z = rng.standard_normal((n, d)) * rng.choice([0.1, 1, 100], (n, 1))
    distances = np.linalg.norm(z, axis=1)
    b = float(rng.uniform(0.05, 0.6))
    robust_sum = selection.clipped_sum if rule[0] == "cs-plus" else selection.trimmed_sum
    out = robust_sum(distances, w, b) @ z
    for size in range(n + 1):
        for honest in itertools.combinations(range(n), size):
            s = list(honest)
            if w.sum() - w[s].sum() > b:
                continue
            error = ((out - w[s] @ z[s]) ** 2).sum()
            assert error <= rule[1] * b * (w[s] @ (z[s] ** 2).sum(axis=1)) + 1e-9


def test_one_byzantine_weight_past_b_breaks_the_robust_sum() -> None:
    w, z = np.full(5, 0.2), line(0, 0.1, -0.1, 1e6, 1e6)
    distances = np.abs(z[:, 0])
    for robust_sum in (selection.clipped_sum, selection.trimmed_sum):
        assert abs(robust_sum(distances, w, 0.4) @ z)[0] < 1
        assert abs(robust_sum(distances, w, 0.19) @ z)[0] > 1e4


def test_monna_averages_the_rows_nearest_the_own() -> None:
    x = np.array([[0], [1], [-2], [4], [100]], np.float32)
    assert aggregate("monna", x, f=2, anchor=x[0])[0] == pytest.approx(-1 / 3)
    assert aggregate("monna", x, f=0.25, anchor=x[3])[0] == pytest.approx(3 / 4)


def test_ubar_keeps_the_near_and_of_these_the_no_worse() -> None:
    x = np.array([[0], [1], [-2], [4], [100]], np.float32)
    losses = [1.0, 0.9, 1.1, 0.5, 0.0]

    def ubar(**more: Any) -> float:
        return float(aggregate("ubar", x, **({"f": 1, "anchor": x[0], "losses": losses} | more))[0])

    # Of the three nearest, 1 and 4 are no worse than the own; half of the own model stays.
    assert ubar() == pytest.approx(0.5 * 2.5)
    assert ubar(alpha=0.0) == pytest.approx(2.5)
    assert ubar(rho=0.5) == pytest.approx(0.5 * 1)
    # None is as good: the best of the near.
    assert ubar(losses=[0.1, 0.9, np.nan, 0.5, 0.0]) == pytest.approx(0.5 * 4)
    assert ubar(losses=[0.1, np.nan, np.nan, np.inf, 0.0]) == pytest.approx(0.5 * 1)


def test_balance_accepts_within_a_part_of_the_own_length_that_shrinks() -> None:
    x = np.array([[10, 0], [12, 0], [10, 4], [30, 0]], np.float32)

    def balance(**more: Any) -> list[float]:
        return [float(value) for value in aggregate("balance", x, f=1, anchor=x[0], **more)]

    # .3 |own| = 3 lets in the first only.
    assert balance() == pytest.approx([11, 0])
    assert balance(gamma=0.5) == pytest.approx([10.5, 1])
    # .5 exp(-1) 10 = 1.8: nobody, so the own model stays.
    assert balance(gamma=0.5, progress=1.0) == [10, 0]


def test_fltrust_takes_directions_like_its_own_at_its_own_length() -> None:
    x = np.array([[2, 0], [0, 5], [-7, 0], [30, 30]], np.float32)
    result = weigh("fltrust", x, f=1, anchor=x[0])
    cosine = 0.5**0.5
    scores = np.array([1, 0, 0, cosine]) / (1 + cosine)
    np.testing.assert_allclose(result.weights, scores, rtol=1e-6)
    expected = scores @ np.array([[2, 0], [0, 0], [0, 0], [2 * cosine, 2 * cosine]])
    np.testing.assert_allclose(result.vector, expected, rtol=1e-5)
    zero = np.zeros(2, np.float32)
    np.testing.assert_array_equal(aggregate("fltrust", [zero, x[1]], f=0, anchor=zero), zero)


def test_the_norm_filter_refuses_three_times_the_median_distance() -> None:
    x = np.array([[0], [1], [-1], [2], [100]], np.float32)
    # The others' median distance is 1.5; 100 is beyond 4.5.
    assert aggregate("norm-filter", x, f=1, anchor=x[0])[0] == pytest.approx(0.5)
    assert aggregate("norm-filter", x, f=1, anchor=x[0], limit=1.0)[0] == pytest.approx(0)


@given(rng_seed, st.integers(4, 12))
@settings(max_examples=60, deadline=None)
def test_nnm_leaves_no_more_variance_than_before_among_the_honest(seed: int, n: int) -> None:
    """Allouah et al. 2023, lemma 1: spread and bias after NNM are at most 8f/(n-f) of the spread before."""
    f = (n - 1) // 2
    assume(f > 0)
    rng = np.random.default_rng(seed)
    x: NDArray[np.float64] = rng.standard_normal((n, 4))
    x[:f] *= 100
    y = selection.nearest_neighbour_mixing(squares(x), f) @ x
    honest = np.arange(f, n)
    spread = ((x[honest] - x[honest].mean(axis=0)) ** 2).sum(axis=1).mean()
    after = ((y[honest] - y[honest].mean(axis=0)) ** 2).sum(axis=1).mean()
    bias = ((y[honest].mean(axis=0) - x[honest].mean(axis=0)) ** 2).sum()
    assert after + bias <= 8 * f / (n - f) * spread + 1e-9
