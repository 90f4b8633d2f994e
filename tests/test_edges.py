"""Where all sites say whom they trust, everybody sees what the graph of trust allows."""

from __future__ import annotations

from typing import Any

import pytest
from liar import Liar, world_with_a_liar
from oracles import hub_edges
from worlds import agreement, facts, tiny_world

from p2pfl.events import Fact, Kind, Notice
from p2pfl.simulations.world import World

_END_S = 1000.0


def world_of(n: int, publishing: int, **gossip: Any) -> World:
    """Sites 0 to `publishing` - 1 of `n` publish; nobody waits for sites that do not talk."""
    spec = agreement(n, rounds=12, quorum=0.0, gossip={"topology": {"kind": "complete"}, **gossip})
    return tiny_world(n, spec=spec, publish_edges=range(publishing))


def said(world: World, index: int) -> list[Fact]:
    return facts(world, index, "trust graph")


def test_a_graph_that_holds_is_said_once() -> None:
    world = world_of(4, 4)
    assert world.run(until_s=_END_S)
    for i in range(4):
        [fact] = said(world, i)
        assert fact.level == "info"
        assert fact.fields["gap"] == pytest.approx(1)


def test_one_site_that_keeps_its_edges_to_itself_leaves_the_others_with_the_alarm_on_w() -> None:
    world = world_of(4, 3)
    assert world.run(until_s=_END_S)
    # Site 3 itself knows the others' edges and its own.
    assert [len(said(world, i)) for i in range(4)] == [0, 0, 0, 1]
    assert all(world.peer(i).state.neighbours[world.names[3]].edges == "" for i in range(3))


def test_everybody_learns_whom_a_change_of_trust_cuts_off() -> None:
    world = world_of(4, 4)
    world.run(until_s=3.5)
    for peer in (0, 1, 3):
        world.command(2, "set", peer=world.names[peer], accept="deny")
    assert world.run(until_s=_END_S)
    for i in range(4):
        fact = said(world, i)[-1]
        assert fact.level == "warning"
        assert "cannot reach consensus: nothing of the others ever reaches" in fact.fields["text"]
        assert fact.fields["unreached"] == [world.names[2]]
        assert fact.fields["unheard"] == []


def test_a_site_that_shares_with_nobody_is_unheard() -> None:
    world = world_of(3, 3)
    world.run(until_s=1.5)
    for peer in (1, 2):
        world.command(0, "set", peer=world.names[peer], share="deny")
    assert world.run(until_s=_END_S)
    assert said(world, 1)[-1].fields["unheard"] == [world.names[0]]


@pytest.mark.parametrize("averaging", ["push-sum", "push-pull"])
def test_on_a_lopsided_graph_push_pull_is_recommended_to_those_without_it(averaging: str) -> None:
    hub = {"kind": "explicit", "edges": [list(edge) for edge in hub_edges(9)], "directed": True}
    world = world_of(9, 9, topology=hub, averaging={"kind": averaging})
    assert world.run(until_s=_END_S)
    fact = said(world, 4)[-1]
    assert (fact.level == "warning") == (averaging == "push-sum")
    if averaging == "push-sum":
        assert "push-pull" in fact.fields["hint"]
        assert fact.fields["starved"] == [world.names[7], world.names[8]]


@pytest.mark.parametrize("text", ["", "x", "0" * 16, f"{'0' * 16} g 1", f"{'0' * 16} {'f' * 600} 1"])
def test_edges_that_cannot_be_read_are_a_fault(text: str) -> None:
    world = world_with_a_liar()
    world.run(until_s=2.5)
    liar = Liar(world, 0)
    liar.greet(begun=True)
    liar.say(Kind.NOTICE, Notice(code="edges", text=text))
    assert "notice" in {fact.fields["fault"] for fact in facts(world, 0, "fault of a peer")}
    assert liar.victim.neighbours[liar.name].edges == ""
