"""Mixing weights, their spectra, and the kernel that mixes."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import is_column_stochastic, is_doubly_stochastic, is_row_stochastic, is_symmetric

from p2pfl.errors import AggregationError
from p2pfl.gossip import mixing
from p2pfl.gossip.mixing import MixingMatrix, combine, dense, sigma2, spectral_gap

# A directed path with a shortcut: peer 0 sends to 1 and 2, 1 to 2, 2 to 0.
SENDERS = np.array([0, 0, 1, 2])
RECEIVERS = np.array([1, 2, 2, 0])


@st.composite
def edge_lists(draw: st.DrawFn) -> tuple[int, mixing.Indices, mixing.Indices]:
    n = draw(st.integers(1, 9))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] != pair[1])
    edges = sorted(draw(st.sets(pairs, max_size=30))) if n > 1 else []
    ends = np.array(edges, np.int64).reshape(-1, 2)
    return n, ends[:, 0], ends[:, 1]


def test_uniform_columns_of_a_small_digraph_are_as_written_by_hand() -> None:
    W = mixing.uniform_columns(3, SENDERS, RECEIVERS)
    expected = np.array([[1 / 3, 0, 1 / 2], [1 / 3, 1 / 2, 0], [1 / 3, 1 / 2, 1 / 2]])
    np.testing.assert_allclose(dense(W), expected, atol=1e-15)


def test_metropolis_hastings_on_a_path_of_three_is_as_written_by_hand() -> None:
    W = mixing.metropolis_hastings(3, np.array([0, 1, 1, 2]), np.array([1, 0, 2, 1]))
    np.testing.assert_allclose(dense(W), np.array([[2, 1, 0], [1, 1, 1], [0, 1, 2]]) / 3, atol=1e-15)
    assert is_symmetric(W)
    assert is_doubly_stochastic(W)


@pytest.mark.slow
@given(edge_lists())
def test_each_rule_gives_the_stochasticity_it_is_named_for(
    edges: tuple[int, mixing.Indices, mixing.Indices],
) -> None:
    assert is_column_stochastic(mixing.uniform_columns(*edges))
    W = mixing.metropolis_hastings(*edges)
    assert is_row_stochastic(W)
    _, senders, receivers = edges
    pairs = set(zip(senders.tolist(), receivers.tolist(), strict=True))
    assert is_symmetric(W) == (pairs == {(j, i) for i, j in pairs})
    if is_symmetric(W):
        assert is_doubly_stochastic(W)
        np.testing.assert_array_equal(dense(W), dense(W).T)


def test_weights_that_break_a_rule_are_found() -> None:
    W = mixing.uniform_columns(3, SENDERS, RECEIVERS)
    assert not is_row_stochastic(W)
    assert not is_doubly_stochastic(W)
    heavier = MixingMatrix(n=3, senders=SENDERS, receivers=RECEIVERS, weights=W.weights, own=W.own + 1e-6)
    assert not is_column_stochastic(heavier)
    back = np.array([0, 1]), np.array([1, 0])
    negative = MixingMatrix(
        n=2, senders=back[0], receivers=back[1], weights=np.array([-0.5, -0.5]), own=np.full(2, 1.5)
    )
    assert not is_doubly_stochastic(negative)
    lopsided = MixingMatrix(
        n=2, senders=back[0], receivers=back[1], weights=np.array([0.5, 0.4]), own=np.full(2, 0.5)
    )
    assert not is_symmetric(lopsided)


def test_sigma2_is_zero_for_exact_averaging_and_one_when_nobody_talks() -> None:
    assert sigma2(np.full((7, 7), 1 / 7)) == pytest.approx(0, abs=1e-15)
    assert sigma2(np.eye(7)) == pytest.approx(1)
    assert sigma2(np.eye(1)) == 0


def test_the_spectral_gap_of_a_lazy_cycle_is_its_closed_form() -> None:
    n = 12
    W = (np.eye(n) + np.roll(np.eye(n), 1, axis=0)) / 2
    assert spectral_gap(W) == pytest.approx(1 - np.cos(np.pi / n))
    assert spectral_gap(np.eye(4)) == 0
    assert spectral_gap(np.eye(1)) == 1


def test_sigma2_and_gap_agree_with_networkx_on_a_symmetric_graph() -> None:
    graph = nx.petersen_graph()
    W = (np.eye(10) + nx.to_numpy_array(graph)) / 4
    # Petersen: adjacency eigenvalues 3, 1, -2.
    assert sigma2(W) == pytest.approx(0.5)
    assert spectral_gap(W) == pytest.approx(0.5)


@pytest.mark.parametrize(("n", "d"), [(1, 200_000), (3, 70_000), (5000, 17), (4, 0), (1, 1)])
def test_combining_rows_together_or_one_by_one_gives_the_same_bits(n: int, d: int) -> None:
    rng = np.random.default_rng(n + d)
    terms = [rng.standard_normal((n, d), dtype=np.float32) for _ in range(3)]
    c = [None, rng.random(n), rng.random(n)]
    together = combine(terms, c)
    exact = terms[0].astype(np.float64)
    for k in (1, 2):
        weight = c[k]
        assert weight is not None
        exact += weight[:, None] * terms[k]
    np.testing.assert_array_equal(together, exact.astype(np.float32))
    for i in range(0, n, max(1, n // 5)):
        row = combine([term[i : i + 1] for term in terms], [None if a is None else a[i : i + 1] for a in c])
        np.testing.assert_array_equal(row[0], together[i])


def test_combining_adds_in_float64_so_a_small_term_is_not_swallowed() -> None:
    big, small = np.full((1, 1), 2.0**24, np.float32), np.ones((1, 1), np.float32)
    assert combine([big, small, small, -big], [None] * 4)[0, 0] == 2
    assert np.float32(2.0**24) + np.float32(1) == np.float32(2.0**24)


def test_combining_refuses_arrays_that_do_not_fit() -> None:
    x = np.ones((2, 3), np.float32)
    with pytest.raises(AggregationError, match="0 arrays"):
        combine([], [])
    with pytest.raises(AggregationError, match="1 coefficients"):
        combine([x, x], [None])
    with pytest.raises(AggregationError, match=r"\(2, 4\)"):
        combine([x, np.ones((2, 4), np.float32)], [None, None])
    with pytest.raises(AggregationError, match="float64"):
        combine([x, x.astype(np.float64)], [None, None])
    with pytest.raises(AggregationError, match="one float64 a peer"):
        combine([x], [np.ones(3)])
    with pytest.raises(AggregationError, match="peers, parameters"):
        combine([x[0]], [None])
