"""Push-sum: what is conserved, how fast it converges, and what it is safe against."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    hub_edges,
    numerators,
    push_sum_dense,
    push_sum_lossy,
    push_sum_robust,
    sgp_on_quadratic,
)

from p2pfl.errors import AggregationError
from p2pfl.gossip import push_sum
from p2pfl.gossip.mixing import Floats, Vectors, spectral_gap
from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.push_sum import PushSumState
from p2pfl.gossip.topology import Plan, matrix, plan

DIRECTED = TopologyOptions(
    kind="explicit", edges=((0, 1), (0, 2), (1, 2), (2, 3), (3, 0), (3, 4), (4, 0)), directed=True
)
NONE: Floats = np.zeros((1, 0))


def state_of(theta: Vectors, weight: Floats | None = None, statistics: Floats | None = None) -> PushSumState:
    n = len(theta)
    return push_sum.init(
        theta,
        np.ones(n) if weight is None else weight,
        np.zeros((n, 0)) if statistics is None else statistics,
    )


def one_by_one(state: PushSumState) -> list[PushSumState]:
    return [
        PushSumState(x=state.x[i : i + 1], w=state.w[i : i + 1], s=state.s[i : i + 1])
        for i in range(len(state.w))
    ]


def gossip(
    states: list[PushSumState], plan: Plan, is_late: Callable[[], bool] = lambda: False
) -> tuple[list[PushSumState], list[tuple[int, PushSumState]]]:
    """One round, each peer by itself; also gives the late shares with their receivers."""
    kept: list[PushSumState] = []
    inbox: list[list[PushSumState]] = [[] for _ in states]
    under_way: list[tuple[int, PushSumState]] = []
    for i, state in enumerate(states):
        _, parts = plan.fractions(i)
        portions = [push_sum.portion(state, np.array([part])) for part in parts]
        kept.append(push_sum.keep(state, portions))
        for j, share in zip(plan.out_neighbours(i), portions, strict=True):
            if is_late():
                under_way.append((j, share))
            else:
                inbox[j].append(share)
    return [push_sum.merge(state, shares) for state, shares in zip(kept, inbox, strict=True)], under_way


def models(n: int, d: int = 5, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-38, 1e-3, 1.0, 1e30]))
def test_splitting_peers_of_any_degree_gives_the_bits_of_portion_and_keep(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(5, 7)) * 10.0 ** rng.integers(-3, 3, size=(5, 7)) * scale).astype(np.float32)
    state = PushSumState(x=x, w=rng.uniform(1e-9, 3, size=5), s=rng.normal(size=(5, 2)))
    count = rng.integers(1, 40, size=5)
    part, left = push_sum.split(state, 1.0 / (count + 1), count)
    for i, one in enumerate(one_by_one(state)):
        portions = [push_sum.portion(one, np.array([1.0 / (count[i] + 1)]))] * count[i]
        kept = push_sum.keep(one, portions)
        for ours, theirs in ((part, portions[0]), (left, kept)):
            assert ours.x[i].tobytes() == theirs.x[0].tobytes()
            assert ours.w[i] == theirs.w[0]
            assert ours.s[i].tolist() == theirs.s[0].tolist()


def test_a_round_of_three_peers_is_as_worked_out_by_hand() -> None:
    # 0 -> 1, 1 -> 2, 2 -> 0 and 1; values 6, 0, 3: uniform parts 1/2, 1/2, 1/3.
    options = TopologyOptions(kind="explicit", edges=((0, 1), (1, 2), (2, 0), (2, 1)), directed=True)
    states = one_by_one(state_of(np.array([[6], [0], [3]], np.float32)))
    states, _ = gossip(states, plan(options, 0, 3, 0))
    np.testing.assert_allclose([s.x[0, 0] for s in states], [4, 4, 1], rtol=1e-6)
    np.testing.assert_allclose([s.w[0] for s in states], [5 / 6, 4 / 3, 5 / 6], rtol=1e-15)
    np.testing.assert_allclose([push_sum.debias(s)[0, 0] for s in states], [4.8, 3, 1.2], rtol=1e-6)


@pytest.mark.parametrize(
    "options", [DIRECTED, TopologyOptions(), TopologyOptions(kind="one-peer-exponential")]
)
def test_the_kernels_follow_dense_push_sum(options: TopologyOptions) -> None:
    theta = models(5)
    states = one_by_one(state_of(theta))
    for t in range(12):
        states, _ = gossip(states, plan(options, t, 5, 0))
    x, w = push_sum_dense(
        [matrix(plan(options, t, 5, 0)) for t in range(12)], theta.astype(np.float64), np.ones(5)
    )
    np.testing.assert_allclose([s.w[0] for s in states], w, rtol=1e-14)
    np.testing.assert_allclose(
        np.concatenate([push_sum.debias(s) for s in states]), x / w[:, None], atol=1e-6
    )


@given(st.integers(2, 12), st.integers(0, 2**32), st.floats(0, 0.9))
@settings(max_examples=30, deadline=None)
def test_mass_is_conserved_and_models_stay_in_their_hull_when_shares_come_late(
    n: int, seed: int, loss: float
) -> None:
    rng = np.random.default_rng(seed)
    theta, weight = models(n, 4, seed), rng.uniform(1, 50, n)
    states = one_by_one(state_of(theta, weight, rng.random((n, 2))))
    expected, counts = math.fsum(weight), sum(s.s for s in states)
    model = numerators(states)
    under_way: list[tuple[int, PushSumState]] = []
    p = plan(TopologyOptions(kind="erdos-renyi"), 0, n, seed)
    for _ in range(15):
        states, late = gossip(states, p, lambda: rng.random() < loss)
        due, under_way = under_way[::2], under_way[1::2] + late
        for j, share in due:
            states[j] = push_sum.merge(states[j], [share])
        everything = [*states, *(share for _, share in under_way)]
        assert abs(push_sum.mass(everything) / expected - 1) < 1e-12
        np.testing.assert_allclose(sum(s.s for s in everything), counts, rtol=1e-12)
        np.testing.assert_allclose(numerators(everything), model, atol=1e-4 * np.abs(weight).sum())
        z = np.concatenate([push_sum.debias(s) for s in states])
        assert (z <= theta.max(axis=0) + 1e-4).all()
        assert (z >= theta.min(axis=0) - 1e-4).all()


def test_the_error_shrinks_by_the_second_eigenvalue_a_round() -> None:
    C = matrix(plan(DIRECTED, 0, 5, 0))
    rate = 1 - spectral_gap(C)
    x, w = push_sum_dense([C] * 20, models(5).astype(np.float64), np.ones(5))
    mean = models(5).mean(axis=0, dtype=np.float64)
    errors = []
    for _ in range(20):
        x, w = C @ x, C @ w
        errors.append(np.linalg.norm(x / w[:, None] - mean))
    # The eigenvalue is complex, so single rounds wobble around the rate.
    assert (errors[-1] / errors[0]) ** (1 / 19) == pytest.approx(rate, rel=0.03)
    states = one_by_one(state_of(models(5)))
    for _ in range(12):
        states, _ = gossip(states, plan(DIRECTED, 0, 5, 0))
    z = np.concatenate([push_sum.debias(s) for s in states])
    assert np.linalg.norm(z - mean) < 10 * rate**12 * np.linalg.norm(models(5) - mean)


def test_one_peer_exponential_ends_on_the_exact_mean_only_for_a_power_of_two() -> None:
    for n, is_exact in ((16, True), (25, False)):
        theta = models(n)
        states = one_by_one(state_of(theta))
        for t in range(math.ceil(math.log2(n))):
            states, _ = gossip(states, plan(TopologyOptions(kind="one-peer-exponential"), t, n, 0))
        z = np.concatenate([push_sum.debias(s) for s in states])
        assert (np.abs(z - theta.mean(axis=0)).max() < 1e-6) == is_exact


def test_weights_of_sample_counts_end_on_the_sample_weighted_mean() -> None:
    theta, samples = models(8), np.array([1, 2, 3, 50, 100, 7, 20, 1437], np.float64)
    states = one_by_one(state_of(theta, samples))
    for t in range(3):
        states, _ = gossip(states, plan(TopologyOptions(kind="one-peer-exponential"), t, 8, 0))
    expected = samples @ theta / samples.sum()
    for state in states:
        assert state.w[0] == pytest.approx(samples.sum() / 8, rel=1e-15)
        np.testing.assert_allclose(push_sum.debias(state)[0], expected, atol=1e-6)


def test_statistics_become_the_exact_sums_over_all_sites() -> None:
    rng = np.random.default_rng(0)
    samples, sums = rng.integers(1, 500, 8).astype(np.float64), rng.standard_normal((8, 6)) * 1e6
    states = one_by_one(state_of(models(8), samples, sums))
    for t in range(3):
        states, _ = gossip(states, plan(TopologyOptions(kind="one-peer-exponential"), t, 8, 0))
    for state in states:
        np.testing.assert_allclose(push_sum.statistics(state, samples.sum())[0], sums.sum(axis=0), rtol=1e-12)


def test_a_peer_without_weight_waits_for_its_first_share_and_then_has_a_model() -> None:
    theta = models(2)
    joining = state_of(theta[:1], np.zeros(1), np.zeros((1, 1)))
    np.testing.assert_array_equal(push_sum.debias(joining), np.zeros_like(theta[:1]))
    np.testing.assert_array_equal(push_sum.statistics(joining, 4.0), [[0]])
    sponsor = state_of(theta[1:], statistics=np.ones((1, 1)))
    share = push_sum.portion(sponsor, np.array([0.5]))
    joined = push_sum.merge(joining, [share])
    np.testing.assert_allclose(push_sum.debias(joined), theta[1:], rtol=1e-6)
    assert push_sum.mass([joined, push_sum.keep(sponsor, [share])]) == 1


def test_keeping_by_subtraction_leaves_nothing_to_rounding() -> None:
    state = state_of(models(1, 1000), np.array([0.1]), np.array([[0.3]]))
    for parts in range(1, 30):
        portions = [push_sum.portion(state, np.array([1 / (parts + 1)]))] * parts
        kept = push_sum.keep(state, portions)
        assert push_sum.mass([kept, *portions]) == pytest.approx(0.1, rel=2e-16 * (parts + 1))
        np.testing.assert_allclose(numerators([kept, *portions]), state.x[0], rtol=0, atol=2e-8)
        assert push_sum.merge(kept, portions).w[0] == pytest.approx(0.1, rel=1e-15)
    assert push_sum.keep(state, []) is state


def test_a_batch_of_peers_gives_the_bits_of_each_alone() -> None:
    n, p = 16, plan(TopologyOptions(), 0, 16, 0)
    together = state_of(models(n, 300), np.arange(1.0, n + 1), np.ones((n, 2)))
    alone = one_by_one(together)
    delta = models(n, 300, seed=1)
    together = push_sum.local_step(together, delta, np.ones(n))
    alone = [push_sum.local_step(s, delta[i : i + 1], np.ones(1)) for i, s in enumerate(alone)]
    _, parts = p.fractions(0)
    portion = push_sum.portion(together, np.full(n, parts[0]))
    kept = push_sum.keep(together, [portion] * len(parts))
    arriving = []
    for k in range(len(parts)):
        sender = np.array([p.in_neighbours(i)[k] for i in range(n)])
        arriving.append(PushSumState(x=portion.x[sender], w=portion.w[sender], s=portion.s[sender]))
    together = push_sum.merge(kept, arriving)
    alone, _ = gossip(alone, p)
    for i, state in enumerate(alone):
        np.testing.assert_array_equal(state.x[0], together.x[i])
        assert state.w[0] == together.w[i]
        np.testing.assert_array_equal(state.s[0], together.s[i])
        np.testing.assert_array_equal(push_sum.debias(state)[0], push_sum.debias(together)[i])


def test_a_local_step_counts_with_the_starting_weight_until_the_cap() -> None:
    theta, delta = models(3), models(3, seed=1)
    w = np.array([5.0, 2.0, 0.01])
    state = PushSumState(x=theta, w=w, s=np.zeros((3, 0)))
    stepped = push_sum.local_step(state, delta, np.full(3, 4.0))
    np.testing.assert_allclose(stepped.x - theta, np.array([[4.0], [4.0], [0.02]]) * delta, atol=1e-6)
    moved = push_sum.debias(stepped) - push_sum.debias(state)
    assert (np.abs(moved) <= 2 * np.abs(delta) + 1e-4).all()
    np.testing.assert_array_equal(stepped.w, w)


def test_forgetting_the_sample_count_in_the_local_step_divides_every_step_by_it() -> None:
    theta, delta, samples = models(1), models(1, seed=1), np.array([100.0])
    state = state_of(theta, samples)
    right = push_sum.debias(push_sum.local_step(state, delta, samples)) - theta
    wrong = push_sum.debias(push_sum.local_step(state, delta, np.ones(1))) - theta
    np.testing.assert_allclose(right, delta, atol=1e-6)
    np.testing.assert_allclose(wrong, delta / 100, atol=1e-6)


def test_sgp_reaches_the_mean_of_quadratics_on_a_directed_graph() -> None:
    targets = models(5).astype(np.float64)
    z, _ = sgp_on_quadratic(matrix(plan(DIRECTED, 0, 5, 0)), targets, eta=0.002, rounds=5000, cap=None)
    np.testing.assert_allclose(z, np.tile(targets.mean(axis=0), (5, 1)), atol=0.02)


def test_the_raw_step_diverges_on_a_hub_graph_and_the_capped_step_does_not() -> None:
    n, eta, d = 16, 0.1, 5
    options = TopologyOptions(kind="explicit", edges=hub_edges(n), directed=True)
    p = plan(options, 0, n, 0)
    C, targets = matrix(p), models(n, d)
    with np.errstate(all="ignore"):
        raw, w = sgp_on_quadratic(C, targets.astype(np.float64), eta, 300, cap=None)
    assert w.min() < 1e-3
    assert not np.isfinite(raw).all() or np.abs(raw).max() > 1e6

    states = one_by_one(state_of(models(n, d, seed=1)))
    for _ in range(300):
        stepped = []
        for i, s in enumerate(states):
            delta = (eta * (targets[i] - push_sum.debias(s))).astype(np.float32)
            stepped.append(push_sum.local_step(s, delta, np.ones(1)))
        states, _ = gossip(stepped, p)
    z = np.concatenate([push_sum.debias(s) for s in states])
    assert (np.abs(z) <= 2 * np.abs(targets).max()).all()
    assert push_sum.mass(states) == pytest.approx(n, rel=1e-12)
    assert [i for i, s in enumerate(states) if push_sum.alarm(s.w[0], 1.0)]
    # The kernels do what the dense oracle with the same cap does.
    oracle, _ = sgp_on_quadratic(C, targets.astype(np.float64), eta, 300, cap=2.0)
    np.testing.assert_allclose(z, oracle, atol=1e-4)


def test_the_alarm_is_raised_below_a_twentieth_of_the_starting_weight() -> None:
    assert push_sum.alarm(0.049, 1.0)
    assert not push_sum.alarm(0.05, 1.0)
    assert push_sum.alarm(4.9, 100.0)
    assert not push_sum.alarm(0.0, 0.0)


@pytest.mark.parametrize("loss", [0.1, 0.3, 0.5])
def test_lost_messages_drain_naive_push_sum_and_never_running_sums(loss: float) -> None:
    p = plan(TopologyOptions(), 0, 16, 0)
    theta = models(16).astype(np.float64)
    mean = theta.mean(axis=0)
    x, w = push_sum_lossy(p.out_edges, theta, loss, 300, np.random.default_rng(0))
    assert w.sum() < 0.01 * 16
    assert np.linalg.norm(x.sum(axis=0) / w.sum() - mean) > 0.05 * np.linalg.norm(mean)
    robust = push_sum_robust(p.out_edges, theta, loss, 300, np.random.default_rng(0))
    np.testing.assert_allclose(robust.mass(p.out_edges), [*theta.sum(axis=0), 16], atol=1e-9)
    np.testing.assert_allclose(robust.held[:, :-1] / robust.held[:, -1:], np.tile(mean, (16, 1)), atol=1e-9)


def test_shares_resent_until_they_arrive_end_where_running_sums_end() -> None:
    p = plan(TopologyOptions(), 0, 16, 0)
    theta, rng = models(16), np.random.default_rng(0)
    states = one_by_one(state_of(theta))
    under_way: list[tuple[int, PushSumState]] = []
    for _ in range(60):
        states, late = gossip(states, p, lambda: rng.random() < 0.3)
        arrived = [rng.random() >= 0.3 for _ in under_way]
        for (j, share), here in zip(under_way, arrived, strict=True):
            if here:
                states[j] = push_sum.merge(states[j], [share])
        under_way = [entry for entry, here in zip(under_way, arrived, strict=True) if not here] + late
    assert push_sum.mass([*states, *(share for _, share in under_way)]) == pytest.approx(16, rel=1e-14)
    for state in states:
        np.testing.assert_allclose(push_sum.debias(state)[0], theta.mean(axis=0), atol=5e-6)


def test_merging_in_another_order_may_change_the_last_bit_so_the_order_is_the_callers() -> None:
    state = state_of(models(1, 4), np.array([0.1]))
    shares = [state_of(models(1, 4, seed=k), np.array([w])) for k, w in enumerate((0.2, 0.3, 1e-17), start=1)]
    again = push_sum.merge(state, shares)
    np.testing.assert_array_equal(again.x, push_sum.merge(state, shares).x)
    assert again.w[0] == ((0.1 + 0.2) + 0.3) + 1e-17
    assert push_sum.merge(state, shares[::-1]).w[0] == pytest.approx(again.w[0], rel=1e-15)


def test_states_are_values_no_kernel_writes_to_its_inputs() -> None:
    state = state_of(models(2, 50), statistics=np.ones((2, 1)))
    for array in (state.x, state.w, state.s):
        array.flags.writeable = False
    share = push_sum.portion(state, np.full(2, 0.5))
    push_sum.merge(push_sum.keep(push_sum.local_step(state, models(2, 50), np.ones(2)), [share]), [share])
    push_sum.debias(state)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(AggregationError, match="negative or not finite"):
        state_of(models(1), np.array([-1.0]))
    with pytest.raises(AggregationError, match="negative or not finite"):
        state_of(models(1), np.array([np.inf]))
    with pytest.raises(AggregationError, match="statistics of shape"):
        push_sum.init(models(2), np.ones(2), NONE)
    with pytest.raises(AggregationError, match="float32"):
        push_sum.merge(state_of(models(1)), [state_of(models(1, 6))])
    with pytest.raises(AggregationError, match="weights"):
        push_sum.merge(state_of(models(1)), [state_of(models(1), statistics=np.ones((1, 2)))])
