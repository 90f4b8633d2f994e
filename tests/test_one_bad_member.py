"""One member with a good key cannot ruin a run: what it claims costs others at most a deadline."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from liar import Liar, world_with_a_liar
from worlds import agreement, facts, tiny_world

from p2pfl.events import Commit, Kind, Message, Received, Roster, Send
from p2pfl.gossip.links import WINDOW
from p2pfl.net import discovery
from p2pfl.simulations.world import World

HONEST = range(3)


def body_of(liar: Liar) -> np.ndarray:
    return np.zeros(liar.victim.mass.body_bytes, np.uint8)


def lie_to_all(world: World, at_s: float, **claim: object) -> None:
    for i in HONEST:
        world.at(at_s, i, partial(Liar(world, i).greet, **claim))  # type: ignore[arg-type]


def models(world: World) -> np.ndarray:
    return np.array([world.peer(i).model() for i in HONEST])


@pytest.mark.parametrize("counted", [False, True])
def test_one_claim_that_the_run_has_begun_is_not_believed(counted: bool) -> None:
    world = world_with_a_liar()
    lie_to_all(world, 0.001, begun=True, counted=counted)
    world.run(until_s=300)
    assert [world.peer(i).state.links.entered for i in HONEST] == [1.0] * 3
    # Sites 0, 1 and 2 aim at 0, 1 and 2, and the untrained model is 0.
    assert models(world).min() > 0.2


def test_a_claim_to_remember_more_of_a_node_that_never_restarted_is_a_fault() -> None:
    world = world_with_a_liar()
    lie_to_all(world, 3.5, begun=True, absorbed=1)
    world.run(until_s=300)
    assert [world.peer(i).state.rebirths for i in HONEST] == [0] * 3
    assert all(
        "rollback-claim" in {f.fields["fault"] for f in facts(world, i, "fault of a peer")} for i in HONEST
    )
    assert world.mass().error <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("w", [5e-324, 1e-40, 0.0, -1.0, 1e6, float("nan"), float("inf")])
def test_no_weight_upsets_a_peer_that_has_none(w: float) -> None:
    world = world_with_a_liar(5, gossip={"topology": {"kind": "complete"}})
    world.run(until_s=4.2)
    world.lose_disk(0)
    world.boot_at(4.5, 0)
    world.run(until_s=5.0)
    liar = Liar(world, 0)
    liar.greet(begun=True, header={"round": 4})
    world.run(until_s=12.0)
    liar.give(Kind.SHARE, 1, w, body_of(liar), round=4)
    world.run(until_s=300)
    assert all(np.isfinite(world.peer(i).model()).all() for i in range(4))
    assert "weight" in {fact.fields["fault"] for fact in facts(world, 0, "fault of a peer")}


def test_where_models_travel_as_states_a_share_is_a_fault_and_enters_nothing() -> None:
    world = world_with_a_liar(gossip={"topology": {"kind": "complete"}, "averaging": {"kind": "d-psgd"}})
    world.run(until_s=2.5)
    liar = Liar(world, 0)
    liar.greet(begun=True, header={"round": 2})
    huge = np.full(3, 1e4, np.float32).view(np.uint8)
    liar.give(Kind.SHARE, 1, 15.9, huge, round=2)
    world.run(until_s=300)
    assert np.abs(models(world)).max() < 10
    assert "kind" in {fact.fields["fault"] for fact in facts(world, 0, "fault of a peer")}


def test_a_member_has_a_window_of_bodies_under_way_and_no_more() -> None:
    world = world_with_a_liar(gossip={"topology": {"kind": "complete"}, "averaging": {"kind": "d-psgd"}})
    world.run(until_s=2.5)
    liar = Liar(world, 0)
    liar.greet(begun=True, header={"round": 2})
    for number in range(1000):
        liar.offer(Kind.STATE, number, 0.0, body_of(liar), round=number)
    assert len(liar.victim.neighbours[liar.name].fetching) <= WINDOW


def test_a_member_that_keeps_moving_costs_no_commit_and_few_words() -> None:
    world = world_with_a_liar(rounds=6)
    world.run(until_s=1.5)
    liar = Liar(world, 0)
    liar.greet(begun=True)
    commits = sends = 0
    for k in range(200):
        record = discovery.sign_record(
            liar.name,
            (f"/ip4/127.0.0.1/tcp/{4000 + k}",),
            world.now + 1e-3 * k,
            partial(liar.identity.sign, b""),
        )
        roster = Roster(addresses=(discovery.encode_record(record),))
        message = Message(header=liar.header(Kind.ROSTER), body=roster)
        effects = world.peer(0).handle(Received(peer=liar.name, message=message), world.now)
        commits += sum(isinstance(effect, Commit) for effect in effects)
        sends += sum(isinstance(effect, Send) for effect in effects)
    assert commits == 0
    assert sends <= 2 * (16 + 4 * 4)


def test_one_voice_alone_cannot_end_a_run() -> None:
    world = world_with_a_liar(rounds=50, deadline_s=8.0)
    world.run(until_s=5.3)
    world.crash(1)
    world.crash(2)
    Liar(world, 0).greet(begun=True, header={"round": 2**40})
    world.boot_at(30.0, 1)
    world.boot_at(30.0, 2)
    world.run(until_s=3000)
    assert [world.machines[i].finished for i in HONEST] == ["done"] * 3
    assert world.mass().error <= 1e-12
    assert np.ptp(models(world), axis=0).max() < 0.5


def test_those_who_stay_may_hold_the_mass_of_all_who_left() -> None:
    n = 12
    spec = agreement(n, rounds=60, gossip={"topology": {"kind": "complete"}})
    world = tiny_world(n, spec=spec)
    for i in range(2, n):
        world.at(3.0 + 0.6 * i, i, partial(world.command, i, "leave"))
    assert world.run(until_s=400)
    assert [machine.finished for machine in world.machines] == ["done"] * 2 + ["left"] * (n - 2)
    assert sum(world.peer(i).state.mass.w for i in (0, 1)) == pytest.approx(n)
    assert [facts(world, i, "fault of a peer") for i in (0, 1)] == [[], []]


def test_a_wish_to_leave_or_to_pause_survives_a_crash() -> None:
    world = tiny_world(3, spec=agreement(3, rounds=30))
    world.run(until_s=4.2)
    world.command(0, "leave")
    world.command(1, "pause")
    for i in (0, 1):
        world.crash(i)
        world.boot_at(world.now + 0.5, i)
    world.run(until_s=60)
    assert world.machines[0].finished == "left"
    assert world.peer(1).state.phase.value == "paused"
