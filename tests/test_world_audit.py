"""Audit logs and statements of whole peers: what is decided, what neighbours hold, who can prove what."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from liar import Liar, world_with_a_liar
from logs import Logs
from worlds import agreement, facts, tiny_world

from p2pfl import witness
from p2pfl.errors import RemoteError
from p2pfl.events import Kind, Message, Notice, Received, Statement
from p2pfl.net.link_model import LinkModel
from p2pfl.net.messages import seal
from p2pfl.simulations.world import World
from p2pfl.trust import audit
from p2pfl.trust.decisions import Row, verify
from p2pfl.trust.envelope import signer_of


def absorbed(rows: list[Row], peer: str) -> float:
    return sum(r.decision.weight for r in rows if r.decision.type == "share" and r.decision.peer == peer)


def test_every_share_that_entered_is_a_row_and_the_head_is_on_the_disk() -> None:
    world = tiny_world(3, spec=agreement(3, rounds=5))
    logs = Logs(world)
    assert world.run(until_s=100)
    for i, name in enumerate(world.names):
        rows, ledger = logs.rows(i), logs.on_disk(i)
        found = verify(rows, ledger.run)  # type: ignore[arg-type]
        assert (found.fault, found.last, found.head) == ("", ledger.log.rows, ledger.log.hash)
        for other in set(world.names) - {name}:
            assert absorbed(rows, other) == pytest.approx(ledger.into[other].absorbed_w, abs=1e-12)
            numbers = [r.decision.seq for r in rows if r.decision.peer == other]
            assert numbers == list(range(1, ledger.into[other].absorbed + 1))


def test_a_neighbour_holds_the_log_s_head_in_a_signed_statement() -> None:
    world = tiny_world(3, spec=agreement(3, rounds=5), crypto=True)
    logs = Logs(world)
    assert world.run(until_s=100)
    for i, name in enumerate(world.names):
        held = [witness.verified(witness.signed_in(f)) for f in logs.frames]
        heads = {one.log_head for one in held if one.sender == name} - {b""}
        found = verify(logs.rows(i), logs.on_disk(i).run, heads)  # type: ignore[arg-type]
        assert set(found.found) == heads
        assert len(heads) >= 5
        last = audit.decode_statement(logs.on_disk(i).statement)
        for j in {0, 1, 2} - {i}:
            (kept,) = (f for p, f in logs.on_disk(j).witnessed.items() if p == name)
            assert witness.statement_in(kept) == logs.on_disk(i).statement
            assert last.log_head in heads


def test_what_a_site_decides_about_others_is_a_row() -> None:
    world = tiny_world(3, spec=agreement(3, rounds=5))
    logs = Logs(world)
    world.run(until_s=1.5)
    world.command(1, "set", peer=world.names[0], accept="deny")
    world.command(1, "set", peer=world.names[0], accept="normal")
    world.command(1, "ban", peer=world.names[2])
    world.command(1, "forget", peer=world.names[2])
    assert world.run(until_s=100)
    said = [(r.decision.type, r.decision.peer, r.decision.verdict) for r in logs.rows(1)]
    decided = [row for row in said if row[0] == "level"]
    assert decided == [
        ("level", world.names[0], "accept-deny"),
        ("level", world.names[0], "accept-normal"),
        ("level", world.names[2], "banned"),
        ("level", world.names[2], "default"),
    ]


def test_a_refused_share_is_a_row_that_says_why() -> None:
    world = tiny_world(3, spec=agreement(3, rounds=5), link=LinkModel(latency_s=(0.1, 0.1)))
    logs = Logs(world)
    # Its first share is on its way.
    world.run(until_s=1.15)
    world.command(1, "set", peer=world.names[0], accept="deny")
    assert world.run(until_s=100)
    refused = [r.decision for r in logs.rows(1) if r.decision.verdict == "not-accepted"]
    assert {(d.peer, d.weight, d.rule) for d in refused} == {(world.names[0], 0.0, "screening")}


def test_a_model_that_was_mixed_by_the_plan_is_a_row_with_the_plan_s_weight() -> None:
    spec = agreement(3, rounds=5, gossip={"averaging": {"kind": "d-psgd"}, "topology": {"kind": "complete"}})
    world = tiny_world(3, spec=spec)
    logs = Logs(world)
    assert world.run(until_s=100)
    rows = [r.decision for r in logs.rows(0)]
    assert {(d.type, d.rule, d.verdict, d.distance) for d in rows} == {("state", "d-psgd", "mixed", None)}
    assert [d.weight for d in rows] == pytest.approx([1 / 3] * len(rows))
    # Of the round before, by both neighbours, in every round but the first.
    assert [(d.round, d.seq) for d in rows] == [(r, r) for r in range(1, 7) for _ in range(2)]


def test_what_a_robust_rule_made_of_each_model_is_a_row_with_weight_and_distance() -> None:
    spec = agreement(5, rounds=6, trust={"aggregator": {"kind": "monna", "f": 1}})
    world = tiny_world(5, spec=spec, aims=[0, 1, 2, 3, 1000])
    logs = Logs(world)
    assert world.run(until_s=100)
    told = {f.fields["round"]: f.fields["aggregate"] for f in facts(world, 0, "round committed")}
    rows = [r.decision for r in logs.rows(0)]
    assert {d.rule for d in rows} == {"monna"}
    assert [d.weight for d in rows] == [told[d.round]["weights"][d.peer] for d in rows]
    outlier = [d for d in rows if d.peer == world.names[4]]
    assert {(d.verdict, d.weight) for d in outlier} == {("left-out", 0.0)}
    for one in outlier:
        others = [d.distance for d in rows if d.round == one.round and d is not one]
        assert one.distance is not None
        assert all(distance is not None and distance < one.distance for distance in others)


def test_a_model_that_screening_refused_is_a_row_that_says_why() -> None:
    trust = {"max_norm": 100.0, "aggregator": {"kind": "mean", "f": 0}}
    world = tiny_world(3, spec=agreement(3, rounds=5, trust=trust), aims=[0, 1, 10_000])
    logs = Logs(world)
    assert world.run(until_s=100)
    refused = [r.decision for r in logs.rows(0) if r.decision.peer == world.names[2]]
    assert ("norm", "screening", 0.0) in {(d.verdict, d.rule, d.weight) for d in refused}


def heads_that_fit(logs: Logs) -> None:
    """Every log is whole, ends where its ledger says, and holds the head of its own last statement."""
    for machine in logs.world.machines:
        if machine.disk is None:
            continue
        ledger = logs.on_disk(machine.index)
        own = audit.decode_statement(ledger.statement).log_head if ledger.statement else b""
        found = verify(logs.rows(machine.index), ledger.run, {own})  # type: ignore[arg-type]
        assert (found.fault, found.last, found.head) == ("", ledger.log.rows, ledger.log.hash)
        assert own == b"" or own in found.found


troubles = st.lists(
    st.tuples(
        st.sampled_from(["crash between", "crash", "restore", "lose disk"]),
        st.integers(0, 2),
        st.floats(0.5, 14.0),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.slow
@pytest.mark.parametrize("averaging", ["push-sum", "d-psgd"])
def test_no_honest_trouble_makes_a_proof(averaging: str) -> None:
    @settings(max_examples=15, deadline=None)
    @given(troubles)
    def holds(script: list[tuple[str, int, float, int]]) -> None:
        spec = agreement(3, rounds=8, deadline_s=4.0, gossip={"averaging": {"kind": averaging}})
        link = LinkModel(latency_s=(0.01, 0.2), loss=0.05, duplication=0.05)
        world = tiny_world(3, spec=spec, crypto=True, link=link)
        logs = Logs(world)
        backups: dict[int, Any] = dict.fromkeys(range(3))
        for verb, i, at, effects in sorted(script, key=lambda trouble: trouble[2]):
            world.run(until_s=at)
            match verb:
                case "crash between":
                    world.crash_between(i, effects)
                case "crash":
                    backups[i] = world.machines[i].disk
                    world.crash(i)
                case "restore" if backups[i] is not None:
                    world.restore(i, backups[i])
                case "lose disk":
                    world.lose_disk(i)
            world.boot_at(at + 1.0, i)
        world.run(until_s=60.0)
        for i in range(3):
            assert "equivocation" not in {f.fields["fault"] for f in facts(world, i, "fault of a peer")}
            assert not facts(world, i, "equivocation proved")
        # Nor would anybody who had heard everything find one.
        assert witness.equivocations(map(witness.signed_in, logs.frames)) == {}
        heads_that_fit(logs)

    holds()


def test_a_boot_session_that_came_from_the_disk_would_convict_an_honest_site() -> None:
    spec = agreement(3, rounds=8, gossip={"averaging": {"kind": "d-psgd"}})
    world = tiny_world(3, spec=spec, crypto=True)
    logs = Logs(world)
    world.run(until_s=3.5)
    backup, session = world.machines[0].disk, world.peer(0).state.boot_session
    world.run(until_s=5.5)
    world.restore(0, backup)
    world.boot(0)
    world.peer(0).state.boot_session = session
    world.run(until_s=60.0)
    assert set(witness.equivocations(map(witness.signed_in, logs.frames))) == {world.names[0]}


@pytest.mark.slow
def test_a_log_survives_a_crash_between_any_two_effects() -> None:
    for effects in range(14):
        world = tiny_world(3, spec=agreement(3, rounds=6, deadline_s=4.0), crypto=True)
        logs = Logs(world)
        world.run(until_s=2.5)
        world.crash_between(1, effects)
        while world.machines[1].is_up:
            world.step()
        heads_that_fit(logs)
        world.boot_at(world.now + 1.0, 1)
        assert world.run(until_s=200)
        heads_that_fit(logs)


class TwoFaced(Liar):
    """A liar that signs statements."""

    def state_frame(self, number: int, w: float) -> bytes:
        """A statement in a frame to the victim."""
        content = audit.link(
            number=number, prev=b"", run=self.victim.run, sender=self.name, incarnation=777,
            boot_session=6, round=0, commitments=(), weight_before=1.0, weight_after=w,
        )  # fmt: skip
        message = Message(header=self.header(Kind.STATEMENT), body=Statement(content=content))
        return seal(message, signer_of(self.identity))

    def state(self, number: int, w: float) -> bytes:
        """Say a statement, signed."""
        frame = self.state_frame(number, w)
        content = witness.statement_in(frame)
        message = Message(header=self.header(Kind.STATEMENT), body=Statement(content=content))
        self.tell(Received(peer=self.name, message=message, frame=frame))
        return frame


def acquainted(world: World, i: int) -> TwoFaced:
    liar = TwoFaced(world, i)
    liar.greet(begun=True)
    liar.greet(begun=True)
    assert world.peer(i).state.neighbours[liar.name].up
    return liar


def test_two_stories_at_one_neighbour_are_proved_and_denied() -> None:
    world = world_with_a_liar()
    logs = Logs(world)
    world.run(until_s=1.5)
    liar = acquainted(world, 0)
    liar.state(3, 1.0)
    liar.state(3, 1.0)
    assert not facts(world, 0, "equivocation proved")
    liar.state(3, 2.0)
    (fact,) = facts(world, 0, "equivocation proved")
    assert fact.fields["peer"] == liar.name
    assert world.peer(0).state.consortium.standing(liar.name, world.now) == "banned"
    ((peer, evidence),) = logs.proofs[0]
    assert peer == liar.name == witness.check(evidence)
    (row,) = (r.decision for r in logs.rows(0) if r.decision.type == "equivocation")
    assert (row.peer, row.verdict, row.digest.hex()) == (liar.name, "denied", fact.fields["proof"])
    # Its next connection is not listened to, and the others go on.
    liar.state(4, 2.0)
    world.run(until_s=200)
    assert [machine.finished for machine in world.machines[:3]] == ["done"] * 3
    assert len(logs.proofs[0]) == 1


def test_a_second_story_after_the_victim_s_restart_is_proved_all_the_same() -> None:
    world = world_with_a_liar()
    logs = Logs(world)
    world.run(until_s=1.5)
    acquainted(world, 0).state(3, 1.0)
    # The next commit of a round makes it durable.
    world.run(until_s=4.0)
    world.crash(0)
    world.boot(0)
    liar = acquainted(world, 0)
    liar.state(3, 2.0)
    ((_, evidence),) = logs.proofs[0]
    assert witness.check(evidence) == liar.name


def test_one_story_to_each_of_two_neighbours_is_proved_by_comparing_what_they_hold() -> None:
    world = world_with_a_liar()
    world.run(until_s=1.5)
    one, other = acquainted(world, 0), acquainted(world, 1)
    held = [witness.signed_in(one.state(3, 1.0)), witness.signed_in(other.state(3, 2.0))]
    assert not facts(world, 0, "equivocation proved")
    assert witness.equivocations(held[:1]) == {}
    document = audit.encode_witness(held)
    proofs = witness.equivocations(audit.decode_witness(document))
    assert list(proofs) == [one.name]
    assert witness.check(proofs[one.name]) == one.name
    assert audit.decode_witness(proofs[one.name]) == sorted(held, key=lambda s: (s.header, s.body))
    forged = audit.Signed(header=held[1].header, signature=bytes(64), body=held[1].body)
    assert witness.equivocations([held[0], forged]) == {}


def test_a_message_of_another_kind_proves_nothing() -> None:
    world = world_with_a_liar()
    world.run(until_s=1.5)
    liar = acquainted(world, 0)
    frame = seal(Message(header=liar.header(Kind.NOTICE), body=Notice(code="left")), signer_of(liar.identity))
    with pytest.raises(RemoteError, match="no round statement"):
        witness.verified(witness.signed_in(frame))


def test_without_signatures_an_equivocator_is_denied_and_nothing_is_kept() -> None:
    world = world_with_a_liar()
    logs = Logs(world)
    world.run(until_s=1.5)
    liar = acquainted(world, 0)
    for w in (1.0, 2.0):
        content = witness.statement_in(liar.state_frame(3, w))
        liar.say(Kind.STATEMENT, Statement(content=content))
    assert facts(world, 0, "equivocation proved")
    assert logs.proofs[0] == []
    assert world.peer(0).state.consortium.standing(liar.name, world.now) == "banned"
