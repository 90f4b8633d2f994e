"""Base-(k+1) graphs: exact in their rounds, with their degree, on any number of peers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.gossip import finite_time
from p2pfl.gossip.mixing import Floats, Kind, sigma2
from p2pfl.gossip.mixing_time import gap_per_round, mixing_rounds
from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.topology import matrix, plan, sweep

# Rounds of the Base-(k+1) graph for these numbers of peers, as the authors' own code has them.
PEERS = (5, 6, 7, 8, 11, 16, 25, 32, 64, 100)
ROUNDS = {
    1: (5, 4, 5, 3, 7, 4, 9, 5, 6, 11),
    2: (3, 2, 4, 3, 5, 4, 6, 5, 6, 8),
    3: (3, 2, 3, 2, 4, 2, 5, 3, 3, 6),
    4: (1, 2, 3, 2, 4, 2, 2, 3, 3, 3),
}


def matrices(kind: str, n: int, k: int) -> list[Floats]:
    return [matrix(one, Kind.DOUBLY) for one in sweep(TopologyOptions(kind=kind, degree=k), n, 0)]


@pytest.mark.parametrize("k", ROUNDS)
def test_the_base_graph_has_the_tabulated_number_of_rounds(k: int) -> None:
    assert tuple(finite_time.base_rounds(n, k) for n in PEERS) == ROUNDS[k]


@pytest.mark.slow
@given(st.sampled_from(["base", "simple-base"]), st.integers(1, 90), st.integers(1, 6))
def test_a_base_graph_averages_exactly_whatever_its_size(kind: str, n: int, k: int) -> None:
    check(kind, n, k)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (3, 1), (23, 1), (26, 2), (55, 3), (6, 9)])
def test_a_base_graph_averages_exactly_in_its_rounds_with_at_most_k_neighbours(n: int, k: int) -> None:
    for kind in ("base", "simple-base"):
        check(kind, n, k)


def check(kind: str, n: int, k: int) -> None:
    product = np.eye(n)
    for W in matrices(kind, n, k):
        np.testing.assert_allclose(W, W.T, atol=0)
        np.testing.assert_allclose(W.sum(axis=0), 1, atol=1e-14)
        assert W.min() >= 0
        assert np.count_nonzero(W - np.diag(W.diagonal()), axis=0).max() <= k
        product = W @ product
    np.testing.assert_allclose(product, 1 / n, atol=1e-14)
    assert len(matrices(kind, n, k)) <= max(1, 2 * math.log(n, k + 1) + 2)


@pytest.mark.parametrize(("n", "k"), [(25, 1), (100, 1), (7, 2), (11, 3)])
def test_one_round_less_is_not_exact(n: int, k: int) -> None:
    *rounds, _ = matrices("base", n, k)
    product = np.eye(n)
    for W in rounds:
        product = W @ product
    assert sigma2(product) > 0.1


def test_base_graphs_are_exact_where_one_peer_exponential_leaves_a_residue() -> None:
    for n in (25, 100):
        base = TopologyOptions(kind="base")
        assert mixing_rounds(base, n, 0, 1e-9) == finite_time.base_rounds(n, 1)
        assert gap_per_round(base, n, 0) == 1
        assert mixing_rounds(TopologyOptions(kind="one-peer-exponential"), n, 0, 1e-9) > 30


def test_the_simple_base_graph_of_five_peers_is_the_papers() -> None:
    # Four peers and one: pairs within the four, twice; the fifth meets one of them and takes 4/5 of it, while
    # two of the rest mix; then pairs again.
    options = TopologyOptions(kind="simple-base")
    edges = [
        sorted((i, j) for i, peers in enumerate(plan(options, t, 5, 0).out_edges) for j in peers if i < j)
        for t in range(5)
    ]
    assert edges == [[(0, 1), (2, 3)], [(0, 2), (1, 3)], [(0, 1), (3, 4)], [(0, 1), (2, 3)], [(0, 2), (1, 3)]]
    meeting = plan(options, 2, 5, 0)
    assert meeting.fractions(4)[0] == pytest.approx(0.2)
    assert meeting.fractions(4)[1] == (0.8,)
    assert meeting.row(3) == {3: pytest.approx(0.2), 4: 0.8}
    assert meeting.fractions(0) == (0.5, (0.5,))


def test_the_base_graph_is_shorter_where_the_number_of_peers_has_small_factors() -> None:
    assert finite_time.simple_base_rounds(100, 1) == 13
    assert finite_time.base_rounds(100, 1) == 11
    # 66 = 2 * 33: two simple base graphs of 33 and a pairing take 13 rounds, one of 66 takes 13, too.
    assert finite_time.base_rounds(66, 1) <= finite_time.simple_base_rounds(66, 1)


def test_many_peers_plan_a_round() -> None:
    n = 20_001
    rounds = finite_time.base_rounds(n, 1)
    assert rounds <= 2 * math.log2(n) + 2
    one = plan(TopologyOptions(kind="base"), rounds - 1, n, 0)
    assert {len(peers) for peers in one.out_edges} <= {0, 1}
