"""The door of robust aggregation: every rule, whatever comes in."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from p2pfl.errors import AggregationError, ConfigError
from p2pfl.trust import robust
from p2pfl.trust.gram import Vector
from p2pfl.trust.robust import ANCHORED, RULES, aggregate, check, count_f, largest_f, weigh

NAMES = [
    *RULES,
    *(f"{pre}+{rule}" for pre in robust.PRE for rule in RULES if rule not in ("ubar", "fltrust")),
]
TIED_BY_NNM = {"nnm+krum", "nnm+multi-krum", "nnm+bulyan", "nnm+meamed"}
BIG = np.float32(3e38)


def arguments(rule: str, x: NDArray[np.float32], own: int = 0) -> dict[str, Any]:
    """What `rule` needs beside rows and f: row `own` as the anchor, and ubar's losses."""
    more: dict[str, Any] = {"anchor": x[own]} if rule.rpartition("+")[2] in ANCHORED else {}
    return more | ({"losses": np.arange(len(x), dtype=float)} if rule == "ubar" else {})


def rows(seed: int, n: int, d: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


def exact(x: NDArray[np.float32]) -> NDArray[np.float64]:
    return x.astype(np.float64)


@pytest.mark.parametrize("rule", NAMES)
def test_identical_rows_give_themselves(rule: str) -> None:
    x = np.tile(rows(1, 1, 37), (7, 1))
    result = weigh(rule, x, f=2, **arguments(rule, x))
    np.testing.assert_allclose(result.vector, x[0], rtol=1e-6)
    assert result.weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(result.distances, np.zeros(7), atol=1e-5)


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize(("n", "d"), [(1, 5), (2, 3), (3, 1), (4, 0), (1, 0)])
def test_few_rows_and_few_coordinates_are_no_special_case(rule: str, n: int, d: int) -> None:
    x = rows(2, n, d)
    for f in (0, 1, n):
        result = weigh(rule, x, f=f, **arguments(rule, x))
        assert result.vector.shape == (d,)
        assert result.vector.dtype == np.float32
        assert np.isfinite(result.vector).all()
        assert result.weights.sum() == pytest.approx(1)
        if n == 1:
            np.testing.assert_array_equal(result.vector, x[0])


@pytest.mark.parametrize("rule", NAMES)
def test_rows_that_are_not_finite_weigh_nothing_and_use_up_f(rule: str) -> None:
    x = rows(3, 11, 300)
    x[2, 5], x[7, :], x[8, 0] = np.nan, np.inf, -np.inf
    result = weigh(rule, x, f=4, **arguments(rule, x))
    assert result.bad == (2, 7, 8)
    np.testing.assert_array_equal(result.weights[[2, 7, 8]], 0)
    assert np.isinf(result.distances[[2, 7, 8]]).all()
    good = np.delete(x, [2, 7, 8], axis=0)
    more = arguments(rule, good)
    if "losses" in more:
        more["losses"] = np.delete(np.arange(11.0), [2, 7, 8])
    if rule.rpartition("+")[2] in ("gts", "cs-plus", "self-centered-clipping"):
        # What the bad rows would have weighed stays with the receiver.
        weights = np.full(8, 1 / 11)
        more["weights"] = weights
    np.testing.assert_allclose(result.vector, aggregate(rule, good, f=1, **more), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize("value", [BIG, -BIG, 1e25])
def test_a_huge_row_never_makes_the_result_infinite(rule: str, value: float) -> None:
    x = rows(4, 9, 200)
    x[3] = value
    x[5] = -value
    result = weigh(rule, x, f=2, **arguments(rule, x))
    assert np.isfinite(result.vector).all()
    assert result.bad == ()
    assert np.isfinite(result.distances).all()
    if rule.rpartition("+")[2] not in ("mean", "norm-filter", "centered-clipping"):
        assert np.abs(result.vector).max() < 1e30


@pytest.mark.parametrize("rule", RULES)
def test_when_all_neighbours_are_bad_the_own_model_is_left(rule: str) -> None:
    x = np.full((4, 6), np.nan, np.float32)
    x[0] = np.arange(6)
    result = weigh(rule, x, f=1, anchor=x[0], **({"losses": np.zeros(4)} if rule == "ubar" else {}))
    np.testing.assert_array_equal(result.vector, x[0])
    assert result.is_bound_broken


def test_no_finite_row_gives_the_anchor_and_without_one_nothing_finite() -> None:
    x = np.full((3, 2), np.nan, np.float32)
    own = np.ones(2, np.float32)
    np.testing.assert_array_equal(weigh("monna", x, f=1, anchor=own).vector, own)
    nothing = weigh("trimmed-mean", x, f=1)
    assert np.isnan(nothing.vector).all()
    assert nothing.is_bound_broken
    assert nothing.bad == (0, 1, 2)
    np.testing.assert_array_equal(aggregate("gts", [], f=0.2, anchor=own), own)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(3, 12), st.integers(1, 40), st.sampled_from(NAMES))
@settings(max_examples=300, deadline=None)
def test_the_order_of_the_rows_does_not_matter(seed: int, n: int, d: int, rule: str) -> None:
    # Buckets go by the order; NNM makes groups of equal rows, between which these have nothing to choose by.
    assume("bucketing" not in rule and rule not in TIED_BY_NNM)
    x = rows(seed, n, d)
    order = np.random.default_rng(seed).permutation(n)
    own = int(np.flatnonzero(order == 0)[0])
    f = (n - 1) // 3
    first = weigh(rule, x, f=f, **arguments(rule, x))
    more = arguments(rule, x[order], own)
    if "losses" in more:
        more["losses"] = order.astype(float)
    second = weigh(rule, x[order], f=f, **more)
    np.testing.assert_allclose(second.vector, first.vector, rtol=1e-4, atol=1e-4)
    if not rule.startswith("nnm+"):
        # Mixes of the same rows are equal but for rounding, which decides which of them lies in the window.
        np.testing.assert_allclose(second.weights, first.weights[order], atol=1e-4)


def worst_ratio(rule: str, x: NDArray[np.float32], f: int, **more: Any) -> float:
    """The least kappa with which `rule` would be (f, kappa)-robust on these rows."""
    out = exact(aggregate(rule, x, f=f, **more))
    worst = 0.0
    for honest in itertools.combinations(range(len(x)), len(x) - f):
        s = exact(x[list(honest)])
        spread = ((s - s.mean(axis=0)) ** 2).sum(axis=1).mean()
        worst = max(worst, float(((out - s.mean(axis=0)) ** 2).sum() / max(spread, 1e-9)))
    return worst


def kappa(rule: str, n: int, f: int) -> float:
    """Allouah et al. 2023, table 1, and lemma 1 for what NNM makes of it."""
    ratio = f / (n - 2 * f)
    match rule:
        case "trimmed-mean":
            return 6 * ratio * (1 + ratio)
        case "krum":
            return 6 * (1 + ratio)
        case "coordinate-median" | "geometric-median":
            return 4 * (1 + ratio) ** 2
    assert rule.startswith("nnm+")
    return 8 * f / (n - f) * (kappa(rule[4:], n, f) + 1)


PROVED = ["trimmed-mean", "krum", "coordinate-median", "geometric-median"]


@given(st.integers(0, 10**6), st.integers(3, 8), st.integers(1, 4), st.sampled_from([1.0, 3.0, 1e3]))
@pytest.mark.parametrize("rule", [*PROVED, *(f"nnm+{rule}" for rule in PROVED)])
@settings(max_examples=25, deadline=None)
def test_the_error_is_within_the_kappa_that_is_proved(
    rule: str, seed: int, n: int, d: int, far: float
) -> None:
    f = largest_f(rule, n)
    x = rows(seed, n, d)
    x[:f] += far
    assert worst_ratio(rule, x, f) <= kappa(rule, n, f) + 1e-3


@pytest.mark.parametrize(
    "rule", [*PROVED, "meamed", "multi-krum", "nnm+trimmed-mean", "monna", "gts", "cs-plus"]
)
def test_at_the_bound_a_rule_holds_and_one_more_byzantine_row_moves_it_anywhere(rule: str) -> None:
    n, d = 13, 20
    f = largest_f(rule, n)
    x = rows(5, n, d)
    for byzantine, holds in ((f, True), (n // 2 + 1, False)):
        poisoned = x.copy()
        poisoned[n - byzantine :] = 1e4
        more: dict[str, Any] = arguments(rule, poisoned)
        result = weigh(rule, poisoned, f=f if holds else byzantine, **more)
        assert result.is_bound_broken is not holds
        if rule not in ("monna", "gts", "cs-plus"):
            # Rules around the own model stay near it whatever comes; the others go with the majority.
            assert bool(np.abs(result.vector).max() < 10) is holds


def test_the_undefended_mean_is_moved_by_one() -> None:
    x = rows(6, 9, 3)
    x[4] = 1e6
    result = weigh("mean", x, f=1)
    assert np.abs(result.vector).max() > 1e5
    assert result.is_bound_broken


def test_around_an_own_model_a_third_is_the_bound_of_every_rule() -> None:
    x = rows(7, 11, 4)
    assert not weigh("nnm+trimmed-mean", x, f=4).is_bound_broken
    assert weigh("nnm+trimmed-mean", x, f=4, anchor=x[0]).is_bound_broken
    assert not weigh("nnm+trimmed-mean", x, f=3, anchor=x[0]).is_bound_broken
    assert not weigh("gts", x[:9], f=2, anchor=x[0]).is_bound_broken


@pytest.mark.parametrize(
    ("rule", "n", "f"),
    [
        ("trimmed-mean", 5, 2),
        ("trimmed-mean", 4, 1),
        ("bulyan", 7, 1),
        ("bulyan", 6, 0),
        ("monna", 7, 2),
        ("monna", 9, 2),
        ("mean", 9, 0),
        ("nnm+mean", 9, 0),
        ("bucketing+trimmed-mean", 10, 2),
        ("bulyan", 2, -1),
    ],
)
def test_the_largest_f_of_a_rule_is_that_of_its_paper(rule: str, n: int, f: int) -> None:
    assert largest_f(rule, n) == f


def test_f_is_a_number_of_rows_or_a_fraction_of_the_others() -> None:
    assert [count_f(f, 11) for f in (0, 3, 0.0, 0.2, 0.21, 0.05)] == [0, 3, 0, 2, 3, 1]
    assert count_f(0.1, 31) == 3
    for wrong in (-1, 0.5, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="f = "):
            count_f(wrong, 11)


@pytest.mark.parametrize("rule", ["average", "nnm+", "+mean", "nnm+nnm+mean", "mean+nnm", "nnm+ubar", ""])
def test_a_name_that_is_no_rule_is_refused_with_the_names_there_are(rule: str) -> None:
    with pytest.raises(ConfigError, match="coordinate-median, trimmed-mean"):
        check(rule)


def test_a_parameter_that_does_not_exist_or_is_out_of_range_is_refused() -> None:
    check("nnm+balance", gamma=0.5, progress=1.0)
    with pytest.raises(ConfigError, match="it takes: alpha, gamma, kappa, progress"):
        check("balance", tau=1.0)
    with pytest.raises(ConfigError, match="it takes: none"):
        check("krum", m=2)
    with pytest.raises(ConfigError, match=r"alpha = 2 .* between 0 and 1"):
        check("ubar", alpha=2)
    with pytest.raises(ConfigError, match="f = "):
        check("krum", 5, 0.7)


def test_what_the_caller_gets_wrong_raises() -> None:
    x = rows(8, 4, 3)
    bad: Vector = np.full(3, np.nan, np.float32)
    calls: dict[str, Callable[[], object]] = {
        "no row and no anchor": lambda: aggregate("krum", [], f=0),
        "needs an anchor": lambda: aggregate("monna", x, f=1),
        "anchor.* is not finite": lambda: aggregate("monna", x, f=1, anchor=bad),
        r"shape \(2,\)": lambda: aggregate("mean", [x[0], x[1, :2]], f=0),
        "float64": lambda: aggregate("mean", [x[0].astype(np.float64)], f=0),
        r"shape \(\) float32": lambda: aggregate("mean", x[0], f=0),
        "weights of shape": lambda: aggregate("gts", x, f=1, anchor=x[0], weights=[0.5, 0.5]),
        "0 losses for 4 rows": lambda: aggregate("ubar", x, f=1, anchor=x[0]),
        "anchor's own": lambda: aggregate("ubar", x[1:], f=1, anchor=x[0], losses=[1, 2, 3]),
    }
    for message, call in calls.items():
        with pytest.raises(AggregationError, match=message):
            call()


def test_the_rows_are_left_as_they_are_and_the_result_is_new() -> None:
    for rule in NAMES:
        x = rows(9, 7, 50)
        before = x.copy()
        out = aggregate(rule, x, f=2, **arguments(rule, x))
        out += 1
        np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("rule", NAMES)
def test_the_weights_say_where_the_vector_came_from(rule: str) -> None:
    name = rule.rpartition("+")[2]
    x = rows(10, 11, 400)
    result = weigh(rule, x, f=3, **arguments(rule, x))
    np.testing.assert_array_equal(result.vector, aggregate(rule, x, f=3, **arguments(rule, x)))
    assert result.weights.min() >= 0
    assert result.weights.sum() == pytest.approx(1)
    combination = result.weights @ exact(x)
    if name not in ("coordinate-median", "trimmed-mean", "meamed", "bulyan", "fltrust"):
        np.testing.assert_allclose(result.vector, combination, atol=1e-5)
    point = x[0] if "anchor" in arguments(rule, x) else result.vector
    np.testing.assert_allclose(
        result.distances, np.linalg.norm(exact(x) - exact(point), axis=1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("offset", [1e3, 1e6])
@pytest.mark.parametrize("rule", NAMES)
def test_a_common_offset_changes_nothing_but_the_resolution(rule: str, offset: float) -> None:
    if rule.rpartition("+")[2] in ("fltrust", "balance"):
        return  # these go by the length of the models, too
    # On a grid that float32 holds at the offset, so that the shifted rows have the same differences.
    x = (np.round(rows(11, 9, 700) * 16) / 16).astype(np.float32)
    more = arguments(rule, x)
    shifted = x + np.float32(offset)
    at_zero = weigh(rule, x, f=2, **more)
    far = weigh(rule, shifted, f=2, **(more | arguments(rule, shifted)))
    np.testing.assert_allclose(far.weights, at_zero.weights, atol=1e-6)
    np.testing.assert_allclose(far.vector - np.float32(offset), at_zero.vector, atol=offset * 5e-7 + 1e-6)
