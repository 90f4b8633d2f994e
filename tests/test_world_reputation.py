"""Reputation in whole peers: liars out, honest sites of skewed data in, mass kept, records kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from liar import Liar, world_with_a_liar
from worlds import agreement, facts, tiny_world

from p2pfl.consortium import Consortium
from p2pfl.events import Kind, Notice, Validated
from p2pfl.ids import PeerId, RunId
from p2pfl.simulations import scenario as scenarios
from p2pfl.simulations.trial import make_world
from p2pfl.simulations.workload import cut
from p2pfl.simulations.world import World
from p2pfl.trust.certificates import countersign, encode_certificate, issue_certificate
from p2pfl.trust.identity import Identity
from p2pfl.trust.relations import Level

STATE = {"averaging": {"kind": "d-psgd"}, "topology": {"kind": "complete"}}
SHARE = {"averaging": {"kind": "push-sum"}, "topology": {"kind": "complete"}}
PULL = {"averaging": {"kind": "push-pull"}, "topology": {"kind": "complete"}}
BETA = {"reputation": {"kind": "beta"}}
HONEST = 6


def digits(
    attack: str,
    gossip: dict[str, Any],
    *,
    rounds: int = 12,
    honest: int = HONEST,
    byzantine: int = 2,
    steps: int = 20,
    seed: int = 0,
    trust: dict[str, Any] | None = None,
) -> World:
    """A world of sites with skewed shares of the digits, and attackers after them; not run yet."""
    table = {
        "run": {
            "rounds": rounds,
            "closing_rounds": 2,
            "deadline_s": 30.0,
            "seed": seed,
            "evaluate_every": 99,
        },
        "gossip": gossip,
        "learner": {
            "local_steps": steps,
            "data": {"source": "sklearn:digits", "test_fraction": 0.2},
            "model": {"kind": "mlp", "hidden": [16]},
        },
        "trust": {**BETA, **(trust or {})},
        "simulation": {
            "peers": honest + (byzantine if attack != "none" else 0),
            "partition": {"kind": "dirichlet", "alpha": 0.5, "min_rows": 16},
            "attack": {"kind": attack, "byzantine": byzantine} if attack != "none" else {"kind": "none"},
        },
    }
    scenario = scenarios.decode(table, "test", "test")
    return make_world(scenario, cut(scenario.spec, honest, scenario.simulation.partition))


def finish(world: World, honest: int = HONEST) -> None:
    world.run(until_s=1e5)
    assert [m.finished for m in world.machines[:honest]] == ["done"] * honest


def levels(world: World, i: int, peers: Iterable[PeerId]) -> set[Level]:
    consortium = world.peer(i).state.consortium
    return {consortium.accept_level(peer) for peer in peers}


def changes(world: World, honest: int = HONEST) -> list[tuple[str, PeerId]]:
    """Every change of a level that an honest peer noted."""
    words = ("peer quarantined", "peer limited", "peer restored")
    return [
        (fact.event, fact.fields["peer"])
        for i in range(honest)
        for word in words
        for fact in facts(world, i, word)
    ]


def accuracy(world: World, honest: int = HONEST) -> float:
    finals = [f.fields for i in range(honest) for f in facts(world, i, "evaluated") if f.fields["final"]]
    return float(np.mean([final["metrics"]["accuracy"] for final in finals]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "gossip"),
    [
        ("sign-flip", STATE),
        ("nan", SHARE),
        ("gaussian", SHARE),
        pytest.param("foe", STATE, marks=pytest.mark.slow),
        pytest.param("ipm", STATE, marks=pytest.mark.slow),
        pytest.param("ipm", SHARE, marks=pytest.mark.slow),
        pytest.param("nan", STATE, marks=pytest.mark.slow),
    ],
)
def test_liars_are_in_quarantine_within_ten_rounds_and_honest_sites_are_not(
    attack: str, gossip: dict[str, Any]
) -> None:
    world = digits(attack, gossip)
    finish(world)
    liars = world.names[HONEST:]
    for i in range(HONEST):
        assert levels(world, i, liars) == {Level.QUARANTINE}
        first = {f.fields["peer"]: f.fields["rounds"] for f in facts(world, i, "peer quarantined")}
        assert set(first) == set(liars)
        assert max(first.values()) <= 10
    assert {peer for _, peer in changes(world)} == set(liars)
    assert accuracy(world) > 0.78
    mass = world.mass()
    assert mass.held + mass.in_flight == pytest.approx(mass.expected)


def test_without_reputation_the_same_sign_flip_ruins_the_run() -> None:
    world = digits("sign-flip", STATE, trust={"reputation": {"kind": "none"}})
    finish(world)
    assert accuracy(world) < 0.4
    assert changes(world) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gossip", "steps", "seed"), [(STATE, 1, 0), (SHARE, 1, 1), (STATE, 50, 1), (SHARE, 50, 2)]
)
def test_without_attackers_nobody_is_doubted_for_long_in_eighty_rounds(
    gossip: dict[str, Any], steps: int, seed: int
) -> None:
    world = digits("none", gossip, rounds=80, honest=8, steps=steps, seed=seed)
    finish(world, honest=8)
    assert changes(world, honest=8) == []


@pytest.mark.slow
def test_a_robust_rule_does_not_see_whom_reputation_leaves_out() -> None:
    world = digits("sign-flip", STATE, trust={"aggregator": {"kind": "trimmed-mean", "f": 1}})
    finish(world)
    last = facts(world, 0, "round committed")[-1].fields["aggregate"]
    assert set(last["weights"]) == set(world.names[1:HONEST])
    assert accuracy(world) > 0.75


def test_rounds_in_which_nobody_is_doubted_commit_the_bits_of_a_run_without_reputation() -> None:
    """The step takes what was asked about, and nothing that came while the learner measured it."""
    digests = []
    for options in ({"kind": "none"}, {"kind": "beta", "tolerance": 1e6}):
        world = digits("none", SHARE, rounds=6, trust={"reputation": options})
        finish(world)
        committed = [facts(world, i, "round committed") for i in range(HONEST)]
        training = [[f.fields for f in rounds if f.fields["stage"] == "training"] for rounds in committed]
        digests.append([[fields["model"] for fields in rounds] for rounds in training])
    assert digests[0] == digests[1]


def test_a_far_site_that_push_pull_hears_is_left_out() -> None:
    spec = agreement(5, gossip=PULL, trust=BETA, rounds=8)
    world = tiny_world(5, spec=spec, aims=[10, 10.1, 9.9, 10.2, -4000])
    assert world.run(until_s=1e4)
    assert levels(world, 0, [world.names[4]]) == {Level.QUARANTINE}
    assert 0 < world.peer(0).model()[0] < 20


@pytest.mark.slow
def test_a_peer_in_quarantine_gets_no_shares_and_its_own_come_back_to_it() -> None:
    world = digits("gaussian", SHARE)
    finish(world)
    liar = world.names[HONEST]
    for i in range(HONEST):
        out = world.peer(i).state.links.edge_to(liar)
        assert out.sent <= 2
        assert world.peer(i).state.links.edge_from(liar).absorbed_w == 0.0
    refused = {f.fields["reason"] for f in facts(world, HONEST, "share refused")}
    assert refused == {"doubted"}


# --- the peer and its learner ------------------------------------------------------------------------


def test_a_learner_that_cannot_validate_leaves_distance_and_direction() -> None:
    """Tiny learners have no `validate`; one site far from all others is found by its place."""
    spec = agreement(5, gossip=STATE, trust=BETA, rounds=8)
    world = tiny_world(5, spec=spec, aims=[10, 10.1, 9.9, 10.2, -4000])
    assert world.run(until_s=1e4)
    odd = world.names[4]
    for i in range(4):
        record = world.peer(i).state.consortium.reputation.records[odd]
        assert record.last is not None
        assert record.last.loss is None
        assert levels(world, i, [odd]) == {Level.QUARANTINE}


def test_an_answer_that_does_not_come_is_awaited_until_the_deadline_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(World, "_validated", lambda *_: None)
    spec = agreement(3, gossip=STATE, trust=BETA, rounds=2, closing_rounds=0)
    world = tiny_world(3, spec=spec)
    assert world.run(until_s=1e4)
    took = [fact.fields["seconds"] for fact in facts(world, 0, "round committed")]
    assert took == pytest.approx([1.0, 8.0], abs=0.1)
    assert not facts(world, 0, "neighbour late")


def test_an_answer_of_another_round_or_shape_counts_nothing() -> None:
    spec = agreement(3, gossip=STATE, trust=BETA, rounds=2)
    world = tiny_world(3, spec=spec)
    while not world.machines[0].is_up or world.peer(0).state.asked is None:
        assert world.step()
    state = world.peer(0).state
    asked = Validated(round=state.round, losses=np.zeros(1 + len(state.asked or ())))
    world.peer(0).handle(Validated(round=state.round + 1, losses=asked.losses), world.now)
    assert state.validated is None
    world.peer(0).handle(Validated(round=state.round, losses=np.zeros(17)), world.now)
    assert state.validated is None or np.isnan(state.validated.losses).all()
    records = state.consortium.reputation.records
    assert all(r.last is not None and r.last.loss is None for r in records.values())


def test_without_an_agreed_reputation_nothing_is_validated() -> None:
    world = tiny_world(3, spec=agreement(3, gossip=STATE))
    assert world.run(until_s=1e4)
    assert world.peer(0).state.consortium.reputation.records == {}


# --- what survives, and what others say ---------------------------------------------------------------


@pytest.mark.slow
def test_a_record_survives_a_crash() -> None:
    world = digits("sign-flip", STATE, rounds=8)
    liars = world.names[HONEST:]
    while not facts(world, 0, "peer quarantined"):
        assert world.step()
    before = world.peer(0).state.consortium.reputation
    world.crash(0)
    world.boot(0)
    assert world.peer(0).state.consortium.reputation == before
    finish(world)
    assert levels(world, 0, liars) == {Level.QUARANTINE}


def test_slander_by_neighbours_limits_nobody_who_is_without_doubts() -> None:
    world = world_with_a_liar(5, gossip=SHARE, trust=BETA, rounds=30)
    while not facts(world, 0, "round committed"):
        assert world.step()
    liar = Liar(world, 0)
    liar.greet()
    for _ in range(100):
        liar.say(Kind.NOTICE, Notice(code="caution", text=world.names[1]))
    state = world.peer(0).state
    assert len(state.consortium.reputation.records[world.names[1]].reports) == 1
    assert levels(world, 0, world.names[1:4]) == {Level.NORMAL}
    liar.say(Kind.NOTICE, Notice(code="caution", text="nobody"))
    assert [f.fields["fault"] for f in facts(world, 0, "fault of a peer")] == ["notice"]


def test_who_quarantines_a_peer_cautions_its_neighbours() -> None:
    world = digits("gaussian", STATE, rounds=6)
    finish(world)
    liar = world.names[HONEST]
    reports = world.peer(0).state.consortium.reputation.records[liar].reports
    assert set(reports) == set(world.names[1:HONEST])


# --- the site's own people, and newcomers --------------------------------------------------------------


def test_a_pinned_peer_is_mixed_whatever_its_models_are() -> None:
    spec = agreement(5, gossip=STATE, trust=BETA, rounds=8)
    world = tiny_world(5, spec=spec, aims=[10, 10.1, 9.9, 10.2, -4000])
    while not facts(world, 0, "run began"):
        assert world.step()
    odd = world.names[4]
    world.command(0, "set", peer=odd, accept="pinned")
    assert world.run(until_s=1e4)
    assert levels(world, 0, [odd]) == {Level.PINNED}
    assert world.peer(0).model()[0] < 0 < world.peer(1).model()[0]


def test_forgetting_a_peer_makes_it_a_newcomer() -> None:
    world = digits("gaussian", STATE, rounds=8)
    liar = world.names[HONEST]
    while not facts(world, 0, "peer quarantined"):
        assert world.step()
    world.command(0, "forget", peer=liar)
    assert liar not in world.peer(0).state.consortium.reputation.records
    assert levels(world, 0, [liar]) == {Level.NORMAL}


@pytest.mark.slow
@pytest.mark.parametrize("gossip", [STATE, SHARE])
def test_newcomers_of_one_inviter_are_mixed_one_a_round_until_they_have_a_record(
    gossip: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = tiny_world(7, spec=agreement(7, gossip=gossip, trust=BETA, rounds=12), aims=[10.0] * 7)
    founder, *crowd = world.names[1], *world.names[3:]
    while not world.machines[0].is_up:
        assert world.step()
    consortium = world.peer(0).state.consortium
    monkeypatch.setattr(consortium, "inviters", lambda peers: {p: (founder,) for p in peers if p in crowd})
    mixed: dict[int, int] = {}
    while not world.is_over:
        before = len(facts(world, 0, "round committed"))
        assert world.step()
        committed = facts(world, 0, "round committed")
        if len(committed) > before:
            mixed[committed[-1].fields["round"]] = committed[-1].fields["merged"]
    # Two founders beside this one, and one of the four newcomers; after six approvals all.
    assert [mixed[number] for number in range(1, 6)] == [3] * 5
    assert [mixed[number] for number in range(7, 11)] == [6] * 4


def test_the_inviters_of_a_member_are_the_founders_who_signed_its_certificate() -> None:
    founders = [Identity(bytes([i]) * 32) for i in range(1, 4)]
    guest = Identity(bytes([9]) * 32).peer_id
    run = RunId("ab" * 32)
    consortium = Consortium.of(run, tuple(founder.peer_id for founder in founders), 2)
    certificate = issue_certificate(founders[0], run=run, subject=guest, now=0.0, nonce=bytes(16))
    signed = encode_certificate(countersign(certificate, founders[1]))
    assert consortium.command("admit", {"certificate": signed}, 1.0)[0].event == "member admitted"
    signers = tuple(sorted(founder.peer_id for founder in founders[:2]))
    assert consortium.inviters([guest, founders[2].peer_id]) == {guest: signers}
