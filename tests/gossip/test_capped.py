"""Capped shares: what is taken of one, what of its model, and why the cap is the part that is kept."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import AggregationError
from p2pfl.gossip import capped, push_sum, topology
from p2pfl.gossip.mixing import Floats, Kind, Vectors
from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.push_sum import PushSumState


def state(x: object, w: object) -> PushSumState:
    rows, weights = np.array(x, np.float32), np.array(w, np.float64)
    return PushSumState(x=rows, w=weights, s=np.zeros((len(weights), 0)))


def random_states(
    rng: np.random.Generator, n: int, k: int, d: int
) -> tuple[PushSumState, list[PushSumState]]:
    def one() -> PushSumState:
        w = rng.uniform(0.1, 2.0, n)
        x: Vectors = rng.normal(size=(n, d)).astype(np.float32)
        return PushSumState(x=x, w=w, s=rng.normal(size=(n, 1)))

    return one(), [one() for _ in range(k)]


def test_shares_taken_whole_and_not_clipped_are_those_of_push_sum_to_the_bit() -> None:
    own, shares = random_states(np.random.default_rng(0), 3, 4, 50)
    ones = np.ones((3, 4))
    got, expected = capped.absorb(own, shares, ones, np.ones(3), 0 * ones), push_sum.merge(own, shares)
    for name in ("x", "w", "s"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


def test_a_worked_example() -> None:
    # z = 2 with w = 1; a share of weight 1 says z = 10: half is taken, and of the way to it a quarter.
    own, shares = state([[2.0]], [1.0]), [state([[10.0]], [1.0])]
    got = capped.absorb(own, shares, np.array([[0.5]]), np.array([2.0]), np.array([[8.0]]))
    assert got.w[0] == 1.5
    assert got.x[0, 0] == 2.0 + 0.5 * (2.0 + 0.25 * 8.0)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 5), st.integers(1, 30))
def test_a_row_among_others_has_the_bits_that_it_has_alone(seed: int, n: int, k: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    own, shares = random_states(rng, n, k, d)
    taken, gaps, reach = rng.uniform(size=(n, k)), capped.distances(own, shares), capped.radii(own, None)
    together = capped.absorb(own, shares, taken, 0.3 * reach, gaps)
    for i in range(n):
        row = slice(i, i + 1)

        def cut(one: PushSumState, row: slice = row) -> PushSumState:
            return PushSumState(x=one.x[row], w=one.w[row], s=one.s[row])

        mine = [cut(one) for one in shares]
        far = capped.distances(cut(own), mine)
        alone = capped.absorb(cut(own), mine, taken[row], 0.3 * capped.radii(cut(own), None), far)
        np.testing.assert_array_equal(far[0], gaps[i])
        np.testing.assert_array_equal(alone.x[0], together.x[i])
        assert alone.w[0] == together.w[i]


@given(st.integers(0, 2**32), st.floats(0.01, 10.0))
def test_a_clipped_share_moves_the_model_by_no_more_than_its_weight_times_the_radius(
    seed: int, tau: float
) -> None:
    own, shares = random_states(np.random.default_rng(seed), 1, 1, 20)
    shares = [PushSumState(x=shares[0].x * np.float32(1e6), w=shares[0].w, s=shares[0].s)]
    far = capped.distances(own, shares)
    before, w, gap = push_sum.debias(own)[0], float(own.w[0]), float(far[0, 0])
    after = push_sum.debias(capped.absorb(own, shares, np.ones((1, 1)), capped.radii(own, tau), far))[0]
    a = float(shares[0].w[0])
    moved = float(np.linalg.norm(after.astype(np.float64) - before))
    assert moved == pytest.approx(a / (w + a) * min(tau, gap), rel=1e-3, abs=1e-5)


def test_a_weight_as_small_as_may_be_cannot_carry_a_model_beyond_the_radius() -> None:
    own, liar = state([[1.0, 1.0]], [1.0]), state([[0.1, 0.1]], [1e-30])
    far = capped.distances(own, [liar])
    assert far[0, 0] > 1e28
    after = capped.absorb(own, [liar], np.ones((1, 1)), capped.radii(own, None), far)
    np.testing.assert_allclose(push_sum.debias(after), [[1.0, 1.0]], atol=1e-6)


def test_a_model_as_long_as_the_own_one_is_never_clipped_and_zeros_clip_nothing() -> None:
    own = state([[3.0, 4.0], [0.0, 0.0]], [0.5, 1.0])
    np.testing.assert_allclose(capped.radii(own, None), [20.0, math.inf])
    np.testing.assert_array_equal(capped.radii(own, 0.5), [0.5, 0.5])


def test_who_has_no_model_of_its_own_measures_nothing() -> None:
    assert capped.distances(state([[5.0]], [0.0]), [state([[1.0]], [1.0])])[0, 0] == 0.0


def test_parts_that_do_not_fit_the_shares_are_an_error() -> None:
    own, shares = random_states(np.random.default_rng(0), 2, 3, 4)
    with pytest.raises(AggregationError, match=r"parts \(2, 2\)"):
        capped.absorb(own, shares, np.ones((2, 2)), np.ones(2), np.ones((2, 3)))


def test_a_share_is_taken_whole_in_part_or_not_at_all() -> None:
    assert capped.fraction_taken(0.25, 0.25 - 1e-16, 0.25) == 1.0
    assert capped.fraction_taken(0.5, 0.25, 0.25) == 0.5
    assert capped.fraction_taken(1e6, 0.25, 0.25) == 0.25e-6
    assert capped.fraction_taken(0.25, 0.0, 0.25) == 0.0
    assert capped.fraction_taken(0.25, -0.25, 0.25) == 0.0


@given(st.floats(1e-30, 1e12), st.floats(-10.0, 10.0), st.floats(1e-3, 1.0))
def test_never_more_is_taken_than_there_is_room_for(w: float, room: float, credit: float) -> None:
    part = capped.fraction_taken(w, room, credit)
    assert 0.0 <= part <= 1.0
    assert part * w <= max(room, 0.0) * (1 + 1e-12) + 1e-9 * credit


def test_a_debtor_of_two_shares_is_given_no_third() -> None:
    assert capped.may_give(0.25, 0.0, 0.25)
    assert capped.may_give(0.25, 0.25, 0.25)
    assert not capped.may_give(0.25, 0.5, 0.25)
    assert capped.may_give(0.1, 0.3, 0.25)


def _honest_weight(cap: float | None, rounds: int, options: TopologyOptions) -> Floats:
    """The weight that 16 honest of 20 hold together, round by round, while the 4 others give all they may.

    cap: the part of its weight that a receiver takes of each share; None: the part that it keeps.
    """
    n, honest = 20, 16
    plan = topology.plan(options, 0, n, 0)
    W = topology.matrix(plan, Kind.COLUMN)[:honest, :honest]
    liars = np.array([sum(j >= honest for j in plan.in_neighbours(i)) for i in range(honest)])
    kept = np.array([plan.fractions(i)[0] for i in range(honest)])
    step = W + np.diag(liars * (kept if cap is None else cap))
    return np.array([np.linalg.matrix_power(step, t).sum() for t in range(rounds + 1)])


@pytest.mark.parametrize(
    "options", [TopologyOptions(kind="complete"), TopologyOptions(kind="watts-strogatz", degree=6, p=0.0)]
)
def test_the_cap_is_the_part_that_is_kept_because_a_larger_one_lets_in_more_than_goes_out(
    options: TopologyOptions,
) -> None:
    np.testing.assert_allclose(_honest_weight(None, 80, options), 16.0, rtol=1e-12)
    assert _honest_weight(0.5, 80, options)[-1] > 1e6
