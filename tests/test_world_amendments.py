"""Terms that change while a run is under way: everybody crosses the fence, and no mass is lost on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from worlds import agreement, facts, tiny_world

from p2pfl import epochs
from p2pfl.errors import ConfigError
from p2pfl.events import Kind, Offered, Refuse, Send
from p2pfl.run import RunSpec, amend, canonical, run_id
from p2pfl.simulations.machine import identities
from p2pfl.simulations.network import Partition
from p2pfl.simulations.world import World
from p2pfl.trust.amendments import encode_amendment, issue_amendment


def spec_of(rounds: int) -> RunSpec:
    return agreement(4, rounds=rounds, gossip={"topology": {"kind": "complete"}}, quorum=0.0)


SPEC = spec_of(20)
# The fence in the world's clock: a round takes a second.
FENCE = 8


def text(changes: dict[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in changes.items()}


def sign(
    world: World, founders: Sequence[int], changes: dict[str, Any], *, at: int = FENCE, epoch: int = 1
) -> None:
    """Let each of `founders` sign at its own node; three of the four are a quorum."""
    for i in founders:
        one = issue_amendment(
            world.machines[i].identity,
            run=world.peer(i).state.run,
            epoch=epoch,
            at_round=at,
            changes=text(changes),
            now=0.0,
        )
        world.command(i, "amend", amendment=encode_amendment(one))


def begun(world: World, i: int) -> list[tuple[int, int]]:
    return [(f.fields["epoch"], f.fields["round"]) for f in facts(world, i, "epoch began")]


def test_with_a_quorum_the_terms_change_for_everybody_in_the_same_round() -> None:
    world = tiny_world(4, spec=SPEC)
    world.run(until_s=3.5)
    sign(world, (0, 1), {"run.rounds": 30, "trust.max_norm": 100.0})
    world.run(until_s=4.5)
    assert not any(world.peer(i).state.in_force for i in range(4))
    sign(world, (2,), {"run.rounds": 30, "trust.max_norm": 100.0})
    world.run(until_s=7.5)
    # Known, and not in force before its round.
    assert [world.peer(i).state.spec.trust.max_norm for i in range(4)] == [None] * 4
    assert world.run(until_s=300.0)
    assert [begun(world, i) for i in range(4)] == [[(1, FENCE)]] * 4
    assert [world.peer(i).state.spec.trust.max_norm for i in range(4)] == [100.0] * 4
    for i in range(4):
        rounds = [f.fields["training_round"] for f in facts(world, i, "round committed")]
        assert max(rounds) == 31  # thirty, and two that close
        assert not facts(world, i, "fault of a peer")
    assert world.mass().sum == pytest.approx(4, abs=1e-9)
    assert run_id(world.spec) == world.peer(0).state.run


def test_reputation_can_be_switched_on_in_mid_run() -> None:
    world = tiny_world(4, spec=SPEC)
    world.run(until_s=3.5)
    sign(world, (0, 1, 2), {"trust.reputation": {"kind": "beta"}})
    world.run(until_s=FENCE - 0.5)
    assert not any(world.peer(i).state.consortium.reputation.records for i in range(4))
    assert world.run(until_s=300.0)
    assert all(len(world.peer(i).state.consortium.reputation.records) == 3 for i in range(4))
    assert world.mass().sum == pytest.approx(4, abs=1e-9)


def test_a_run_can_be_made_shorter() -> None:
    world = tiny_world(4, spec=SPEC)
    world.run(until_s=3.5)
    sign(world, (0, 1, 2), {"run.rounds": 10})
    assert world.run(until_s=300.0)
    for i in range(4):
        assert len(facts(world, i, "round committed")) == 12
    assert world.mass().sum == pytest.approx(4, abs=1e-9)


@pytest.mark.slow
def test_fewer_than_a_quorum_change_nothing() -> None:
    world = tiny_world(4, spec=SPEC)
    world.run(until_s=3.5)
    sign(world, (0, 1), {"run.rounds": 30})
    assert world.run(until_s=300.0)
    assert not any(begun(world, i) for i in range(4))
    assert {len(world.peer(i).state.consortium.membership.amendments) for i in range(4)} == {1}


def test_headers_name_the_epoch_from_the_fence_on() -> None:
    world = tiny_world(4, spec=SPEC)
    sent: list[tuple[int, int]] = []
    carry_out = world._do

    def watch(machine: Any, effect: Any) -> None:
        if isinstance(effect, Send) and effect.message.header.kind is Kind.SHARE:
            sent.append((effect.message.header.round, effect.message.header.epoch))
        carry_out(machine, effect)

    world._do = watch  # type: ignore[method-assign]
    world.run(until_s=3.5)
    sign(world, (0, 1, 2), {"run.deadline_s": 9.0})
    assert world.run(until_s=300.0)
    assert {epoch for number, epoch in sent if number < FENCE} == {0}
    assert {epoch for number, epoch in sent if number >= FENCE} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("effects", range(0, 40, 5))
def test_a_peer_that_crashes_on_the_fence_comes_back_under_the_new_terms(effects: int) -> None:
    world = tiny_world(4, spec=SPEC)
    world.run(until_s=3.5)
    sign(world, (0, 1, 2), {"run.deadline_s": 9.0})
    world.run(until_s=FENCE - 0.5)
    world.crash_between(3, effects)
    world.run(until_s=FENCE + 2.0)
    world.boot(3)
    assert world.run(until_s=300.0)
    assert [world.peer(i).state.epoch for i in range(4)] == [1] * 4
    assert [world.peer(i).state.spec.run.deadline_s for i in range(4)] == [9.0] * 4
    assert world.mass().sum == pytest.approx(4, abs=1e-9)


def test_a_peer_cut_off_during_the_vote_follows_when_it_is_back_and_no_mass_is_lost() -> None:
    cut = Partition(start_s=3.2, end_s=14.0, groups=[[0, 1, 2], [3]])
    world = tiny_world(4, spec=SPEC, partitions=[cut])
    world.run(until_s=3.5)
    sign(world, (0, 1, 2), {"trust.max_norm": 50.0})
    world.run(until_s=13.5)
    assert [world.peer(i).state.epoch for i in range(4)] == [1, 1, 1, 0]
    assert world.run(until_s=300.0)
    assert [world.peer(i).state.epoch for i in range(4)] == [1] * 4
    assert begun(world, 3)[0][1] > FENCE
    assert world.mass().sum == pytest.approx(4, abs=1e-9)
    assert not any(facts(world, i, "fault of a peer") for i in range(4))


def test_a_share_of_two_epochs_ago_is_refused_and_its_mass_goes_back() -> None:
    # Peer 3 is cut off with shares under way, while the others amend twice.
    cut = Partition(start_s=3.2, end_s=25.0, groups=[[0, 1, 2], [3]])
    world = tiny_world(4, spec=spec_of(40), partitions=[cut])
    world.run(until_s=3.5)
    sign(world, (0, 1, 2), {"trust.max_norm": 50.0}, at=FENCE, epoch=1)
    sign(world, (0, 1, 2), {"trust.max_norm": 60.0}, at=FENCE + 4, epoch=2)
    world.run(until_s=24.5)
    assert world.peer(0).state.epoch == 2
    old = [entry.header.epoch for _, entry in world.peer(3).state.links.unresolved()]
    assert old
    assert set(old) == {0}
    assert world.run(until_s=300.0)
    reasons = {f.fields["reason"] for f in facts(world, 3, "share refused")}
    assert reasons == {"epoch"}
    assert world.mass().sum == pytest.approx(4, abs=1e-9)
    assert not any(facts(world, i, "fault of a peer") for i in range(4))


def test_a_share_of_an_epoch_unknown_here_stays_with_its_sender() -> None:
    world = tiny_world(4, spec=SPEC)
    world.run(until_s=3.5)
    state = world.peer(0).state
    (_, entry), *_ = [(p, e) for p, e in world.peer(1).state.links.unresolved() if p == world.names[0]]
    header = replace(entry.header, epoch=7, edge_seq=state.links.edge_from(world.names[1]).absorbed + 2)
    effects = world.peer(0).handle(Offered(peer=world.names[1], header=header), world.now)
    assert [e.reason for e in effects if isinstance(e, Refuse)] == ["epoch"]
    # It is told where this side stands, and nothing is settled: the share may come again.
    assert [e.message.header.kind for e in effects if isinstance(e, Send)] == [Kind.HELLO]
    assert not state.links.has(world.names[1], header.edge_seq)


def test_terms_that_this_release_does_not_know_are_reported_and_leave_the_old_ones() -> None:
    world = tiny_world(4, spec=SPEC)
    world.run(until_s=3.5)
    sign(world, (0, 1, 2), {"trust.oracle": "delphi"})
    assert world.run(until_s=300.0)
    for i in range(4):
        (fact,) = facts(world, i, "amendment not understood")
        assert fact.level == "error"
        assert world.machines[i].finished == "done"
    assert world.mass().sum == pytest.approx(4, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run.seed": 4}, "cannot be amended"),
        ({"learner.local_steps": 4}, "cannot be amended"),
        ({"trust.founders": []}, "cannot be amended"),
        ({"run.rounds_": 4}, "cannot be amended"),
        ({"run.rounds.more": 4}, "no table"),
        ({"run.rounds": -1}, "run.rounds"),
        ({"run.rounds": None}, "null"),
        ({"trust.aggregator": {"kind": "krum", "f": 1}}, "not begin or end"),
    ],
)
def test_what_cannot_be_amended_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    one = issue_amendment(
        identities(1, 0)[0], run=run_id(SPEC), epoch=1, at_round=1, changes=text(changes), now=0.0
    )
    with pytest.raises(ConfigError, match=reason):
        epochs.terms(canonical(SPEC), [one])


def test_one_robust_rule_may_be_amended_to_another() -> None:
    robust = agreement(
        4, gossip={"topology": {"kind": "complete"}}, trust={"aggregator": {"kind": "krum", "f": 1}}
    )
    changed = amend(robust, text({"trust.aggregator": {"kind": "trimmed-mean", "f": 1}}))
    assert changed.trust.aggregator.kind == "trimmed-mean"
    assert amend(changed, text({"trust.max_norm": 3.0})).trust.max_norm == 3.0
    assert amend(changed, text({"trust.max_norm": None})).trust.max_norm is None
