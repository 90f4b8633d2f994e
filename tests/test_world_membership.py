"""Membership in motion: renewals and expiry, and what founders can do while the network is cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from worlds import agreement, facts, tiny_world

from p2pfl.ids import PeerId
from p2pfl.run import run_id
from p2pfl.simulations.machine import identities
from p2pfl.simulations.network import Partition
from p2pfl.simulations.world import World
from p2pfl.trust import admission, membership, voting
from p2pfl.trust.certificates import (
    Certificate,
    countersign,
    encode_certificate,
    encode_revocation,
    issue_certificate,
    issue_revocation,
)

DAY = 86_400
# Five founders and a guest; three founders are a quorum.  The guest has the last number here.
KEYS = identities(6, 0)
GUEST = 5
SPEC = agreement(6, rounds=60, quorum=0.0, gossip={"topology": {"kind": "complete"}})
RUN = run_id(SPEC)
# The minority has two founders, the majority three and the guest.
CUT = Partition(start_s=3.5, end_s=40.0, groups=[[0, 1], [2, 3, 4, 5]])


def certificate(
    *founders: int, of: int = GUEST, now: float = 0.0, lasts_s: float = 90.0 * DAY
) -> Certificate:
    one = issue_certificate(
        KEYS[founders[0]],
        run=RUN,
        subject=KEYS[of].peer_id,
        now=now,
        nonce=bytes(16),
        use_within_s=1.0,
        lasts_s=lasts_s,
    )
    for founder in founders[1:]:
        one = countersign(one, KEYS[founder])
    return one


def world_of(*, lasts_s: float = 90.0 * DAY, partitions: Sequence[Partition] = ()) -> World:
    begin = membership.genesis(RUN, [key.peer_id for key in KEYS[:5]], 3)
    begin, _ = admission.admit(begin, certificate(0, 1, 2, lasts_s=lasts_s), 0.0)
    return tiny_world(6, spec=SPEC, begin=begin, partitions=partitions)


def renew(world: World, founder: int, *, lasts_s: float) -> None:
    signed = voting.renew(
        world.peer(founder).state.consortium.membership,
        world.machines[founder].identity,
        KEYS[GUEST].peer_id,
        now=world.now,
        lasts_s=lasts_s,
        nonce=bytes([founder]) * 16,
    )
    world.command(founder, "admit", certificate=encode_certificate(signed))


def standings(world: World, of: PeerId) -> list[str]:
    return [world.peer(i).state.consortium.standing(of, world.now) for i in range(5)]


@pytest.mark.slow
def test_a_quorum_renews_a_certificate_and_the_member_never_leaves() -> None:
    world = world_of(lasts_s=20.0)
    world.run(until_s=5.5)
    renew(world, 0, lasts_s=1000.0)
    world.run(until_s=6.5)
    # The second and third sign what the first began, each at its own node.
    assert len(world.peer(1).state.consortium.membership.pending) == 1
    renew(world, 1, lasts_s=1000.0)
    world.run(until_s=7.5)
    renew(world, 2, lasts_s=1000.0)
    assert world.run(until_s=300.0)
    assert world.now > 25.0
    assert [machine.finished for machine in world.machines] == ["done"] * 6
    assert not any(facts(world, i, "member gone") for i in range(6))
    assert world.mass().sum == pytest.approx(6, abs=1e-9)
    assert world.mass().expected == 6


@pytest.mark.slow
def test_without_a_renewal_membership_ends_by_each_nodes_own_clock_and_the_books_are_closed() -> None:
    world = world_of(lasts_s=12.0)
    world.run(until_s=20.0)
    assert standings(world, KEYS[GUEST].peer_id) == ["expired"] * 5
    assert {fact.fields["standing"] for i in range(5) for fact in facts(world, i, "member gone")} == {
        "expired"
    }
    assert world.run(until_s=300.0) or not world.machines[GUEST].finished
    assert [world.machines[i].finished for i in range(5)] == ["done"] * 5


def test_a_certificate_s_end_is_announced_to_its_member_and_to_founders_once() -> None:
    world = world_of(lasts_s=24.0)
    # The last sixth of 24 s.
    world.run(until_s=19.0)
    assert not any(facts(world, i, "certificate expires soon") for i in range(6))
    world.run(until_s=23.5)
    said = [facts(world, i, "certificate expires soon") for i in range(6)]
    assert [len(found) for found in said] == [1] * 6
    assert {found[0].fields["peer"] for found in said} == {KEYS[GUEST].peer_id}


def test_two_renewals_on_two_sides_of_a_cut_merge_into_the_later() -> None:
    # Each side can renew alone here: the majority by its own founders, the minority by votes it had before.
    world = world_of(lasts_s=30.0, partitions=[CUT])
    world.run(until_s=3.2)
    earlier = certificate(0, 1, 2, now=3.0, lasts_s=500.0)
    later = certificate(2, 3, 4, now=3.0, lasts_s=900.0)
    world.run(until_s=10.0)
    world.command(0, "admit", certificate=encode_certificate(earlier))
    world.command(3, "admit", certificate=encode_certificate(later))
    world.run(until_s=20.0)
    held = [world.peer(i).state.consortium.membership.certificates[KEYS[GUEST].peer_id] for i in range(6)]
    assert [one == later for one in held] == [False, False, True, True, True, True]
    world.run(until_s=60.0)
    held = [world.peer(i).state.consortium.membership.certificates[KEYS[GUEST].peer_id] for i in range(6)]
    assert held == [later] * 6
    assert len({world.peer(i).state.consortium.digest() for i in range(6)}) == 1


def test_a_minority_cut_off_can_neither_admit_nor_revoke_and_its_votes_count_when_it_is_back() -> None:
    newcomer = identities(7, 1)[6].peer_id
    world = world_of(partitions=[CUT])
    world.run(until_s=5.0)
    victim = KEYS[4].peer_id
    invited = issue_certificate(KEYS[0], run=RUN, subject=newcomer, now=5.0, nonce=bytes(16))
    world.command(0, "admit", certificate=encode_certificate(invited))
    world.run(until_s=6.0)
    world.command(1, "admit", certificate=encode_certificate(countersign(invited, KEYS[1])))
    for i in (0, 1):
        vote = issue_revocation(KEYS[i], run=RUN, subject=victim, reason="us two", now=5.0)
        world.command(i, "ban", peer=victim, revocation=encode_revocation(vote))
    world.run(until_s=30.0)
    inside = world.peer(1).state.consortium.membership
    assert len(inside.pending[membership.key_of(invited)].signatures) == 2
    assert membership.standing(inside, newcomer, world.now) == "stranger"
    assert membership.standing(inside, victim, world.now) == "member"
    assert standings(world, newcomer) == ["stranger"] * 5
    # The cut heals; the third vote, given elsewhere to what has arrived, is the quorum.
    world.run(until_s=50.0)
    there = world.peer(2).state.consortium.membership
    open_ = there.pending[membership.key_of(invited)]
    assert sorted(open_.signatures) == sorted(KEYS[i].peer_id for i in (0, 1))
    world.command(2, "admit", certificate=encode_certificate(countersign(open_, KEYS[2])))
    vote = issue_revocation(KEYS[3], run=RUN, subject=victim, reason="and a third", now=50.0)
    world.command(3, "ban", peer=victim, revocation=encode_revocation(vote))
    world.run(until_s=52.0)
    assert [standings(world, newcomer)[i] for i in range(4)] == ["member"] * 4
    assert [standings(world, victim)[i] for i in range(4)] == ["revoked"] * 4


def test_the_majority_admits_while_it_is_cut_off_from_the_rest() -> None:
    newcomer = identities(7, 1)[6].peer_id
    world = world_of(partitions=[CUT])
    world.run(until_s=5.0)
    invited = issue_certificate(KEYS[2], run=RUN, subject=newcomer, now=5.0, nonce=bytes(16))
    for i in (3, 4):
        invited = countersign(invited, KEYS[i])
    world.command(4, "admit", certificate=encode_certificate(invited))
    world.run(until_s=10.0)
    assert standings(world, newcomer) == ["stranger", "stranger", "member", "member", "member"]
    world.run(until_s=50.0)
    assert standings(world, newcomer) == ["member"] * 5
