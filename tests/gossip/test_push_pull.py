"""Gradient tracking: what is conserved, where it ends, and what it is and is not safe against."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import hub_edges, push_pull_on_quadratic, sgp_on_quadratic

from p2pfl.errors import AggregationError
from p2pfl.gossip import push_pull, push_sum
from p2pfl.gossip.mixing import Floats, Vectors
from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.push_pull import PushPullState
from p2pfl.gossip.push_sum import PushSumState
from p2pfl.gossip.topology import Plan, matrix, plan

DIRECTED = TopologyOptions(
    kind="explicit", edges=((0, 1), (0, 2), (1, 2), (2, 3), (3, 0), (3, 4), (4, 0)), directed=True
)
HUB = TopologyOptions(kind="explicit", edges=hub_edges(16), directed=True)
OWN = np.zeros(1, bool)


def peers_of(theta: Vectors) -> list[PushPullState]:
    return [push_pull.init(theta[i : i + 1], np.ones(1), np.zeros((1, 0))) for i in range(len(theta))]


def exchange(
    states: list[PushPullState], plan: Plan, is_late: Callable[[], bool] = lambda: False
) -> tuple[list[PushPullState], list[tuple[int, PushSumState]]]:
    """Split, merge and pull; also gives the late shares with their receivers.  A late model is not pulled."""
    kept: list[PushSumState] = []
    inbox: list[list[tuple[Vectors, PushSumState]]] = [[] for _ in states]
    under_way: list[tuple[int, PushSumState]] = []
    for i, state in enumerate(states):
        parts = [push_sum.portion(state.pushed, np.array([part])) for part in plan.fractions(i)[1]]
        kept.append(push_sum.keep(state.pushed, parts))
        for j, share in zip(plan.out_neighbours(i), parts, strict=True):
            if is_late():
                under_way.append((j, share))
            else:
                inbox[j].append((state.x, share))
    return [
        PushPullState(
            x=push_pull.pull(state.x, [x for x, _ in came], OWN),
            g=state.g,
            pushed=push_sum.merge(mine, [share for _, share in came]),
        )
        for state, mine, came in zip(states, kept, inbox, strict=True)
    ], under_way


def quadratic(n: int, d: int = 4, seed: int = 0) -> tuple[Floats, Vectors, Vectors]:
    """Curvatures from 1/2 to 2, targets, and the optimum of the sum."""
    rng = np.random.default_rng(seed)
    curvature, targets = rng.uniform(0.5, 2, n), rng.standard_normal((n, d), dtype=np.float32)
    return curvature, targets, (curvature @ targets / curvature.sum()).astype(np.float32)


def gradients(states: list[PushPullState], curvature: Floats, targets: Vectors, eta: float) -> list[Vectors]:
    return [
        (eta * curvature[i] * (state.x - targets[i])).astype(np.float32) for i, state in enumerate(states)
    ]


def stepped(
    states: list[PushPullState], curvature: Floats, targets: Vectors, eta: float
) -> list[PushPullState]:
    moves = gradients(states, curvature, targets, eta)
    return [push_pull.step(state, g) for state, g in zip(states, moves, strict=True)]


def distance(states: list[PushPullState], optimum: Vectors) -> float:
    return float(max(np.abs(state.x[0] - optimum).max() for state in states))


def discord(states: list[PushPullState], under_way: list[tuple[int, PushSumState]]) -> float:
    """The largest part of sum(y) - sum(g)."""
    y = sum(s.pushed.x.astype(np.float64) for s in states) + sum(share.x for _, share in under_way)
    return float(np.abs(y - sum(s.g.astype(np.float64) for s in states)).max())


def rows(plan: Plan) -> Floats:
    """R of `pull`: uniform over a peer and those it hears."""
    heard = (matrix(plan) > 0).astype(np.float64)
    return np.asarray(heard / heard.sum(axis=1, keepdims=True))


def test_two_rounds_of_two_peers_are_as_worked_out_by_hand() -> None:
    # Gradients (2, 0), then (1, 1); 0 and 1 exchange: halves of y, means of x.
    states = peers_of(np.array([[4], [0]], np.float32))
    pair = plan(TopologyOptions(kind="complete"), 0, 2, 0)
    for g in ((2, 0), (1, 1)):
        states = [push_pull.step(s, np.array([[v]], np.float32)) for s, v in zip(states, g, strict=True)]
        states, _ = exchange(states, pair)
    # y: (2, 0) -> (1, 1) -> (0, 2) -> (1, 1);  x: (2, 0) -> (1, 1) -> (1, -1) -> (0, 0).
    assert [float(s.pushed.x[0, 0]) for s in states] == [1, 1]
    assert [float(s.x[0, 0]) for s in states] == [0, 0]


@pytest.mark.parametrize("options", [DIRECTED, TopologyOptions(kind="exponential")])
def test_the_kernels_follow_dense_push_pull(options: TopologyOptions) -> None:
    curvature, targets, _ = quadratic(5)
    p = plan(options, 0, 5, 0)
    states = peers_of(np.zeros_like(targets))
    for _ in range(40):
        states, _ = exchange(stepped(states, curvature, targets, 0.1), p)
    expected = push_pull_on_quadratic(rows(p), matrix(p), curvature, targets.astype(np.float64), 0.1, 40)
    np.testing.assert_allclose(np.concatenate([s.x for s in states]), expected[-1], atol=1e-5)


def test_it_ends_on_the_exact_optimum_at_a_linear_rate_where_push_sum_ends_beside_it() -> None:
    curvature, targets, optimum = quadratic(5)
    p = plan(DIRECTED, 0, 5, 0)
    path = push_pull_on_quadratic(rows(p), matrix(p), curvature, targets.astype(np.float64), 0.1, 400)
    errors = np.abs(path - curvature @ targets.astype(np.float64) / curvature.sum()).max(axis=(1, 2))
    # Every 40 rounds take away the same part of the error, down to rounding.
    ratios = errors[80:281:40] / errors[40:241:40]
    assert ratios.max() < 0.2
    assert ratios.max() < 2 * ratios.min()
    assert errors[-1] < 1e-10

    states = peers_of(np.zeros_like(targets))
    for _ in range(300):
        states, _ = exchange(stepped(states, curvature, targets, 0.1), p)
    assert distance(states, optimum) < 1e-5
    scaled = targets.astype(np.float64)
    z, _ = sgp_on_quadratic(matrix(p), scaled, 0.1, 300, cap=2.0)
    assert np.abs(z - scaled.mean(axis=0)).max() > 0.05


@given(st.integers(2, 10), st.integers(0, 2**32), st.floats(0, 0.9))
@settings(max_examples=30, deadline=None)
def test_the_trackers_hold_the_sum_of_gradients_when_shares_come_late(n: int, seed: int, loss: float) -> None:
    rng = np.random.default_rng(seed)
    curvature, targets, _ = quadratic(n, 4, seed)
    states = peers_of(np.zeros_like(targets))
    under_way: list[tuple[int, PushSumState]] = []
    p = plan(TopologyOptions(kind="erdos-renyi"), 0, n, seed)
    for _ in range(20):
        # Not every peer trains in every round.
        moved = stepped(states, curvature, targets, 0.05)
        states = [new if rng.random() < 0.8 else old for new, old in zip(moved, states, strict=True)]
        states, late = exchange(states, p, lambda: rng.random() < loss)
        order = rng.permutation(len(under_way))
        due, under_way = [under_way[k] for k in order[::2]], [under_way[k] for k in order[1::2]] + late
        for j, share in due:
            states[j] = replace(states[j], pushed=push_sum.merge(states[j].pushed, [share]))
        assert discord(states, under_way) < 1e-5
    held = [*(s.pushed for s in states), *(share for _, share in under_way)]
    assert push_sum.mass(held) == pytest.approx(n, rel=1e-12)


@pytest.mark.slow
def test_late_shares_cost_time_and_lost_trackers_the_optimum() -> None:
    curvature, targets, optimum = quadratic(5)
    p = plan(DIRECTED, 0, 5, 0)
    for is_lost in (False, True):
        coins = iter(np.random.default_rng(0).random(10**5))
        states = peers_of(np.zeros_like(targets))
        under_way: list[tuple[int, PushSumState]] = []
        for _ in range(600):
            moved = stepped(states, curvature, targets, 0.05)
            states, late = exchange(moved, p, map((0.2).__gt__, coins).__next__)
            if not is_lost:
                for j, share in under_way:
                    states[j] = replace(states[j], pushed=push_sum.merge(states[j].pushed, [share]))
                under_way = late
        assert (distance(states, optimum) < 1e-4) != is_lost
        assert (discord(states, under_way) < 1e-5) != is_lost


def test_a_restart_makes_good_for_a_tracker_that_was_lost() -> None:
    curvature, targets, optimum = quadratic(5)
    p = plan(DIRECTED, 0, 5, 0)
    states = peers_of(np.zeros_like(targets))
    for t in range(600):
        if t == 100:
            states[2] = push_pull.init(states[2].x, np.ones(1), np.zeros((1, 0)))
            assert discord(states, []) > 1e-3
        if t == 105:
            states = [push_pull.restart(state) for state in states]
            assert discord(states, []) == 0
        states, _ = exchange(stepped(states, curvature, targets, 0.05), p)
    assert distance(states, optimum) < 1e-4


def test_too_large_a_step_diverges() -> None:
    curvature, targets, optimum = quadratic(5)
    p = plan(DIRECTED, 0, 5, 0)
    states = peers_of(np.zeros_like(targets))
    for _ in range(60):
        states, _ = exchange(stepped(states, curvature, targets, 2.0), p)
    assert distance(states, optimum) > 1e3


def test_on_a_hub_graph_push_pull_stays_good_where_push_sum_fails() -> None:
    eta = 0.1
    _, targets, _ = quadratic(16)
    exact = targets.astype(np.float64)
    optimum, p = exact.mean(axis=0), plan(HUB, 0, 16, 0)
    C = matrix(p)
    with np.errstate(all="ignore"):
        raw, w = sgp_on_quadratic(C, exact, eta, 400, cap=None)
    assert w.min() < 1e-3
    assert not np.abs(raw).max() < 1e6
    capped, _ = sgp_on_quadratic(C, exact, eta, 400, cap=2.0)
    assert np.abs(capped - optimum).max() > 0.5
    path = push_pull_on_quadratic(rows(p), C, np.ones(16), exact, eta, 400)
    assert np.abs(path[-1] - optimum).max() < 1e-5


@pytest.mark.parametrize(("options", "n", "converges"), [(DIRECTED, 5, True), (HUB, 16, False)])
def test_push_diging_reaches_the_optimum_but_not_where_weights_vanish(
    options: TopologyOptions, n: int, converges: bool
) -> None:
    curvature, targets, optimum = quadratic(n)
    C = matrix(plan(options, 0, n, 0)).astype(np.float32)
    state = push_pull.diging_init(np.zeros_like(targets), np.ones(n), np.zeros((n, 0)))
    g = np.zeros_like(targets)
    with np.errstate(all="ignore"):
        for _ in range(400):
            z = push_pull.diging_models(state)
            new = (0.05 * curvature[:, None] * (z - targets)).astype(np.float32)
            state, g = push_pull.diging_step(state, g, new), new
            state = PushSumState(x=C @ state.x, w=C.astype(np.float64) @ state.w, s=state.s)
    error = np.abs(push_pull.diging_models(state) - optimum).max()
    assert (error < 1e-4) == converges
    if converges:
        np.testing.assert_allclose(state.x[:, 4:].sum(axis=0), g.sum(axis=0), atol=1e-5)


def test_a_peer_without_a_model_takes_what_arrives_and_a_lone_one_keeps_its_own() -> None:
    x, others = np.full((2, 3), 8, np.float32), [np.full((2, 3), v, np.float32) for v in (2, 5)]
    np.testing.assert_array_equal(push_pull.pull(x, others, np.array([False, True]))[:, 0], [5, 3.5])
    assert push_pull.pull(x, [], np.array([False, True])) is x


def test_a_batch_of_peers_gives_the_bits_of_each_alone() -> None:
    rng = np.random.default_rng(0)
    x, g, h = (rng.standard_normal((6, 70), dtype=np.float32) for _ in range(3))
    together = push_pull.init(x, np.ones(6), np.zeros((6, 2)))
    alone = [push_pull.init(x[i : i + 1], np.ones(1), np.zeros((1, 2))) for i in range(6)]
    for gradient in (g, h):
        together = push_pull.step(together, gradient)
        alone = [push_pull.step(s, gradient[i : i + 1]) for i, s in enumerate(alone)]
    pulled = push_pull.pull(together.x, [g, h], np.zeros(6, bool))
    for i, state in enumerate(alone):
        np.testing.assert_array_equal(state.x[0], together.x[i])
        np.testing.assert_array_equal(state.pushed.x[0], together.pushed.x[i])
        np.testing.assert_array_equal(
            push_pull.pull(state.x, [g[i : i + 1], h[i : i + 1]], OWN)[0], pulled[i]
        )


def test_states_are_values_no_kernel_writes_to_its_inputs() -> None:
    state = push_pull.init(np.ones((2, 5), np.float32), np.ones(2), np.ones((2, 1)))
    for array in (state.x, state.g, state.pushed.x):
        array.flags.writeable = False
    push_pull.restart(push_pull.step(state, state.x))
    push_pull.pull(state.x, [state.x], np.zeros(2, bool))


def test_gradients_of_another_shape_are_refused() -> None:
    state = push_pull.init(np.ones((1, 5), np.float32), np.ones(1), np.zeros((1, 0)))
    with pytest.raises(AggregationError, match="gradients of shape"):
        push_pull.step(state, np.ones((1, 4), np.float32))
