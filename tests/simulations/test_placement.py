"""Where attackers are, and the slowest disagreement of the others."""

import msgspec
import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.gossip.mixing import Kind
from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.topology import matrix, plan
from p2pfl.run import GossipOptions, RunSpec
from p2pfl.simulations.attacks import AttackOptions
from p2pfl.simulations.placement import fiedler, honest_count, placed, slowest
from p2pfl.simulations.scenario import decode

EVERYWHERE = AttackOptions(kind="alie", byzantine=2, placement="everywhere")


def agreement(kind: str, **options: object) -> RunSpec:
    topology = msgspec.convert({"kind": kind, **options}, TopologyOptions)
    return RunSpec(gossip=GossipOptions(topology=topology))


def test_attackers_everywhere_leave_the_honest_graph_and_join_each_of_it() -> None:
    spec = placed(agreement("watts-strogatz", degree=4, p=0.3), EVERYWHERE, 12)
    whole = plan(spec.gossip.topology, 0, 12, 0)
    honest = plan(agreement("watts-strogatz", degree=4, p=0.3).gossip.topology, 0, 10, 0)
    for i in range(10):
        assert whole.in_neighbours(i) == (*honest.in_neighbours(i), 10, 11)
        assert whole.out_neighbours(i) == (*honest.out_neighbours(i), 10, 11)
    assert whole.in_neighbours(10) == whole.out_neighbours(11) == tuple(range(10))
    assert Kind.DOUBLY in whole.kinds


def test_a_directed_graph_stays_directed_and_attackers_hear_and_tell_everybody() -> None:
    whole = plan(placed(agreement("ring", directed=True), EVERYWHERE, 6).gossip.topology, 0, 6, 0)
    assert whole.in_edges == ((3, 4, 5), (0, 4, 5), (1, 4, 5), (2, 4, 5), (0, 1, 2, 3), (0, 1, 2, 3))


def test_members_are_placed_where_the_topology_has_them() -> None:
    spec = agreement("ring")
    assert placed(spec, AttackOptions(kind="alie", byzantine=2), 6) is spec


def test_a_graph_that_changes_cannot_have_attackers_everywhere() -> None:
    for spec in (agreement("one-peer-exponential"), agreement("random-regular", redraw=True)):
        with pytest.raises(ConfigError, match="changes"):
            placed(spec, EVERYWHERE, 10)


def test_somebody_stays_honest() -> None:
    assert honest_count(EVERYWHERE, 3) == 1
    with pytest.raises(ConfigError, match="honest"):
        honest_count(EVERYWHERE, 2)


def test_the_slowest_disagreement_of_a_cycle_is_its_first_harmonic() -> None:
    # Weights 1/3 on a cycle of n: the eigenvalues of L are 2/3 (1 - cos(2 pi k / n)).
    mu, e = fiedler(plan(TopologyOptions(kind="ring"), 0, 10, 0), range(10))
    assert mu == pytest.approx(2 / 3 * (1 - np.cos(2 * np.pi / 10)))
    assert np.linalg.norm(e) == pytest.approx(1)
    assert abs(e.sum()) < 1e-9


def test_mixing_takes_exactly_the_slowest_rows_from_the_slowest_disagreement() -> None:
    p = plan(TopologyOptions(kind="ring"), 0, 8, 0)
    mu, e = fiedler(p, range(8))
    models = np.outer(e, [3.0, -1.0]).astype(np.float32)
    taken = np.stack([slowest(mu, e, models, i) for i in range(8)])
    np.testing.assert_allclose(models - matrix(p, Kind.DOUBLY) @ models, taken, atol=1e-6)


def test_one_honest_peer_disagrees_with_nobody() -> None:
    mu, e = fiedler(plan(TopologyOptions(kind="complete"), 0, 3, 0), [2])
    assert (mu, e.tolist()) == (0.0, [0.0])


def test_who_is_not_honest_is_left_out_of_the_graph() -> None:
    # Without peer 2 the ring of 5 is a path of 4.
    p = plan(TopologyOptions(kind="ring"), 0, 5, 0)
    mu, e = fiedler(p, [3, 4, 0, 1])
    assert mu == pytest.approx(2 / 3 * (1 - np.cos(np.pi / 4)))
    assert np.sign(e[0]) == np.sign(e[1]) == -np.sign(e[2]) == -np.sign(e[3])


def test_each_seed_draws_its_own_graph_for_the_honest_of_a_scenario() -> None:
    table = {
        "gossip": {"topology": {"kind": "watts-strogatz"}},
        "simulation": {"peers": 12, "attack": {"kind": "alie", "byzantine": 2, "placement": "everywhere"}},
    }
    scenario = decode(table, "test", "test")
    edges = [scenario.with_seed(seed).spec.gossip.topology.edges for seed in (0, 1, 0)]
    assert edges[0] == edges[2] != edges[1]
    assert scenario.with_seed(1).with_seed(0).spec == scenario.spec
