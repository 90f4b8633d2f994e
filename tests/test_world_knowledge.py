"""Knowledge between whole peers: probes, prototypes and hubs in virtual time, and what may go wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from tiny_splitter import CLASSES, ROWS, WIDTH, TinySplitter, splitter
from worlds import agreement, facts, tiny_world

from p2pfl.events import Body, Event, Header, Kind, Message, Notice, Offered, Received
from p2pfl.knowledge.packets import (
    Coding,
    features_bytes,
    hub_model_bytes,
    probe_bytes,
    prototypes_bytes,
    soft_labels_bytes,
)
from p2pfl.learn import probes
from p2pfl.learn.factory import resolve
from p2pfl.learn.learner import Site
from p2pfl.net.link_model import LinkModel
from p2pfl.run import RunSpec
from p2pfl.simulations.machine import Machine, SimulatedSite
from p2pfl.simulations.world import World

ROUNDS = 5
APART = {"topology": {"kind": "complete"}, "averaging": {"kind": "none"}}
HUB = {"exchange": {"kind": "hub", "share_features": True}}
# The first 30 flowers of iris are the probe set of those who learn from the others.
PROBE_SOURCE, OWN_SOURCE = "sklearn:iris#0-30", "sklearn:iris#30-150"


def knowing(n: int, knowledge: dict[str, Any], **tables: Any) -> RunSpec:
    tables = {"gossip": APART, "rounds": ROUNDS, "closing_rounds": 0, **tables}
    return agreement(n, knowledge=knowledge, **tables)


def probing(n: int, **tables: Any) -> RunSpec:
    rows = probes.read(PROBE_SOURCE)
    probe = {"source": PROBE_SOURCE, "digest": probes.digest_of(rows), "samples": len(rows)}
    learner = {
        "local_steps": 4,
        "batch_size": 8,
        "data": {"source": OWN_SOURCE},
        "model": {"kind": "logistic"},
    }
    return knowing(n, {"exchange": {"kind": "probe"}, "probe": probe}, learner=learner, **tables)


def built_in(spec: RunSpec, n: int, **world: Any) -> World:
    factory = resolve(spec.learner)
    site = Site(options=spec.learner, local_steps=spec.learner.local_steps)
    return World(spec, [SimulatedSite(factory=factory, site=site) for _ in range(n)], **world)


def splitters(hubs: int, edges: int, *, grant: bool = True, **world: Any) -> World:
    spec = world.pop("spec", None) or knowing(hubs + edges, HUB)
    sites = [f"hub {i}" if i < hubs else f"edge {i}" for i in range(hubs + edges)]
    return World(
        spec,
        [SimulatedSite(factory=splitter, site=Site(data=d), shares_features=grant) for d in sites],
        **world,
    )


def learner_of(world: World, index: int) -> TinySplitter:
    learner = world.machines[index].workshop.learner
    assert isinstance(learner, TinySplitter)
    return learner


def exchanged(world: World, index: int, key: str) -> list[Any]:
    return [fact.fields[key] for fact in facts(world, index, "knowledge exchanged")]


def metrics(world: World, index: int) -> dict[str, float]:
    return dict(world.peer(index).view().metrics)


def finished(world: World, but: Sequence[int] = ()) -> bool:
    return all(m.finished == "done" for i, m in enumerate(world.machines) if i not in but)


# --- probe and prototypes ----------------------------------------------------------------------------


def test_probe_predictions_travel_between_models_that_stay_at_home() -> None:
    world = built_in(probing(3), 3)
    assert world.run(until_s=100)
    assert finished(world)
    for i in range(3):
        assert exchanged(world, i, "heard") == [2] * ROUNDS
        whole = probe_bytes(30, rows=30, classes=CLASSES, coding=Coding.INT8)
        assert exchanged(world, i, "bytes")[0] == 2 * whole
        assert not facts(world, i, "fault of a peer")
    models = [world.peer(i).model() for i in range(3)]
    assert not np.array_equal(models[0], models[1])


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second = built_in(probing(3), 3), built_in(probing(3), 3)
    assert first.run(until_s=100)
    assert second.run(until_s=100)
    for i in range(3):
        assert np.array_equal(first.peer(i).model(), second.peer(i).model())


def test_prototypes_travel_and_pull() -> None:
    learner = {
        "local_steps": 4,
        "batch_size": 8,
        "data": {"source": OWN_SOURCE},
        "model": {"kind": "mlp", "hidden": [5]},
    }
    world = built_in(knowing(3, {"exchange": {"kind": "proto"}}, learner=learner), 3)
    assert world.run(until_s=100)
    assert exchanged(world, 0, "bytes") == [2 * prototypes_bytes(CLASSES, width=5)] * ROUNDS


def test_knowledge_beside_weights_leaves_the_mass_exact() -> None:
    spec = probing(4, gossip={"topology": {"kind": "exponential"}}, closing_rounds=2)
    world = built_in(spec, 4, link=LinkModel(latency_s=(0.01, 0.3), loss=0.2))
    assert world.run(until_s=400)
    assert world.mass().error < 1e-12
    assert sum(exchanged(world, 0, "heard")) > 0


def test_a_neighbour_that_is_silent_costs_half_a_deadline_once() -> None:
    spec = probing(3)
    world = built_in(spec, 3)
    send = world._post.send

    def nothing_of_the_last(machine: Machine, j: int, message: Message) -> None:
        if machine.index != 2 or world.now < 0.5:
            send(machine, j, message)

    world._post.send = nothing_of_the_last  # type: ignore[method-assign]
    world.run(until_s=60)
    rounds = [fact.fields["seconds"] for fact in facts(world, 0, "round committed")]
    assert len(rounds) == ROUNDS
    half = spec.run.deadline_s / 2
    assert rounds[0] <= half + 1.1
    assert all(seconds <= 2.1 for seconds in rounds[1:])
    assert facts(world, 0, "neighbour late")


@pytest.mark.slow
def test_a_crash_between_any_two_effects_loses_a_round_s_words_and_nothing_else() -> None:
    for after in range(0, 40, 3):
        world = built_in(probing(3), 3)
        world.at(2.5, 1, partial(world.crash_between, 1, after % 6))
        world.at(2.5 + after / 10, 1, partial(world.crash, 1))
        world.at(7.0, 1, partial(world.boot, 1))
        assert world.run(until_s=200), after
        assert finished(world), after
        committed = [fact.fields["round"] for fact in facts(world, 1, "round committed")]
        assert committed == sorted(set(committed)), after


# --- hubs --------------------------------------------------------------------------------------------


def test_hubs_teach_their_edges_and_give_them_their_model() -> None:
    world = splitters(2, 4)
    assert world.run(until_s=100)
    assert finished(world)
    for i in range(6):
        found = metrics(world, i)
        assert found["fits"] == ROUNDS
        # The first fit has no teacher.
        assert found["taught"] == ROUNDS - 1
        assert found["hub"] > 0
    names = world.names
    hubs = [facts(world, i, "hub chosen")[-1].fields["hub"] for i in range(6)]
    assert hubs[:2] == names[:2]
    assert set(hubs[2:]) <= set(names[:2])
    served = [hubs.count(name) for name in names[:2]]
    assert sum(served) == 6
    for i in range(2):
        assert set(learner_of(world, i).learned_from) == {served[i] * ROWS}


def test_bytes_are_those_of_the_formula_exactly() -> None:
    world = splitters(1, 2)
    assert world.run(until_s=100)
    up = features_bytes(ROWS, width=WIDTH, classes=CLASSES, coding=Coding.INT8)
    down, model = soft_labels_bytes(ROWS, classes=CLASSES), hub_model_bytes(2)
    assert exchanged(world, 1, "bytes") == [up] * ROUNDS
    assert exchanged(world, 0, "bytes") == [2 * down] * (ROUNDS - 1) + [2 * down + 2 * model]


def test_hubs_of_a_tier_mix_their_models() -> None:
    world = splitters(2, 2)
    assert world.run(until_s=100)
    a, b = (learner_of(world, i).hub[0] for i in range(2))
    # Alone hub 0 would have added 1 a round and hub 1 2; mixed, they are never more than a round apart.
    assert abs(a - b) == pytest.approx(1.0)
    assert a + b == pytest.approx(3.0 * ROUNDS)


def test_hubs_mix_without_telling_each_other_features() -> None:
    world = splitters(2, 0, grant=False)
    assert world.run(until_s=100)
    assert abs(learner_of(world, 0).hub[0] - learner_of(world, 1).hub[0]) == pytest.approx(1.0)


def test_hubs_of_different_models_learn_what_they_believe_together_of_the_probe_set() -> None:
    rows = probes.read(PROBE_SOURCE)
    probe = {"source": PROBE_SOURCE, "digest": probes.digest_of(rows), "samples": len(rows)}
    exchange = {**HUB["exchange"], "tier": "probe", "epochs": 1}
    world = splitters(2, 3, spec=knowing(5, {"exchange": exchange, "probe": probe}))
    for i in (0, 1):
        site = world.machines[i].site
        world.machines[i].site = replace(site, factory=partial(of_model, model=bytes([i]) * 32))
    assert world.run(until_s=100)
    assert finished(world)
    for i in (0, 1):
        learner = learner_of(world, i)
        assert len(learner.distilled) == ROUNDS - 1
        assert {p.shape for p in learner.distilled} == {(len(rows), CLASSES)}
        assert not facts(world, i, "fault of a peer")
        assert not facts(world, i, "knowledge job failed")
    # Edges know of the set, hold none of it, and have no place for either hub's model.
    for i in (2, 3, 4):
        assert learner_of(world, i).distilled == []
        assert not learner_of(world, i).is_held
        assert not facts(world, i, "neighbour late")


def of_model(site: Site, model: bytes) -> TinySplitter:
    made = splitter(site)
    made.expects = replace(made.expects, model=model)
    return made


def test_no_features_go_where_nobody_said_so() -> None:
    world = splitters(1, 2, grant=False)
    assert world.run(until_s=100)
    assert finished(world)
    assert exchanged(world, 1, "told") == [0] * ROUNDS
    assert metrics(world, 1)["taught"] == 0


def test_a_site_that_names_a_hub_while_the_run_goes_on_tells_it_from_then_on() -> None:
    world = splitters(1, 2, grant=False)
    say = partial(world.command, 1, "set", peer=world.names[0], share="normal", **{"for": "features"})
    world.at(2.5, 1, say)
    assert world.run(until_s=100)
    told = exchanged(world, 1, "told")
    assert told[0] == 0
    assert told[-1] == 1
    assert exchanged(world, 2, "told") == [0] * ROUNDS


def test_a_hub_that_dies_leaves_its_edges_to_the_standby() -> None:
    world = splitters(2, 4)
    world.at(2.5, 0, partial(world.crash, 0))
    assert world.run(until_s=200)
    assert finished(world, but=[0])
    moved = 0
    for i in range(2, 6):
        chosen = [fact.fields["hub"] for fact in facts(world, i, "hub chosen")]
        assert chosen[-1] == world.names[1]
        moved += chosen[0] == world.names[0]
        assert metrics(world, i)["taught"] >= ROUNDS - 2
        assert all(f.fields["seconds"] <= 8.0 for f in facts(world, i, "round committed"))
    assert moved


def test_a_hub_that_comes_back_is_a_hub_again() -> None:
    world = splitters(1, 2, spec=knowing(3, HUB, rounds=8))
    world.at(2.5, 0, partial(world.crash, 0))
    world.at(4.0, 0, partial(world.boot, 0))
    assert world.run(until_s=300)
    assert finished(world)
    assert metrics(world, 1)["taught"] >= 4


# --- what nobody may send ----------------------------------------------------------------------------


def offer(world: World, sender: int, to: int, kind: Kind, body: np.ndarray, round_: int) -> None:
    """A packet of a member's own making."""
    peer = world.peer(sender).state
    header = Header(
        run=peer.run,
        sender=world.names[sender],
        recipient=world.names[to],
        incarnation=peer.incarnation,
        boot_session=peer.boot_session,
        kind=kind,
        round=round_,
        edge_seq=round_ + 1,
        size=body.nbytes,
        raw_size=body.nbytes,
        digest=bytes(32),
        issued_at=world.now,
    )
    world.machines[sender].offers[(to, kind, header.edge_seq)] = body
    tell(world, to, Offered(peer=header.sender, header=header))


