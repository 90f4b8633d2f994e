"""How fast topologies mix: rounds against dense push-sum, gaps against closed forms."""

import math

import numpy as np
import pytest
from oracles import hub_edges, push_sum_dense

from p2pfl.errors import ConfigError
from p2pfl.gossip.mixing import Floats
from p2pfl.gossip.mixing_time import gap_per_round, mixing_rounds
from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.topology import matrix, plan


def product(kind: str, n: int, rounds: int) -> Floats:
    W = np.eye(n)
    for t in range(rounds):
        W = matrix(plan(TopologyOptions(kind=kind), t, n, 0)) @ W
    return W


@pytest.mark.parametrize(
    "options",
    [
        TopologyOptions(kind="ring", directed=True),
        TopologyOptions(kind="star"),
        TopologyOptions(kind="exponential"),
        TopologyOptions(kind="watts-strogatz"),
        TopologyOptions(kind="one-way"),
        TopologyOptions(kind="random-regular", redraw=True),
        TopologyOptions(kind="explicit", edges=hub_edges(9), directed=True),
    ],
    ids=lambda options: options.kind,
)
def test_mixing_rounds_is_the_first_round_in_which_dense_push_sum_is_close(options: TopologyOptions) -> None:
    n, tolerance = 9, 1e-4
    T = mixing_rounds(options, n, 3, tolerance)

    def error(rounds: int) -> float:
        matrices = [matrix(plan(options, t, n, 3)) for t in range(rounds)]
        x, w = push_sum_dense(matrices, np.eye(n), np.ones(n))
        return float(np.abs(n * x / w[:, None] - 1).max())

    assert error(T) <= tolerance < error(T - 1)


def test_a_topology_that_never_mixes_is_refused_by_name() -> None:
    islands = TopologyOptions(kind="explicit", edges=((0, 1), (2, 3)))
    with pytest.raises(ConfigError, match="'explicit' on 4 peers is not strongly connected"):
        mixing_rounds(islands, 4, 0, 0.1)
    with pytest.raises(ConfigError, match="'ring' on 400 peers does not mix to 1e-06 within 10000"):
        mixing_rounds(TopologyOptions(kind="ring"), 400, 0, 1e-6)
    chain = TopologyOptions(kind="explicit", edges=tuple((i, i + 1) for i in range(149)))
    with pytest.raises(ConfigError, match="does not mix"):
        mixing_rounds(chain, 150, 0, 1e-6)
    with pytest.raises(ConfigError, match="too large"):
        mixing_rounds(TopologyOptions(kind="star"), 5000, 0, 0.1)
    with pytest.raises(ConfigError, match="tolerance"):
        mixing_rounds(TopologyOptions(), 4, 0, 0.0)


@pytest.mark.parametrize("n", [6, 8, 16, 30, 100, 1024, 4096])
def test_the_gap_of_the_exponential_graph_is_its_closed_form(n: int) -> None:
    gap = gap_per_round(TopologyOptions(kind="exponential"), n, 0)
    assert gap == pytest.approx(2 / (1 + math.ceil(math.log2(n))))


def test_the_gap_of_a_ring_is_its_closed_form() -> None:
    gap = gap_per_round(TopologyOptions(kind="ring"), 20, 0)
    assert gap == pytest.approx(1 - (1 + 2 * math.cos(2 * math.pi / 20)) / 3)
    assert gap_per_round(TopologyOptions(kind="complete"), 20, 0) == pytest.approx(1)
    assert gap_per_round(TopologyOptions(kind="ring"), 1, 0) == 1


def test_one_period_of_the_one_peer_exponential_graph_is_exact_for_powers_of_two() -> None:
    options = TopologyOptions(kind="one-peer-exponential")
    assert gap_per_round(options, 16, 0) == pytest.approx(1, abs=1e-3)
    gap = gap_per_round(options, 12, 0)
    assert gap is not None
    lambda2 = np.sort(np.abs(np.linalg.eigvals(product("one-peer-exponential", 12, 4))))[-2]
    assert (1 - gap) ** 4 == pytest.approx(lambda2)


@pytest.mark.parametrize("kind", ["star", "random-regular", "erdos-renyi", "torus"])
def test_push_sums_distance_shrinks_by_the_gap(kind: str) -> None:
    options = TopologyOptions(kind=kind)
    gap = gap_per_round(options, 12, 0)
    assert gap is not None
    x = np.random.default_rng(1).normal(size=(12, 3))
    w = np.ones(12)
    C, distances = matrix(plan(options, 0, 12, 0)), []
    for _ in range(60):
        x, w = push_sum_dense([C], x, w)
        distances.append(np.linalg.norm(x / w[:, None] - x.sum(axis=0) / w.sum()))
    late = [d for d in distances if d > 1e-12]
    assert (late[-1] / late[len(late) // 2]) ** (1 / (len(late) - 1 - len(late) // 2)) <= 1 - gap + 0.02


def test_a_graph_that_is_not_connected_has_no_gap_and_a_large_irregular_one_is_not_asked() -> None:
    parted = TopologyOptions(kind="explicit", edges=((0, 1), (2, 3)))
    assert gap_per_round(parted, 4, 0) == pytest.approx(0)
    assert gap_per_round(TopologyOptions(kind="star"), 600, 0) is None
