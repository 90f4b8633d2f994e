"""EquiTopo: basis graphs whose mean is J, and the rates that follow."""

import math

import numpy as np
import pytest

from p2pfl.gossip import equitopo
from p2pfl.gossip.mixing import Floats, Kind, sigma2
from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.topology import matrix, plan


def W_of(kind: str, n: int, t: int = 0, seed: int = 0, degree: int | None = None) -> Floats:
    return matrix(plan(TopologyOptions(kind=kind, degree=degree), t, n, seed), Kind.DOUBLY)


def basis(n: int, u: int) -> Floats:
    A = np.eye(n) / n
    for i in range(n):
        A[(i + u) % n, i] += (n - 1) / n
    return A


def test_the_mean_of_all_basis_graphs_is_exact() -> None:
    np.testing.assert_allclose(sum(basis(7, u) for u in range(1, 7)) / 6, 1 / 7, atol=1e-15)


def test_d_equistatic_is_the_mean_of_basis_graphs_drawn_with_replacement() -> None:
    n, M = 6, 9
    one = plan(TopologyOptions(kind="d-equistatic", degree=M), 0, n, 3)
    assert one.offsets is not None
    parts = np.array(one.fractions(0)[1])
    counts = np.rint(parts * M * n / (n - 1))
    np.testing.assert_allclose(parts, counts / M * (n - 1) / n)
    assert counts.sum() == M
    assert counts.max() > 1
    drawn = dict(zip(one.out_neighbours(0), counts, strict=True))
    W = sum(count * basis(n, u) for u, count in drawn.items()) / M
    np.testing.assert_allclose(W_of("d-equistatic", n, seed=3, degree=M), W, atol=1e-15)


@pytest.mark.parametrize("n", [5, 16, 25])
@pytest.mark.parametrize("kind", ["d-equistatic", "u-equistatic", "od-equidyn", "ou-equidyn"])
def test_every_equitopo_matrix_is_doubly_stochastic_and_undirected_ones_symmetric(kind: str, n: int) -> None:
    for t in range(3):
        W = W_of(kind, n, t)
        np.testing.assert_allclose(W.sum(axis=0), 1, atol=1e-14)
        np.testing.assert_allclose(W.sum(axis=1), 1, atol=1e-14)
        if kind.startswith(("u", "ou")):
            np.testing.assert_allclose(W, W.T, atol=0)


@pytest.mark.parametrize(
    ("n", "expected"), [(25, 0.576), (64, 0.631), pytest.param(300, 0.649, marks=pytest.mark.slow)]
)
def test_d_equistatic_has_the_tabulated_sigma2_in_the_median_at_any_size(n: int, expected: float) -> None:
    assert equitopo.basis_count(n) == 2 * math.ceil(math.log(n))
    found = [sigma2(W_of("d-equistatic", n, seed=seed)) for seed in range(21)]
    # Another generator, other draws: the median of 21 scatters by some .02.
    assert float(np.median(found)) == pytest.approx(expected, abs=0.05)


def left(W: Floats, x: Floats) -> float:
    """What a round leaves of the squared distance to the mean."""
    return float(np.sum((W @ x) ** 2) / np.sum(x**2))


def centred(n: int) -> Floats:
    x = np.random.default_rng(4).normal(size=(n, 40))
    centred: Floats = x - x.mean(axis=0)
    return centred


@pytest.mark.parametrize(("n", "M"), [(16, 1), (16, 4), (25, 3)])
def test_a_redrawn_d_equistatic_round_leaves_its_closed_form_on_average(n: int, M: int) -> None:
    options = TopologyOptions(kind="d-equistatic", degree=M, redraw=True)
    x = centred(n)
    found = [left(matrix(plan(options, t, n, 0)), x) for t in range(250)]
    assert np.mean(found) == pytest.approx((1 - 2 / n) / M, rel=0.1)


@pytest.mark.parametrize("n", [8, 15])
def test_a_round_of_od_equidyn_leaves_its_closed_form_on_average(n: int) -> None:
    x = centred(n)
    found = [left(W_of("od-equidyn", n, t), x) for t in range(300)]
    assert np.mean(found) == pytest.approx((n - 1) / (2 * n), rel=0.06)


def test_ou_equidyn_pairs_peers_that_are_equally_far_apart() -> None:
    n = 16
    for t in range(10):
        one = plan(TopologyOptions(kind="ou-equidyn"), t, n, 1)
        assert max(map(len, one.out_edges)) == 1
        hops = {(j - i) % n for i, peers in enumerate(one.out_edges) for j in peers}
        assert hops in [{u, n - u} for u in range(1, n)]
        assert all(one.fractions(i)[1] in ((), (0.5 * (n - 1) / n,)) for i in range(n))
    x = centred(n)
    found = [left(W_of("ou-equidyn", n, t, 2), x) for t in range(300)]
    assert 0.4 < np.mean(found) < 0.7


def test_equitopo_graphs_are_the_same_on_every_node() -> None:
    # Golden: these follow from raw PCG64 words alone.
    assert plan(TopologyOptions(kind="d-equistatic", degree=3), 0, 20, 7).offsets == GOLDEN_STATIC
    assert [plan(TopologyOptions(kind="od-equidyn"), t, 20, 7).offsets for t in range(4)] == GOLDEN_DYN


GOLDEN_STATIC = (5, 9, 10)
GOLDEN_DYN = [(4,), (18,), (15,), (3,)]
