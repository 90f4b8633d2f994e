"""Random matchings and epidemic learning: what one round leaves, against closed forms."""

from collections import Counter

import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.gossip import epidemic
from p2pfl.gossip.averaging import D_PSGD
from p2pfl.gossip.mixing import Floats, Kind
from p2pfl.gossip.mixing_time import gap_per_round, mixing_rounds
from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.push_sum import PUSH_SUM
from p2pfl.gossip.topology import Plan, check, is_strongly_connected, matrix, mixing_matrix, plan, sweep


def left(options: TopologyOptions, n: int, rounds: int) -> float:
    """The mean share of the squared distance to the mean that one round leaves, from one start."""
    x = np.random.default_rng(0).normal(size=(n, 30))
    x -= x.mean(axis=0)
    found = []
    for t in range(rounds):
        one = plan(options, t, n, 5)
        y = matrix(one, Kind.ROW) @ x
        found.append(np.sum((y - y.mean(axis=0)) ** 2) / np.sum(x**2))
    return float(np.mean(found))


@pytest.mark.parametrize("n", [2, 6, 16, 7])
def test_a_random_matching_leaves_its_closed_form(n: int) -> None:
    expected = (n - 2) / (2 * (n - 1)) if n % 2 == 0 else 1 / 2
    assert left(TopologyOptions(kind="random-matching"), n, 300) == pytest.approx(expected, rel=0.05)


def test_every_matching_is_as_likely_as_any_other() -> None:
    # Six peers have 15 perfect matchings.
    draws = Counter(
        epidemic.random_matching(6, np.random.default_rng(seed)).out_edges for seed in range(1500)
    )
    assert len(draws) == 15
    assert all(abs(count - 100) < 45 for count in draws.values())
    odd = epidemic.random_matching(7, np.random.default_rng(0))
    assert sorted(map(len, odd.out_edges)) == [0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("n", "s"), [(16, 2), (20, 7), (17, 4)])
def test_el_oracle_leaves_its_closed_form(n: int, s: int) -> None:
    found = left(TopologyOptions(kind="el-oracle", degree=s), n, 200)
    assert found == pytest.approx((1 - s / (n - 1)) / (s + 1), rel=0.05)


@pytest.mark.parametrize(("n", "s"), [(16, 2), (20, 7), (12, 1)])
def test_el_local_leaves_its_closed_form(n: int, s: int) -> None:
    found = left(TopologyOptions(kind="el-local", degree=s), n, 400)
    expected = (1 - (1 - s / (n - 1)) ** n) / s - 1 / (n - 1)
    assert found == pytest.approx(expected, rel=0.06)


def test_el_local_peers_choose_s_others_each_evenly() -> None:
    n, s = 9, 3
    chosen: Counter[int] = Counter()
    for seed in range(400):
        graph = epidemic.el_local(n, s, np.random.default_rng(seed))
        assert all(len(set(peers) - {i}) == s for i, peers in enumerate(graph.out_edges))
        chosen.update(graph.out_edges[4])
    assert set(chosen) == set(range(n)) - {4}
    assert all(abs(count - 150) < 45 for count in chosen.values())
    assert epidemic.el_local(4, 3, np.random.default_rng(0)).kinds == frozenset(Kind)


def rows_of(one: Plan) -> Floats:
    W = np.zeros((one.n, one.n))
    for i in range(one.n):
        W[i, list(one.row(i))] = list(one.row(i).values())
    return W


def test_el_local_receivers_take_the_plain_mean_and_senders_equal_parts() -> None:
    one = plan(TopologyOptions(kind="el-local", degree=3), 2, 12, 1)
    for i in range(12):
        heard = one.in_neighbours(i)
        assert list(one.row(i).values()) == pytest.approx([1 / (1 + len(heard))] * (1 + len(heard)))
        assert one.fractions(i) == (0.25, (0.25,) * 3)
    np.testing.assert_allclose(matrix(one, Kind.ROW), rows_of(one), atol=1e-15)
    with pytest.raises(ConfigError, match="no doubly-stochastic"):
        mixing_matrix(one, Kind.DOUBLY)


def test_el_local_keeps_the_mean_in_expectation_and_so_serves_latest_states() -> None:
    options = TopologyOptions(kind="el-local", degree=2)
    for mixer in (PUSH_SUM, D_PSGD):
        check(plan(options, 0, 10, 0), mixer)
    columns = [matrix(plan(options, t, 10, 0), Kind.ROW).sum(axis=0) for t in range(600)]
    np.testing.assert_allclose(np.mean(columns, axis=0), 1, atol=0.08)


@pytest.mark.parametrize("kind", ["random-matching", "el-oracle", "el-local", "od-equidyn", "ou-equidyn"])
def test_a_kind_that_is_drawn_anew_mixes_though_its_rounds_alone_do_not(kind: str) -> None:
    options = TopologyOptions(kind=kind)
    n = 12
    assert len({plan(options, t, n, 0).out_edges for t in range(8)}) > 4
    assert is_strongly_connected(*sweep(options, n, 0))
    assert 5 < mixing_rounds(options, n, 0, 1e-6) < 100
    gap = gap_per_round(options, n, 0)
    assert gap is not None
    assert 0.05 < gap < 0.9
