"""Graph families against their definitions and networkx."""

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.gossip import graphs
from p2pfl.gossip.graphs import Graph
from p2pfl.gossip.mixing import Kind


def edges_of(graph: Graph) -> set[tuple[int, int]]:
    return {(i, j) for i, peers in enumerate(graph.out_edges) for j in peers}


def edges_in(graph: "nx.Graph[int]") -> set[tuple[int, int]]:
    return {pair for i, j in graph.edges for pair in ((i, j), (j, i))}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("n", [3, 4, 7, 16])
def test_the_fixed_families_are_networkxs(n: int) -> None:
    assert edges_of(graphs.complete(n)) == edges_in(nx.complete_graph(n))
    assert edges_of(graphs.ring(n, directed=False)) == edges_in(nx.cycle_graph(n))
    assert edges_of(graphs.ring(n, directed=True)) == set(nx.cycle_graph(n, create_using=nx.DiGraph).edges)
    assert edges_of(graphs.star(n)) == edges_in(nx.star_graph(n - 1))
    offsets = [2**k for k in range(math.ceil(math.log2(n)))]
    around = set(nx.circulant_graph(n, offsets, create_using=nx.DiGraph).edges)
    assert edges_of(graphs.exponential(n)) == {(i, j) for i, j in around if (j - i) % n in offsets}


@pytest.mark.parametrize(
    ("n", "rows", "shape"), [(16, None, (4, 4)), (24, None, (4, 6)), (24, 3, (3, 8)), (8, None, (2, 4))]
)
def test_a_torus_is_a_periodic_grid_of_the_most_square_shape(
    n: int, rows: int | None, shape: tuple[int, int]
) -> None:
    grid = nx.grid_2d_graph(*shape, periodic=True)
    numbered = nx.relabel_nodes(grid, {(r, c): r * shape[1] + c for r, c in grid})
    assert edges_of(graphs.torus(n, rows)) == edges_in(numbered)


def test_a_torus_of_a_prime_is_a_ring_and_rows_that_do_not_divide_are_refused() -> None:
    assert graphs.torus(13, None).out_edges == graphs.ring(13, directed=False).out_edges
    with pytest.raises(ConfigError, match="5, which does not divide 12"):
        graphs.torus(12, 5)


def test_peers_of_the_exponential_graph_reach_powers_of_two_ahead() -> None:
    assert graphs.exponential(8).out_neighbours(6) == (0, 2, 7)
    assert graphs.exponential(8).in_neighbours(0) == (4, 6, 7)
    assert [len(graphs.exponential(n).out_neighbours(0)) for n in (1, 2, 3, 4, 5, 25, 32, 33)] == [
        0,
        1,
        2,
        2,
        3,
        5,
        5,
        6,
    ]
    assert [graphs.one_peer_exponential(8, t).out_neighbours(7) for t in range(4)] == [(0,), (1,), (3,), (0,)]


def test_an_explicit_graph_is_what_was_listed() -> None:
    assert graphs.explicit(3, [(0, 2), (0, 1), (0, 2)], directed=True).out_edges == ((1, 2), (), ())
    assert graphs.explicit(3, [(0, 2), (2, 0), (0, 1)], directed=False).out_edges == ((1, 2), (0,), (0,))
    assert graphs.explicit(1, [], directed=True).out_edges == ((),)
    with pytest.raises(ConfigError, match=r"\[0, 3\], but the roster has 3 peers"):
        graphs.explicit(3, [(0, 3)], directed=True)


@given(st.integers(1, 8), st.data())
def test_strong_connectivity_degrees_and_kinds_are_networkxs(n: int, data: st.DataObject) -> None:
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] != pair[1])
    listed = sorted(data.draw(st.sets(pairs, max_size=20))) if n > 1 else []
    graph = graphs.explicit(n, listed, directed=True)
    oracle: nx.DiGraph[int] = nx.DiGraph(listed)
    oracle.add_nodes_from(range(n))
    assert graph.is_strongly_connected() == nx.is_strongly_connected(oracle)
    assert all(set(graph.in_neighbours(i)) == set(oracle.predecessors(i)) for i in range(n))
    assert [graph.in_degree(i) for i in range(n)] == [oracle.in_degree(i) for i in range(n)]
    assert graph.is_symmetric == (oracle.to_undirected().size() * 2 == oracle.size())
    degrees = {degree for view in (oracle.in_degree, oracle.out_degree) for _, degree in view()}
    assert (Kind.DOUBLY in graph.kinds) == (graph.is_symmetric or len(degrees) == 1)
    senders, receivers = graph.edges()
    assert list(zip(senders.tolist(), receivers.tolist(), strict=True)) == listed


@given(st.integers(1, 40), st.sets(st.integers(1, 39)))
def test_a_circulant_graph_and_its_neighbour_lists_say_the_same(n: int, offsets: set[int]) -> None:
    circulant = Graph(n=n, offsets=tuple(sorted(o for o in offsets if o < n)))
    listed = Graph(n=n, neighbours=circulant.out_edges)
    assert circulant.in_edges == listed.in_edges
    assert circulant.kinds == listed.kinds
    assert circulant.is_symmetric == listed.is_symmetric
    assert circulant.is_strongly_connected() == listed.is_strongly_connected()
    assert [circulant.in_degree(i) for i in range(n)] == [listed.in_degree(i) for i in range(n)]
    for mine, theirs in zip(circulant.edges(), listed.edges(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
