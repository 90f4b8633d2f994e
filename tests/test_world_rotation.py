"""A member under a new key: what the old one held is handed over, or written off, and never counted twice."""

from __future__ import annotations

import pytest
from worlds import agreement, facts, tiny_world

from p2pfl.run import run_id
from p2pfl.simulations.machine import identities
from p2pfl.simulations.world import World
from p2pfl.trust import admission, membership
from p2pfl.trust.certificates import countersign, encode_certificate, issue_certificate
from p2pfl.trust.identity import Identity
from p2pfl.trust.relations import Level
from p2pfl.trust.successions import encode_succession, issue_succession

# Three founders, a member, and the key that will stand in the member's place.
KEYS = identities(5, 0)
OLD, NEW = 3, 4
SPARE = Identity(bytes([7]) * 32)
SPEC = agreement(4, rounds=40, quorum=0.0, gossip={"topology": {"kind": "complete"}})
RUN = run_id(SPEC)


def world_of() -> World:
    one = issue_certificate(
        KEYS[0], run=RUN, subject=KEYS[OLD].peer_id, now=0.0, nonce=bytes(16), recovery=SPARE.peer_id
    )
    begin = membership.genesis(RUN, [key.peer_id for key in KEYS[:3]], 2)
    begin, _ = admission.admit(begin, countersign(one, KEYS[1]), 0.0)
    return tiny_world(5, spec=SPEC, begin=begin, starts_at_s=[0.0] * 4 + [1e9])


def replace_key(world: World, signer: Identity) -> None:
    """What the lobby of peer 0 does when the new key presents itself there."""
    made = issue_succession(signer, KEYS[NEW], run=RUN, old=KEYS[OLD].peer_id, now=world.now)
    world.command(0, "succeed", succession=encode_succession(made))


def test_the_old_key_hands_its_mass_over_and_the_new_one_joins_without_loss() -> None:
    world = world_of()
    world.run(until_s=4.5)
    world.command(0, "set", peer=KEYS[OLD].peer_id, share="limited")
    world.command(OLD, "leave")
    world.run(until_s=12.0)
    assert world.machines[OLD].finished == "left"
    # The same home, another key.
    world.machines[NEW].disk, log = world.machines[OLD].disk, world.peer(OLD).state.log
    replace_key(world, KEYS[OLD])
    world.boot(NEW)
    assert world.peer(NEW).state.log.rows >= log.rows > 0
    world.run(until_s=300.0)
    assert [world.machines[i].finished for i in (0, 1, 2, NEW)] == ["done"] * 4
    assert world.peer(NEW).view().w > 0
    held = sum(world.peer(i).view().w for i in (0, 1, 2, NEW))
    assert held == pytest.approx(4, abs=1e-9)
    assert world.mass().error < 1e-12
    assert KEYS[NEW].peer_id in world.peer(1).view().members
    assert KEYS[OLD].peer_id not in world.peer(1).view().members
    # What a site decided of the old key holds of the new one.
    assert world.peer(0).state.consortium.relations.share_with == {KEYS[NEW].peer_id: Level.LIMITED}
    # The old key's last words may come when it is replaced already.
    faulty = {fact.fields["peer"] for i in range(3) for fact in facts(world, i, "fault of a peer")}
    assert faulty <= {KEYS[OLD].peer_id}


def test_with_the_recovery_key_the_mass_of_the_lost_one_is_written_off_and_the_old_key_is_refused() -> None:
    world = world_of()
    world.run(until_s=4.5)
    world.crash(OLD)
    held_before = sum(world.peer(i).view().w + world.peer(i).view().in_flight for i in range(3))
    assert held_before < 4
    replace_key(world, SPARE)
    world.boot(NEW)
    world.run(until_s=10.0)
    # Whoever has the old key and its disk is not let in again, by anybody.
    world.boot(OLD)
    world.run(until_s=300.0)
    assert [world.machines[i].finished for i in (0, 1, 2, NEW)] == ["done"] * 4
    assert not any(world.network.session(OLD, i) for i in (0, 1, 2, NEW))
    for i in range(3):
        (gone,) = facts(world, i, "member gone")
        assert (gone.fields["peer"], gone.fields["standing"]) == (KEYS[OLD].peer_id, "revoked")
    living = [world.peer(i).view() for i in (0, 1, 2, NEW)]
    expected = sum(view.entered - view.written_off for view in living)
    assert sum(view.w for view in living) == pytest.approx(expected, rel=1e-12)
    assert expected < 4


def test_a_key_that_is_replaced_while_it_runs_ends_its_node() -> None:
    world = world_of()
    world.run(until_s=4.5)
    replace_key(world, SPARE)
    world.run(until_s=300.0)
    assert world.machines[OLD].finished == "revoked"
    assert [world.machines[i].finished for i in range(3)] == ["done"] * 3


def test_founders_too_may_admit_the_new_key_and_revoke_the_old() -> None:
    world = world_of()
    world.run(until_s=4.5)
    one = issue_certificate(KEYS[0], run=RUN, subject=KEYS[NEW].peer_id, now=4.0, nonce=bytes(16))
    world.command(0, "admit", certificate=encode_certificate(countersign(one, KEYS[1])))
    world.command(OLD, "leave")
    world.run(until_s=12.0)
    world.boot(NEW)
    world.run(until_s=300.0)
    assert world.machines[NEW].finished == "done"
    held = sum(world.peer(i).view().w for i in (0, 1, 2, NEW))
    assert held == pytest.approx(4, abs=1e-9)
