"""Capped shares in a world: honest mass, liars about it, thieves of it, and the alarm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from tiny_learner import tiny_of_many_rows
from worlds import agreement, facts, tiny_world

from p2pfl import run
from p2pfl.errors import ConfigError
from p2pfl.gossip.links import Links
from p2pfl.net.link_model import LinkModel
from p2pfl.peer import Peer
from p2pfl.run import RunSpec
from p2pfl.simulations.attacks import AttackOptions
from p2pfl.simulations.byzantine import ByzantinePeer
from p2pfl.simulations.mass_audit import audit, books_on
from p2pfl.simulations.world import World

CAPPED: dict[str, Any] = {"aggregator": {"kind": "capped-share"}}
COMPLETE: dict[str, Any] = {"topology": {"kind": "complete"}}


def spec_of(n: int, topology: str = "complete", **options: Any) -> RunSpec:
    return agreement(n, gossip={"topology": {"kind": topology}}, **{"trust": CAPPED, **options})


def attacked(
    n: int, liars: int, attack: AttackOptions, *, thieves: bool = False, link: LinkModel | None = None
) -> World:
    """A world of `n` on a complete graph, the last `liars` of whom attack; thieves keep all that they get."""
    world = tiny_world(n, spec=spec_of(n, rounds=12, quorum=0.0), aims=[1.0] * n, link=link or LinkModel())
    names = {m.name for m in world.machines[n - liars :]}

    def around(peer: Peer) -> ByzantinePeer:
        wrapped = ByzantinePeer(peer, attack, is_byzantine=lambda name: name in names)
        if thieves:
            peer.state.links = Greedy()
        return wrapped

    for machine in world.machines[n - liars :]:
        machine.site = _around(machine.site, around)
    return world


def _around(site: Any, around: Callable[[Peer], Any]) -> Any:
    return replace(site, around=around)


class Greedy(Links):
    """Books that have room for everything."""

    def room(self, peer: str, credit: float) -> float:
        return math.inf


def run_watched(world: World, honest: int) -> tuple[float, float]:
    """Run to the end of the honest; the most and the least mass that they had together."""
    most, least = 0.0, float(honest)
    while not all(m.finished for m in world.machines[:honest]):
        world.step()
        assert world.now < 1e4
        if all(m.peer and m.peer.state.begun for m in world.machines[:honest]):
            mass = audit(map(books_on, world.machines[:honest]))
            assert mass.error <= 1e-9
            most, least = max(most, mass.sum), min(least, mass.sum)
    return most, least


@pytest.mark.parametrize("topology", ["complete", "ring"])
def test_without_a_lie_on_a_regular_graph_it_is_push_sum_to_the_bit(topology: str) -> None:
    far = {"aggregator": {"kind": "capped-share", "tau": 1e9}}
    # In step: who is ahead of a neighbour is asked to wait with its first share.
    link = LinkModel(latency_s=(0.01, 0.01))
    capped = tiny_world(5, spec=spec_of(5, topology, trust=far), link=link)
    plain = tiny_world(5, spec=spec_of(5, topology, trust={}), link=link)
    for world in (capped, plain):
        assert world.run(until_s=1e4)
    for i in range(5):
        np.testing.assert_array_equal(capped.peer(i).model(), plain.peer(i).model())
        assert capped.peer(i).state.mass.w == plain.peer(i).state.mass.w


def test_where_degrees_differ_no_share_is_cut_and_weights_stay_equal() -> None:
    world = tiny_world(6, spec=spec_of(6, "star", closing_rounds=40), link=LinkModel(latency_s=(0.01, 0.01)))
    assert world.run(until_s=1e4)
    assert world.mass().error <= 1e-9
    assert not any(e.taken or e.refused for i in range(6) for e in world.peer(i).state.links.into.values())
    # Plain push-sum leaves the hub with 3 of 6.
    for i in range(6):
        assert world.peer(i).state.mass.w == pytest.approx(1.0, abs=1e-9)
    models = np.stack([world.peer(i).model() for i in range(6)])
    assert np.ptp(models, axis=0).max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("latency", [0.0, 0.3])
@pytest.mark.parametrize("weight", [0.0, -1.0, 1e6, math.nan, 3.0, 1e-3, 1e-12])
def test_no_false_weight_makes_the_honest_hold_more_than_they_began_with(
    weight: float, latency: float
) -> None:
    link = LinkModel(latency_s=(0.0, latency))
    attack = AttackOptions(kind="weight-lie", byzantine=2, weight=weight)
    world = attacked(6, 2, attack, thieves=True, link=link)
    most, least = run_watched(world, 4)
    assert most <= 4 + 1e-8
    # Two shares of 1/6 on each of eight edges at most are lost.
    assert least >= 4 - 8 * 2 / 6 - 1e-9
    honest = attacked(6, 2, AttackOptions(kind="none", byzantine=2), link=link)
    run_watched(honest, 4)
    if weight == 3.0:
        return  # They grow too heavy to learn, and their models are mixed like anybody's.
    for i in range(4):
        np.testing.assert_allclose(world.peer(i).model(), honest.peer(i).model(), atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [3.0, 100.0])
def test_liars_that_refuse_what_they_are_given_get_one_share_ahead_and_never_beyond_all_there_is(
    weight: float,
) -> None:
    # The liar inside is an honest peer that believes its own books, and refuses accordingly.
    world = attacked(6, 2, AttackOptions(kind="weight-lie", byzantine=2, weight=weight))
    most, _ = run_watched(world, 4)
    assert 4 < most <= 4 + 8 / 6 + 1e-8 < 6


def test_plain_push_sum_holds_more_under_the_same_lie() -> None:
    world = tiny_world(6, spec=spec_of(6, trust={}, rounds=12), aims=[1.0] * 6)
    attack = AttackOptions(kind="weight-lie", byzantine=2, weight=3.0)
    names = {m.name for m in world.machines[4:]}
    around = partial(ByzantinePeer, attack=attack, is_byzantine=lambda name: name in names)
    for machine in world.machines[4:]:
        machine.site = _around(machine.site, around)
    most, _ = run_watched(world, 4)
    assert most > 5


def test_thieves_get_two_shares_an_edge_and_the_alarm_names_them() -> None:
    attack = AttackOptions(kind="silent", byzantine=3)
    world = attacked(5, 3, attack, thieves=True)
    _, least = run_watched(world, 2)
    assert least >= 2 - 6 * 2 / 5 - 1e-9
    for i in range(2):
        [alarm] = facts(world, i, "mass drained")
        assert set(alarm.fields["debtors"]) == {m.name for m in world.machines[2:]}
        assert alarm.fields["weight0"] == 1.0
        given = [world.peer(i).state.links.out[m.name] for m in world.machines[2:]]
        # Shares grow smaller with the weight, so more than two may fit into two of the first.
        assert all(0.2 < edge.sent_w <= 0.4 + 1e-9 for edge in given)


@pytest.mark.slow
def test_one_thief_among_many_raises_no_alarm() -> None:
    world = attacked(6, 1, AttackOptions(kind="silent", byzantine=1), thieves=True)
    run_watched(world, 5)
    assert all(facts(world, i, "mass drained") == [] for i in range(5))


def test_a_quarantined_neighbour_is_given_nothing_more() -> None:
    world = tiny_world(4, spec=spec_of(4, rounds=10))
    while not all(m.peer and m.peer.state.round >= 3 for m in world.machines):
        world.step()
    world.command(0, "set", peer=world.names[3], accept="quarantine")
    sent = world.peer(0).state.links.out[world.names[3]].sent
    assert world.run(until_s=1e4)
    assert world.peer(0).state.links.out[world.names[3]].sent == sent
    assert world.peer(0).state.links.out[world.names[1]].sent > sent + 5
    assert world.mass().error <= 1e-9


def test_a_peer_that_lost_its_disk_is_lent_mass_and_takes_part_again() -> None:
    world = tiny_world(4, spec=spec_of(4, rounds=14))
    while not all(m.peer and m.peer.state.round >= 3 for m in world.machines):
        world.step()
    world.lose_disk(2)
    world.boot(2)
    assert world.run(until_s=1e4)
    assert world.mass().error <= 1e-9
    assert world.peer(2).state.mass.w > 0.05
    models = np.stack([world.peer(i).model() for i in range(4)])
    assert np.ptp(models, axis=0).max() < 0.5


@pytest.mark.parametrize(
    ("gossip", "says"),
    [
        ({"topology": {"kind": "exponential"}}, "who sends also hears"),
        ({"topology": {"kind": "ring", "directed": True}}, "who sends also hears"),
        ({"topology": {"kind": "explicit", "edges": [[0, 1]], "directed": True}}, "who sends also hears"),
        ({**COMPLETE, "averaging": {"kind": "d-psgd"}}, "push-sum"),
    ],
)
def test_what_has_no_way_back_is_refused(gossip: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run.decode({"gossip": gossip, "trust": CAPPED}, "test")


@pytest.mark.parametrize(
    ("options", "says"), [({"m": 2}, "takes no m"), ({"tau": 0.0}, "distance"), ({"tau": -1.0}, "distance")]
)
def test_it_takes_a_radius_and_nothing_else(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run.decode({"gossip": COMPLETE, "trust": {"aggregator": {"kind": "capped-share", **options}}}, "test")


@pytest.mark.slow
def test_where_sites_weigh_differently_shares_are_taken_in_part_and_weights_stay() -> None:
    spec = spec_of(5, weights="samples", closing_rounds=80)
    world = tiny_world(5, spec=spec, factory=tiny_of_many_rows, link=LinkModel(latency_s=(0.01, 0.01)))
    assert world.run(until_s=1e4)
    peers = [world.peer(i).state for i in range(5)]
    assert len({state.nominal for state in peers}) > 1
    assert any(edge.taken for state in peers for edge in state.links.into.values())
    for state in peers:
        assert state.mass.w == pytest.approx(state.nominal, rel=0.1)
    assert world.mass().error <= 1e-9
    models = np.stack([world.peer(i).model() for i in range(5)])
    assert np.ptp(models, axis=0).max() < 0.1