def tell(world: World, to: int, event: Event) -> None:
    machine = world.machines[to]
    world._hear(machine, machine.life, event)


def state_of(world: World, index: int) -> Any:
    knowing = world.peer(index).state.knowing
    assert knowing is not None
    return knowing.state


@pytest.mark.parametrize("kind", [Kind.FEATURES, Kind.SOFT_LABELS, Kind.PROTOTYPES, Kind.HUB_MODEL])
def test_a_packet_of_another_exchange_is_a_fault(kind: Kind) -> None:
    world = built_in(probing(3), 3)
    world.run(until_s=2.5)
    before = state_of(world, 0)
    offer(world, 1, 0, kind, np.zeros(100, np.uint8), 2)
    assert state_of(world, 0) == before
    assert [f.fields["fault"] for f in facts(world, 0, "fault of a peer")] == ["kind"]


def test_garbage_under_a_good_header_is_a_fault_and_the_round_goes_on() -> None:
    world = built_in(probing(3), 3)
    world.run(until_s=2.5)
    rng = np.random.default_rng(0)
    size = probe_bytes(30, rows=30, classes=CLASSES, coding=Coding.INT8)
    offer(world, 1, 0, Kind.PROBE, rng.integers(256, size=size).astype(np.uint8), 4)
    assert world.run(until_s=100)
    assert finished(world)
    assert facts(world, 0, "packet refused")


