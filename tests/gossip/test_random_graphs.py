"""Random graph families against their definitions and networkx."""

import math

import networkx as nx
import numpy as np
import pytest

from p2pfl.gossip import graphs, random_graphs
from p2pfl.gossip.graphs import Graph


def edges_of(graph: Graph) -> set[tuple[int, int]]:
    return {(i, j) for i, peers in enumerate(graph.out_edges) for j in peers}


def edges_in(graph: "nx.Graph[int]") -> set[tuple[int, int]]:
    return {pair for i, j in graph.edges for pair in ((i, j), (j, i))}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("n", range(1, 30))
def test_every_roster_size_has_a_regular_graph(n: int) -> None:
    for degree in (2, 3, 4, 6):
        graph = random_graphs.random_regular(n, degree, rng(n))
        wanted = min(n - 1, degree + (n % 2) * (degree % 2))
        assert {len(peers) for peers in graph.out_edges} == {wanted}
        assert graph.is_symmetric
        assert all(
            i not in peers and len(set(peers)) == len(peers) for i, peers in enumerate(graph.out_edges)
        )


def test_random_regular_graphs_are_close_to_uniform() -> None:
    # On 6 peers there are 70 labelled 2-regular graphs: 60 hexagons and 10 pairs of triangles.
    draws = [random_graphs.random_regular(6, 2, rng(seed)) for seed in range(2000)]
    hexagons = sum(graph.is_strongly_connected() for graph in draws) / len(draws)
    assert len({graph.out_edges for graph in draws}) == 70
    assert hexagons == pytest.approx(6 / 7, abs=0.06)


def test_erdos_renyi_joins_each_pair_with_its_probability() -> None:
    graph = random_graphs.erdos_renyi(400, 0.05, rng())
    edges = sum(map(len, graph.out_edges)) / 2
    pairs = 400 * 399 / 2
    assert abs(edges - 0.05 * pairs) < 4 * math.sqrt(pairs * 0.05 * 0.95)
    assert graph.is_symmetric
    assert random_graphs.erdos_renyi(5, 1.0, rng()).out_edges == graphs.complete(5).out_edges


def test_watts_strogatz_starts_from_a_ring_lattice_and_keeps_its_edges_count() -> None:
    lattice = random_graphs.watts_strogatz(20, 4, 0.0, rng())
    assert edges_of(lattice) == edges_in(nx.watts_strogatz_graph(20, 4, 0))
    rewired = random_graphs.watts_strogatz(300, 4, 0.3, rng())
    assert rewired.is_symmetric
    assert len(edges_of(rewired)) == 300 * 4
    moved = len(edges_of(rewired) - edges_of(random_graphs.watts_strogatz(300, 4, 0.0, rng()))) / (300 * 4)
    assert moved == pytest.approx(0.3, abs=0.06)
    assert random_graphs.watts_strogatz(5, 4, 0.5, rng()).out_edges == graphs.complete(5).out_edges


def test_one_way_links_lose_directions_and_keep_the_directed_ring() -> None:
    n = 400
    ring = edges_of(graphs.ring(n, directed=True))
    both = edges_of(random_graphs.one_way(n, 4, 0.0, rng()))
    assert both == {(j, i) for i, j in both}
    # The lattice, and two random links a peer, of which few meet another.
    lattice = edges_of(random_graphs.watts_strogatz(n, 4, 0.0, rng()))
    assert both >= lattice
    assert len(both - lattice) == pytest.approx(2 * 2 * n, rel=0.03)
    half = edges_of(random_graphs.one_way(n, 4, 0.5, rng()))
    assert ring < half < both
    assert len(half - ring) / len(both - ring) == pytest.approx(0.5, abs=0.03)
    assert edges_of(random_graphs.one_way(n, 4, 1.0, rng())) == ring
    assert random_graphs.one_way(1, 4, 0.5, rng()).out_edges == ((),)
    for seed in range(20):
        assert random_graphs.one_way(5, 4, 0.5, rng(seed)).is_strongly_connected()


def test_random_graphs_are_the_same_on_every_node() -> None:
    # Golden: these follow from raw PCG64 words alone; a change here splits a running federation in two.
    assert random_graphs.random_regular(6, 3, rng(1)).out_edges == GOLDEN_REGULAR
    assert random_graphs.erdos_renyi(5, 0.5, rng(1)).out_edges == GOLDEN_ERDOS_RENYI
    assert random_graphs.watts_strogatz(7, 2, 0.5, rng(1)).out_edges == GOLDEN_WATTS_STROGATZ
    assert random_graphs.one_way(6, 2, 0.5, rng(3)).out_edges == GOLDEN_ONE_WAY


GOLDEN_REGULAR = ((3, 4, 5), (2, 3, 5), (1, 4, 5), (0, 1, 4), (0, 2, 3), (0, 1, 2))
GOLDEN_ERDOS_RENYI = ((2, 4), (2, 4), (0, 1, 4), (4,), (0, 1, 2, 3))
GOLDEN_ONE_WAY = ((1, 3), (0, 2), (3, 4), (2, 4), (0, 3, 5), (0, 1, 4))
GOLDEN_WATTS_STROGATZ = ((1, 4, 6), (0, 2), (1, 6), (4,), (0, 3, 5), (4,), (0, 2))
