"""What a graph of trust allows, against networkx and against push-sum itself."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import digraph_of, hub_edges, push_sum_dense

from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.reach import perron_weights, reach
from p2pfl.gossip.topology import Plan, matrix, period, plan


def explicit(n: int, *edges: tuple[int, int]) -> Plan:
    return plan(TopologyOptions(kind="explicit", edges=edges, directed=True), 0, n, 0)


def test_a_site_that_nobody_tells_and_one_that_nobody_believes_are_named() -> None:
    found = reach(explicit(5, (0, 1), (1, 2), (2, 0), (3, 0), (1, 4)))
    assert found.unreached == (3,)
    assert found.unheard == (4,)
    assert not found.is_connected
    assert found.smallest_weight is None


def test_of_two_halves_the_smaller_is_cut_off_both_ways() -> None:
    found = reach(explicit(5, (0, 1), (1, 0), (2, 3), (3, 4), (4, 2)))
    assert found.unreached == found.unheard == (0, 1)


def test_a_regular_graph_starves_nobody() -> None:
    for kind in ("exponential", "one-peer-exponential", "complete"):
        options = TopologyOptions(kind=kind)
        found = reach(*(plan(options, t, 12, 0) for t in range(period(options, 12))))
        assert found.is_connected
        assert found.smallest_weight == pytest.approx(1, abs=1e-9)
        assert found.starved == ()


def test_a_chain_that_always_returns_to_its_hub_starves_its_end() -> None:
    # Sending 1/3 on and 1/3 back, each link keeps half of the one before: w_i = w_1 / 2^(i - 1).
    p = plan(TopologyOptions(kind="explicit", edges=hub_edges(12), directed=True), 0, 12, 0)
    w = perron_weights([matrix(p)])
    np.testing.assert_allclose(w[2:11] / w[1:10], 0.5, rtol=1e-9)
    found = reach(p)
    assert found.smallest_weight == pytest.approx(w.min())
    assert found.starved == tuple(i for i in range(12) if w[i] < 0.05)
    assert found.starved


@given(st.integers(2, 9), st.integers(0, 2**32))
def test_parts_are_networkxs_and_weights_are_where_push_sum_ends(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = [(i, j) for i in range(n) for j in range(n) if i != j and rng.random() < 2 / n]
    p = explicit(n, *edges) if edges else explicit(n, (0, 1))
    graph, found = digraph_of(p), reach(p)
    parts = list(nx.strongly_connected_components(graph))
    assert found.is_connected == (len(parts) == 1)
    core = set(range(n)) - set(found.unreached) - set(found.unheard)
    assert core in parts
    assert len(core) == max(map(len, parts))
    inside = min(core)
    assert set(found.unreached) == set(range(n)) - core - nx.descendants(graph, inside)
    assert set(found.unheard) == set(range(n)) - core - nx.ancestors(graph, inside)
    if found.is_connected:
        _, w = push_sum_dense([matrix(p)] * 3000, np.zeros((n, 1)), np.ones(n))
        np.testing.assert_allclose(perron_weights([matrix(p)]), w, atol=1e-6)


def test_a_plan_that_changes_counts_the_least_weight_of_its_cycle() -> None:
    there, back = explicit(3, (0, 1), (1, 2)), explicit(3, (2, 0))
    w = np.ones(3)
    seen = []
    for t in range(400):
        w = matrix((there, back)[t % 2]) @ w
        seen.append(w)
    np.testing.assert_allclose(
        perron_weights([matrix(there), matrix(back)]), np.minimum(seen[-1], seen[-2]), atol=1e-9
    )
    assert reach(there, back).is_connected
