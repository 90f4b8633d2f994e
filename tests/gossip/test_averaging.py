"""D-PSGD: doubly-stochastic averaging of latest states."""

import numpy as np
import pytest
from numpy.typing import NDArray

from p2pfl.errors import AggregationError
from p2pfl.gossip.averaging import D_PSGD, mix, mixer_of, without_missing
from p2pfl.gossip.mixing import Floats, Kind, Vectors, sigma2
from p2pfl.gossip.options import AveragingOptions, TopologyOptions
from p2pfl.gossip.push_sum import PUSH_SUM
from p2pfl.gossip.topology import Plan, matrix, plan


def mix_all(x: Vectors, plan: Plan, lost: frozenset[tuple[int, int]] = frozenset()) -> Vectors:
    """One round of every peer by itself; `lost` are edges (sender, receiver) without a message."""
    rows = []
    for i in range(plan.n):
        row = plan.row(i)
        heard = plan.in_neighbours(i)
        weights = np.array([[row[i], *(row[j] for j in heard)]])
        states = [None if (j, i) in lost else x[j : j + 1] for j in heard]
        rows.append(mix(x[i : i + 1], states, weights))
    return np.concatenate(rows)


def models(n: int, d: int = 40, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


@pytest.mark.parametrize("kind", ["ring", "torus", "star", "erdos-renyi", "exponential", "complete"])
def test_a_round_is_the_dense_matrix_product(kind: str) -> None:
    p = plan(TopologyOptions(kind=kind), 0, 10, 3)
    x = models(10)
    np.testing.assert_allclose(
        mix_all(x, p), matrix(p, Kind.DOUBLY) @ x.astype(np.float64), rtol=0, atol=3e-7
    )


@pytest.mark.parametrize("kind", ["star", "watts-strogatz", "exponential"])
def test_the_mean_is_preserved_and_disagreement_shrinks_by_sigma2_a_round(kind: str) -> None:
    p = plan(TopologyOptions(kind=kind), 0, 12, 5)
    bound = sigma2(matrix(p, Kind.DOUBLY))
    x = models(12)
    mean = x.mean(axis=0, dtype=np.float64)
    for _ in range(8):
        after = mix_all(x, p)
        np.testing.assert_allclose(after.mean(axis=0, dtype=np.float64), mean, atol=1e-6)
        assert np.linalg.norm(after - mean) <= bound * np.linalg.norm(x - mean) + 1e-5
        x = after


def test_the_complete_graph_averages_exactly_in_one_round() -> None:
    x = models(6)
    after = mix_all(x, plan(TopologyOptions(kind="complete"), 0, 6, 0))
    np.testing.assert_allclose(after, np.tile(x.mean(axis=0), (6, 1)), atol=1e-6)


def test_a_missing_neighbour_is_replaced_by_the_peers_own_model() -> None:
    x, there = models(1), models(1, seed=1)
    after = mix(x, [None, there], np.array([[0.5, 0.3, 0.2]]))
    np.testing.assert_array_equal(after, mix(x, [there], np.array([[0.8, 0.2]])))
    np.testing.assert_array_equal(mix(x, [None, None], np.array([[0.5, 0.3, 0.2]])), x)


def test_loss_in_both_directions_preserves_the_mean_and_loss_in_one_does_not() -> None:
    p = plan(TopologyOptions(kind="ring"), 0, 8, 0)
    x = models(8)
    mean = x.mean(axis=0, dtype=np.float64)
    both = mix_all(x, p, frozenset({(2, 3), (3, 2)}))
    np.testing.assert_allclose(both.mean(axis=0, dtype=np.float64), mean, atol=1e-6)
    one = mix_all(x, p, frozenset({(2, 3)}))
    assert np.abs(one.mean(axis=0, dtype=np.float64) - mean).max() > 0.01


def test_a_batch_of_peers_gives_the_bits_of_each_alone() -> None:
    x = models(9, 100)
    p = plan(TopologyOptions(kind="exponential"), 0, 9, 0)
    heard: NDArray[np.int64] = np.array(p.in_edges)
    weights = np.array([[p.row(i)[i], *(p.row(i)[j] for j in p.in_edges[i])] for i in range(9)])
    together = mix(x, [x[heard[:, k]] for k in range(heard.shape[1])], weights)
    np.testing.assert_array_equal(together, mix_all(x, p))


def test_weights_of_missing_neighbours_move_to_the_peer_itself() -> None:
    weights: Floats = np.array([[0.4, 0.3, 0.3], [0.2, 0.4, 0.4]])
    moved = without_missing(weights, np.array([[True, False], [True, True]]))
    np.testing.assert_allclose(moved, [[0.7, 0.3, 0], [0.2, 0.4, 0.4]])
    with pytest.raises(AggregationError, match="presence"):
        without_missing(weights, np.ones((2, 3), bool))


@pytest.mark.parametrize(
    "weights", [[[0.5, 0.25]], [[0.5, 0.5, 0.5]], [[1.5, -0.25, -0.25]], [[np.nan, 0.5, 0.5]]]
)
def test_weights_that_are_no_average_are_refused(weights: list[list[float]]) -> None:
    with pytest.raises(AggregationError):
        mix(models(1), [models(1), models(1)], np.array(weights))


def test_the_mixers_say_what_they_need() -> None:
    assert mixer_of(AveragingOptions(kind="d-psgd")) is D_PSGD
    assert mixer_of(AveragingOptions()) is PUSH_SUM
    assert (D_PSGD.delivery, PUSH_SUM.delivery) == ("state", "share")
    assert Kind.DOUBLY in D_PSGD.requires
    assert {Kind.COLUMN} == PUSH_SUM.requires
