"""Push-pull among whole peers: it ends on the optimum, and no accident moves that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from liar import Liar, world_with_a_liar
from oracles import hub_edges
from trackers import discord
from worlds import agreement, facts, tiny_world

from p2pfl.events import Kind
from p2pfl.net.link_model import LinkModel
from p2pfl.simulations.world import World

_END_S = 3000.0
# Uneven degrees: where weights differ, push-sum with unlike sites ends beside the optimum.
_DIRECTED = {
    "kind": "explicit",
    "edges": [[0, 1], [0, 2], [1, 2], [2, 3], [3, 0], [3, 4], [4, 0]],
    "directed": True,
}
_PUSH_PULL = {"averaging": {"kind": "push-pull"}}


def world_of(n: int = 5, topology: dict[str, Any] = _DIRECTED, rounds: int = 80, **options: Any) -> World:
    """Site i aims at i, so that the optimum of five is 2."""
    spec = agreement(n, rounds=rounds, gossip={"topology": topology, **_PUSH_PULL})
    return tiny_world(n, spec=spec, **options)


def models(world: World) -> np.ndarray:
    return np.array([world.peer(i).model() for i in range(len(world.machines))])


def agreed(world: World) -> None:
    """The trackers hold the sum of gradients, and the peers one model."""
    apart = discord(world)
    assert apart is not None
    assert apart < 1e-5
    assert np.ptp(models(world), axis=0).max() < 0.01


@pytest.mark.slow
def test_it_ends_on_the_optimum_where_push_sum_ends_beside_it() -> None:
    world = world_of(rounds=120)
    assert world.run(until_s=_END_S)
    np.testing.assert_allclose(models(world), 2.0, atol=1e-3)
    agreed(world)
    spec = agreement(5, rounds=120, gossip={"topology": _DIRECTED})
    beside = tiny_world(5, spec=spec)
    assert beside.run(until_s=_END_S)
    assert np.abs(models(beside) - 2.0).max() > 0.03


@pytest.mark.slow
def test_on_a_hub_graph_no_alarm_is_raised_and_nothing_is_lost() -> None:
    hub = {"kind": "explicit", "edges": [list(edge) for edge in hub_edges(12)], "directed": True}
    world = world_of(12, hub, rounds=200)
    assert world.run(until_s=_END_S)
    np.testing.assert_allclose(models(world), 5.5, atol=0.05)
    assert min(world.peer(i).view().w for i in range(12)) < 0.05
    assert [facts(world, i, "weight low") for i in range(12)] == [[]] * 12
    starved = tiny_world(12, spec=agreement(12, rounds=200, gossip={"topology": hub}))
    assert starved.run(until_s=_END_S)
    assert np.abs(models(starved) - 5.5).max() > 1
    alarms = [fact for i in range(12) for fact in facts(starved, i, "weight low")]
    assert "push-pull" in alarms[0].fields["hint"]


@pytest.mark.slow
def test_loss_and_crashes_move_no_optimum() -> None:
    link = LinkModel(latency_s=(0.0, 2.0), loss=0.2, duplication=0.1, reorder=0.2)
    world = world_of(rounds=150, link=link)
    for k in range(8):
        world.run(until_s=10.0 + 9 * k)
        world.crash_between(k % 5, k % 4)
        world.boot_at(world.now + 3.0, k % 5)
    assert world.run(until_s=_END_S)
    assert {world.peer(i).state.mass.term for i in range(5)} == {0}
    np.testing.assert_allclose(models(world), 2.0, atol=0.02)
    assert discord(world) == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_a_lost_disk_begins_a_new_term_that_ends_on_the_optimum() -> None:
    world = world_of(rounds=200)
    world.run(until_s=20.5)
    world.lose_disk(1)
    world.boot_at(22.0, 1)
    assert world.run(until_s=_END_S)
    terms = {world.peer(i).state.mass.term for i in range(5)}
    assert len(terms) == 1
    assert terms != {0}
    agreed(world)
    np.testing.assert_allclose(models(world), 2.0, atol=1e-3)


@pytest.mark.slow
def test_a_restored_backup_gives_up_its_tracker() -> None:
    world = world_of(rounds=200)
    world.run(until_s=20.5)
    backup = world.machines[1].disk
    world.run(until_s=40.5)
    world.restore(1, backup)
    world.boot_at(42.0, 1)
    assert world.run(until_s=_END_S)
    assert facts(world, 1, "began anew")
    agreed(world)
    np.testing.assert_allclose(models(world), 2.0, atol=1e-3)


@pytest.mark.slow
def test_a_late_joiner_takes_the_model_of_the_others_and_moves_the_optimum() -> None:
    spec = agreement(4, rounds=150, gossip={"topology": {"kind": "complete"}, **_PUSH_PULL})
    world = tiny_world(5, spec=spec, starts_at_s=[0, 0, 0, 0, 50.5])
    world.run(until_s=50.0)
    # Site 4 is a member of the run from the start, but not yet of its sum.
    before = np.array([world.peer(i).model()[0] for i in range(4)])
    np.testing.assert_allclose(before, 1.5, atol=0.03)
    assert world.run(until_s=_END_S)
    assert world.peer(4).view().entered == 0
    agreed(world)
    np.testing.assert_allclose(models(world), 2.0, atol=1e-3)


@pytest.mark.slow
def test_who_leaves_takes_its_gradient_along() -> None:
    world = world_of(topology={"kind": "complete"}, rounds=150)
    world.run(until_s=40.5)
    world.command(4, "leave")
    assert world.run(until_s=_END_S)
    assert world.machines[4].finished == "left"
    np.testing.assert_allclose(models(world)[:4], 1.5, atol=1e-3)
    assert discord(world) == pytest.approx(0, abs=1e-5)


def test_an_auditor_notices_a_tracker_that_vanished() -> None:
    world = world_of()
    world.run(until_s=5.5)
    while not any(machine.peer and machine.peer.view().in_flight for machine in world.machines):
        world.step()
    assert discord(world) == pytest.approx(0, abs=1e-5)
    robbed = next(m for m in world.machines if m.peer and m.peer.view().in_flight)
    assert robbed.peer is not None
    for edge in robbed.peer.state.links.out.values():
        edge.entries = []
    apart = discord(world)
    assert apart is not None
    assert apart > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "tracker", "weights", "reason"),
    [
        (np.nan, 0.0, (0.5, 0.0), "not-finite"),
        (0.0, np.inf, (0.5, 0.0), "not-finite"),
        (1e3, 0.0, (0.5, 0.0), "norm"),
        (0.0, 1e3, (0.5, 0.0), "norm"),
        (0.0, 0.0, (0.5,), "size"),
        (0.0, 0.0, (0.5, -1.0), "weight"),
        (0.0, 0.0, (0.5, 0.5), "weight"),
        (0.0, 0.0, (0.5, 1e300), "weight"),
        (0.0, 0.0, (1e6, 0.0), "weight"),
    ],
)
def test_each_part_of_a_share_is_screened(
    model: float, tracker: float, weights: tuple[float, ...], reason: str
) -> None:
    world = world_with_a_liar(
        gossip={"topology": {"kind": "complete"}, **_PUSH_PULL}, trust={"max_norm": 100.0}, rounds=10
    )
    world.run(until_s=2.5)
    liar = Liar(world, 0)
    liar.greet(begun=True, header={"round": 2})
    body = np.array([model] * 3 + [tracker] * 3, np.float32).view(np.uint8)
    liar.give(Kind.SHARE, 1, 0.0, body, round=2, weights=weights)
    world.run(until_s=300)
    assert reason in {fact.fields["fault"] for fact in facts(world, 0, "fault of a peer")}
    assert np.abs(world.peer(0).model()).max() < 10