def test_a_run_without_an_exchange_takes_no_packets() -> None:
    spec = agreement(2)
    world = tiny_world(2, spec=spec)
    world.run(until_s=2.5)
    offer(world, 1, 0, Kind.PROBE, np.zeros(100, np.uint8), 2)
    assert world.run(until_s=100)
    assert any(fact.fields["fault"] == "kind" for fact in facts(world, 0, "fault of a peer"))


def test_shares_and_states_are_faults_where_models_stay_at_home() -> None:
    world = built_in(probing(3), 3)
    world.run(until_s=2.5)
    for kind in (Kind.SHARE, Kind.STATE):
        offer(world, 1, 0, kind, np.zeros(100, np.uint8), 2)
    assert world.run(until_s=100)
    assert [f.fields["fault"] for f in facts(world, 0, "fault of a peer")] == ["kind", "kind"]


def test_a_member_that_says_nonsense_about_its_hub_is_at_fault() -> None:
    world = splitters(1, 2)
    world.run(until_s=2.5)
    state = world.peer(1).state
    header = state.header(world.names[2], Kind.NOTICE)
    body: Body = Notice(code="hub", text="00ff")
    tell(world, 2, Received(peer=world.names[1], message=Message(header=header, body=body)))
    assert world.run(until_s=100)
    assert finished(world)
    assert [f.fields["fault"] for f in facts(world, 2, "fault of a peer")] == ["notice"]
