"""Byzantine peers in a world: what goes out, what the honest make of it, and what stays consistent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ears import Ear
from worlds import facts

from p2pfl import ledger, witness
from p2pfl.events import Message, Statement
from p2pfl.ids import PeerId
from p2pfl.mass import unpack
from p2pfl.participant import Participant
from p2pfl.peer import Peer
from p2pfl.simulations import scenario as scenarios
from p2pfl.simulations.attacks import DATA_KINDS, KINDS, KNOWLEDGE_KINDS
from p2pfl.simulations.trial import make_world, run_trial
from p2pfl.simulations.workload import cut
from p2pfl.simulations.world import World
from p2pfl.trust import audit

STATE = {"averaging": {"kind": "d-psgd"}, "topology": {"kind": "complete"}}
SHARE = {"averaging": {"kind": "push-sum"}, "topology": {"kind": "complete"}}


def world_of(
    attack: dict[str, Any], *, n: int = 6, gossip: dict[str, Any] = STATE, **options: Any
) -> tuple[World, list[list[Message]]]:
    """A world of `n` tiny learners with an attack, and what each honest peer will hear in it."""
    honest = n - int(attack.get("byzantine", 0))
    table = {
        "run": {"rounds": 5, "closing_rounds": 1, "deadline_s": 8.0, **options.pop("run", {})},
        "gossip": gossip,
        "learner": {"module": "tiny_learner:tiny"},
        "simulation": {"peers": n, "data": [str(i) for i in range(honest)], "attack": attack, **options},
    }
    scenario = scenarios.decode(table, "test", "test")
    world = make_world(
        scenario, cut(scenario.spec, honest, scenario.simulation.partition, sources=scenario.simulation.data)
    )
    heard: list[list[Message]] = [[] for _ in range(honest)]
    for machine, ears in zip(world.machines, heard, strict=False):
        machine.site = replace(machine.site, around=_listening(ears))
    return world, heard


def _listening(heard: list[Message]) -> Any:
    def around(peer: Peer) -> Participant:
        return Ear(peer, heard)

    return around


def finished(world: World) -> bool:
    return world.run(until_s=1e4) and all(m.finished == "done" for m in world.machines[:4])


def bodies(heard: Iterable[Message], sender: PeerId, number: int) -> list[np.ndarray[Any, Any]]:
    """The models that `sender` sent for round `number`."""
    found = []
    for message in heard:
        header, body = message.header, message.body
        if isinstance(body, np.ndarray) and body.size and (header.sender, header.round) == (sender, number):
            w = header.weights[0] if header.weights else 1.0
            found.append(unpack(body, w, 0).x[0] / np.float32(w))
    return found


def faults(world: World) -> set[str]:
    return {f.fields["fault"] for i in range(4) for f in facts(world, i, "fault of a peer")}


@pytest.mark.parametrize("gossip", [STATE, SHARE])
@pytest.mark.parametrize("latency", [0.0, 0.02])
def test_an_attacker_forges_from_what_the_honest_send_in_the_same_round(
    gossip: dict[str, Any], latency: float
) -> None:
    attack = {"kind": "sign-flip", "byzantine": 2}
    world, heard = world_of(attack, gossip=gossip, network={"latency_s": latency})
    assert finished(world)
    for number in range(1, 4):
        honest = np.stack([bodies(heard[(i + 1) % 4], world.names[i], number)[0] for i in range(4)])
        for target in range(4):
            for attacker in world.names[4:]:
                (vector,) = bodies(heard[target], attacker, number)
                np.testing.assert_allclose(vector, -honest.mean(axis=0), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("crypto", [False, True])
@pytest.mark.parametrize("gossip", [STATE, SHARE])
@pytest.mark.parametrize("kind", ["alie", "mimic", "dissensus", "spectral", "free-ride", "silent"])
def test_only_the_content_is_a_lie_nobody_finds_fault_with_the_rest(
    kind: str, gossip: dict[str, Any], crypto: bool
) -> None:
    world, heard = world_of({"kind": kind, "byzantine": 2}, gossip=gossip, crypto=crypto)
    assert finished(world)
    assert faults(world) == set()
    # Statements commit to what was offered: the honest have compared them.
    assert any(m.header.sender == world.names[4] and isinstance(m.body, Statement) for m in heard[0])


def test_each_target_is_sent_a_vector_of_its_own_and_a_silent_attacker_sends_none() -> None:
    world, heard = world_of({"kind": "dissensus", "byzantine": 1}, n=5)
    assert finished(world)
    sent = [bodies(heard[i], world.names[4], 2)[0] for i in range(4)]
    assert len({vector.tobytes() for vector in sent}) == 4
    world, heard = world_of({"kind": "silent", "byzantine": 1}, n=5)
    assert finished(world)
    assert not any(bodies(heard[i], world.names[4], r) for i in range(4) for r in range(5))


def test_a_sleeper_is_as_honest_as_anyone_until_it_turns() -> None:
    asleep, heard = world_of({"kind": "none", "byzantine": 2})
    turning, heard_too = world_of({"kind": "foe", "byzantine": 2, "starts_at": 3})
    assert finished(asleep)
    assert finished(turning)
    attacker = asleep.names[5]
    for number, is_equal in ((0, True), (2, True), (3, False)):
        (one,), (other,) = (bodies(h[1], attacker, number) for h in (heard, heard_too))
        assert np.array_equal(one, other) == is_equal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "gossip", "fault"),
    [
        ("nan", STATE, "not-finite"),
        ("inf", SHARE, "not-finite"),
        ("huge", STATE, "norm"),
        ("wrong-shape", STATE, "size"),
        ("wrong-shape", SHARE, "size"),
        ("bomb", SHARE, "size"),
    ],
)
def test_what_is_no_model_is_refused_and_leaves_no_trace(
    kind: str, gossip: dict[str, Any], fault: str
) -> None:
    quiet, _ = world_of({"kind": "silent", "byzantine": 1}, n=5, gossip=gossip)
    world, _ = world_of({"kind": kind, "byzantine": 1}, n=5, gossip=gossip)
    assert finished(quiet)
    assert finished(world)
    assert faults(world) == {fault}
    models = [np.stack([w.peer(i).model() for i in range(4)]) for w in (quiet, world)]
    assert np.isfinite(models[1]).all()
    if gossip is STATE:
        np.testing.assert_array_equal(models[0], models[1])


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.0, -1.0, 1e6, float("nan")])
def test_a_weight_that_cannot_be_is_refused(weight: float) -> None:
    attack = {"kind": "weight-lie", "byzantine": 1, "weight": weight}
    world, _ = world_of(attack, n=5, gossip=SHARE)
    assert finished(world)
    assert "weight" in faults(world)
    assert sum(world.peer(i).state.mass.w for i in range(4)) <= 5


def test_a_weight_that_could_be_makes_the_honest_hold_more_than_there_is() -> None:
    world, _ = world_of({"kind": "weight-lie", "byzantine": 1, "weight": 3.0}, n=5, gossip=SHARE)
    assert finished(world)
    assert faults(world) == set()
    assert sum(world.peer(i).state.mass.w for i in range(4)) > 5.5


def test_a_replay_changes_no_bit_of_what_the_honest_hold() -> None:
    for gossip in (STATE, SHARE):
        honest, _ = world_of({"kind": "none", "byzantine": 1}, n=5, gossip=gossip)
        world, heard = world_of({"kind": "replay", "byzantine": 1}, n=5, gossip=gossip)
        assert finished(honest)
        assert finished(world)
        sent = [(m.header.edge_seq, m.header.digest) for m in heard[0] if m.header.sender == world.names[4]]
        assert len(set(sent)) < len(sent)
        for i in range(4):
            np.testing.assert_array_equal(world.peer(i).model(), honest.peer(i).model())


def test_an_equivocator_tells_two_stories_each_of_them_whole() -> None:
    world, heard = world_of({"kind": "equivocation", "byzantine": 1}, n=5)
    assert finished(world)
    told: list[dict[int, tuple[audit.RoundStatement, audit.Head]]] = []
    for ears in heard:
        contents = [m.body.content for m in ears if isinstance(m.body, Statement)]
        read = [audit.read(c) for c in contents if audit.read(c)[0].sender == world.names[4]]
        told.append({stated.number: (stated, head) for stated, head in read})
    numbers = sorted(told[0])
    assert numbers == sorted(told[1])
    for number in numbers:
        first, second = told[0][number][1], told[1][number][1]
        assert (first.number, first.boot_session) == (second.number, second.boot_session)
        assert first.hash != second.hash
        # Who hears one story only cannot tell: it is a chain.
        for story in told:
            if number + 1 in story:
                assert audit.check_link(story[number][1], *story[number + 1]) == "next"
        assert told[0][number][1] == told[2][number][1]
    for number in range(1, 4):
        (x,), (minus_x) = bodies(heard[0], world.names[4], number), bodies(heard[1], world.names[4], number)
        np.testing.assert_array_equal(minus_x[0], -x)
    assert faults(world) == set()


def test_what_two_honest_disks_hold_of_an_equivocator_is_a_proof() -> None:
    world, _ = world_of({"kind": "equivocation", "byzantine": 1}, n=5, crypto=True)
    assert finished(world)
    held = [list(ledger.decode(m.disk.ledger).witnessed.values()) for m in world.machines[:4] if m.disk]
    # Each heard one story.
    assert [witness.equivocations(map(witness.signed_in, frames)) for frames in held] == [{}] * 4
    proofs = witness.equivocations(witness.signed_in(frame) for frames in held for frame in frames)
    assert list(proofs) == [world.names[4]]
    assert witness.check(proofs[world.names[4]]) == world.names[4]


def test_sybils_are_guests_whom_the_same_founders_let_in() -> None:
    world, heard = world_of({"kind": "sybil", "byzantine": 3}, n=8, crypto=True)
    assert finished(world)
    state = world.peer(0).state
    assert state.consortium.membership.founders == tuple(world.names[:5])
    assert state.members() == tuple(world.names)
    certificates = state.consortium.membership.certificates
    signers = {tuple(sorted(c.signatures)) for c in certificates.values()}
    assert len(signers) == 1
    voices = {bodies(heard[0], name, 2)[0].tobytes() for name in world.names[5:]}
    assert len(voices) == 1


def test_an_eclipsed_peer_pauses_below_its_quorum_and_comes_back() -> None:
    attack = {"kind": "eclipse", "byzantine": 2, "starts_at": 3}
    world, heard = world_of(attack, n=7, run={"rounds": 12})
    assert finished(world)
    assert facts(world, 0, "paused")
    assert facts(world, 0, "resumed")
    models = np.stack([world.peer(i).model() for i in range(5)])
    assert np.abs(models - models[1:].mean(axis=0)).max() < 1
    # Nobody else is lied to: a forged model would be negative.
    for number in (1, 5):
        sent = bodies(heard[1], world.names[5], number)[0]
        assert sent.min() > 0


def test_an_eclipsed_peer_without_a_quorum_believes_what_it_is_told() -> None:
    attack = {"kind": "eclipse", "byzantine": 2, "starts_at": 1}
    world, _ = world_of(attack, n=7, run={"rounds": 12, "quorum": 0.0})
    world.run(until_s=11.5)
    astray, led = world.peer(0).model(), world.peer(1).model()
    assert np.linalg.norm(astray - led) > 1
    assert not facts(world, 0, "paused")


def test_who_never_finishes_is_not_waited_for() -> None:
    # Nobody hears a silent attacker among push-sum's edges; the honest end, whatever becomes of it.
    world, _ = world_of({"kind": "silent", "byzantine": 2}, gossip=SHARE)
    assert finished(world)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*DATA_KINDS, *KNOWLEDGE_KINDS)])
def test_every_attack_runs_to_the_end_on_lossy_links_with_attackers_everywhere(kind: str) -> None:
    gossip = {**SHARE, "topology": {"kind": "ring"}}
    attack = {"kind": kind, "byzantine": 2, "placement": "everywhere"}
    world, _ = world_of(attack, gossip=gossip, network={"latency_s": [0.0, 0.1], "loss": 0.05}, crypto=True)
    assert world.run(until_s=1e4)
    assert [m.finished for m in world.machines[:4]] == ["done"] * 4
    assert all(np.isfinite(world.peer(i).model()).all() for i in range(4))


def test_a_crashed_attacker_comes_back_and_goes_on_lying() -> None:
    world, heard = world_of({"kind": "foe", "byzantine": 1}, n=5, run={"rounds": 12})
    world.run(until_s=3.5)
    world.crash(4)
    world.boot_at(5.0, 4)
    assert finished(world)
    assert bodies(heard[0], world.names[4], 11)


def recipe(**attack: Any) -> scenarios.Scenario:
    table = {
        "run": {"rounds": 15, "closing_rounds": 1, "deadline_s": 60.0},
        "learner": {
            "local_steps": 3,
            "data": {"source": "sklearn:digits", "test_fraction": 0.2},
            "model": {"kind": "logistic"},
        },
        "gossip": STATE,
        "simulation": {"peers": 6, "baselines": False, "attack": attack},
    }
    return scenarios.decode(table, "test", "test")


@pytest.mark.slow
def test_a_verdict_judges_the_honest_and_names_the_attack() -> None:
    clean = run_trial(recipe(kind="none", byzantine=2))
    ruined = run_trial(recipe(kind="sign-flip", byzantine=2))
    assert (clean["attack"], clean["byzantine"], clean["peers"]) == (None, 2, 6)
    assert (ruined["attack"], ruined["byzantine"], ruined["aggregator"]) == ("sign-flip", 2, None)
    assert len(ruined["per_peer"]) == 4
    assert ruined["honest"] == {key: ruined["metric"][key] for key in ("mean", "min")}
    assert clean["honest"]["min"] > 0.85
    assert ruined["honest"]["mean"] < 0.3
    assert run_trial(recipe(kind="sign-flip", byzantine=2))["metric"] == ruined["metric"]


@pytest.mark.slow
def test_a_backdoor_opens_for_its_trigger_and_is_not_seen_without() -> None:
    shut = run_trial(recipe(kind="backdoor", byzantine=0, target=3))
    built = run_trial(recipe(kind="backdoor", byzantine=2, target=3, fraction=0.2))
    late = {"kind": "model-replacement", "starts_at": 12}
    replaced = run_trial(recipe(**late, byzantine=2, target=3, fraction=0.2))
    assert shut["backdoor"]["max"] < 0.2
    for verdict in (built, replaced):
        assert verdict["backdoor"]["min"] > 0.85
        assert verdict["honest"]["min"] > 0.75
    assert "backdoor" not in run_trial(recipe(kind="label-flip", byzantine=1))


@pytest.mark.slow
def test_flipped_labels_cost_something_where_most_flip_them() -> None:
    few = run_trial(recipe(kind="label-flip", byzantine=1))
    most = run_trial(recipe(kind="label-flip", byzantine=4))
    assert few["honest"]["min"] > 0.8
    assert most["honest"]["mean"] < 0.4
