"""What the window of unresolved shares is for, and what becomes of mass without it all."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
from worlds import agreement, facts, tiny_world

from p2pfl.gossip import links, topology
from p2pfl.gossip.options import TopologyOptions


@pytest.mark.parametrize(("window", "shares"), [(1, 10), (2, 20)])
def test_with_a_window_of_one_a_static_edge_rests_every_second_round(
    monkeypatch: pytest.MonkeyPatch, window: int, shares: int
) -> None:
    monkeypatch.setattr(links, "WINDOW", window)
    world = tiny_world(4, spec=agreement(4, rounds=20, closing_rounds=0))
    assert world.run(until_s=1000)
    for i in range(4):
        assert len(facts(world, i, "round committed")) == 20
        for edge in world.peer(i).state.links.out.values():
            assert edge.sent in (0, shares)
    assert world.mass().sum == pytest.approx(4, abs=1e-12)


def test_naive_push_sum_loses_nearly_all_its_mass_to_a_third_of_loss() -> None:
    plan = topology.plan(TopologyOptions(), 0, 4, 0)
    x = np.arange(4.0)[:, None]
    _, w = oracles.push_sum_lossy(plan.out_edges, x, 0.3, 40, np.random.default_rng(0))
    assert w.sum() < 0.01


@pytest.mark.slow
def test_a_fair_weight_raises_no_alarm_however_many_neighbours_it_is_shared_among() -> None:
    spec = agreement(24, rounds=4, gossip={"topology": {"kind": "complete"}})
    world = tiny_world(24, spec=spec)
    assert world.run(until_s=1000)
    assert facts(world, 0, "round committed")[1].fields["w"] < 0.05
    assert [facts(world, i, "weight low") for i in range(24)] == [[]] * 24
