"""What an exchange of knowledge came to, as the verdict says it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_splitter import CLASSES, ROWS, WIDTH, TinySplitter, splitter
from worlds import agreement, tiny_world

from p2pfl.cli.verdicts import verdict_text
from p2pfl.knowledge.packets import Coding, features_bytes, hub_model_bytes, soft_labels_bytes
from p2pfl.learn.learner import Site
from p2pfl.simulations.machine import SimulatedSite
from p2pfl.simulations.scenario import load
from p2pfl.simulations.taught import exchanged
from p2pfl.simulations.trial import run_trial
from p2pfl.simulations.world import World
from p2pfl.work import Fit, Teacher, Work

ROUNDS = 4


class HalfRight(TinySplitter):
    """Measures as an edge whose head is right half the time, and its hub's model always."""

    def evaluate(self, parameters):  # type: ignore[no-untyped-def]
        return {"accuracy": 0.5} | ({"hub_accuracy": 1.0} if self.is_held else {})


def half_right(site: Site) -> HalfRight:
    plain = splitter(site)
    return HalfRight(plain.number, plain.expects)


def hub_and_edges(edges: int, *, deliver: bool = True) -> World:
    spec = agreement(
        1 + edges,
        rounds=ROUNDS,
        closing_rounds=0,
        gossip={"topology": {"kind": "complete"}, "averaging": {"kind": "none"}},
        knowledge={"exchange": {"kind": "hub", "share_features": True, "deliver": deliver}},
    )
    names = ["hub 0", *(f"edge {i}" for i in range(1, 1 + edges))]
    return World(
        spec,
        [SimulatedSite(factory=half_right, site=Site(data=name), shares_features=True) for name in names],
    )


def test_edge_hub_and_bytes_of_packets_are_means_over_the_machines() -> None:
    world = hub_and_edges(2)
    assert world.run(until_s=100)
    up = features_bytes(ROWS, width=WIDTH, classes=CLASSES, coding=Coding.INT8)
    down, model = soft_labels_bytes(ROWS, classes=CLASSES), hub_model_bytes(2)
    assert exchanged(world.machines, world.spec, "accuracy") == {
        "kind": "hub",
        "edge": 0.5,
        "hub": 1.0,
        "holders": 3,
        "bytes": (2 * ROUNDS * (up + down) + 2 * model) / (3 * ROUNDS),
    }


def test_only_who_holds_the_hub_s_model_is_judged_with_it() -> None:
    world = hub_and_edges(2, deliver=False)
    assert world.run(until_s=100)
    found = exchanged(world.machines, world.spec, "accuracy")
    assert found is not None
    assert (found["holders"], found["hub"]) == (1, 1.0)
    of_edges = exchanged(world.machines[1:], world.spec, "accuracy")
    assert of_edges is not None
    assert (of_edges["holders"], of_edges["hub"]) == (0, None)


def test_a_run_without_an_exchange_says_nothing_of_knowledge() -> None:
    world = tiny_world(2, spec=agreement(2))
    assert exchanged(world.machines, world.spec, "accuracy") is None


@pytest.mark.slow
def test_a_verdict_tells_what_edges_and_their_hub_s_model_are_worth() -> None:
    settings = ["learner.data={source='sklearn:digits#0-400', test_fraction=0.2}", "learner.hub_epochs=1"]
    verdict = run_trial(load("gkt", rounds=2, settings=[*settings, "simulation.baselines=false"]))
    knowledge = verdict["knowledge"]
    assert knowledge["edge"] == pytest.approx(verdict["metric"]["mean"])
    assert knowledge["holders"] == 6
    assert 0 < knowledge["hub"] < 1
    assert f"with the hub's model {knowledge['hub']:.4f}" in verdict_text(verdict)


def test_a_shuffled_teacher_gives_each_row_the_soft_label_of_another() -> None:
    world = hub_and_edges(1)
    world.run(until_s=0.5)
    machine = world.machines[1]
    machine.site = replace(machine.site, shuffles_teacher=True)
    log_p = np.arange(30.0).reshape(10, 3)
    teacher = Teacher(ids=np.arange(10).astype(np.uint64), log_p=log_p, alpha=1.0, temperature=3.0)
    job = Work(
        round=1,
        number=0,
        job=Fit(teacher=teacher),
        parameters=np.zeros(2, np.float32),
        seed=(0,),
        progress=0.0,
        deadline=9.0,
    )
    dealt = [machine._shuffled(replace(job, round=i)).job for i in (1, 1, 2)]
    assert all(isinstance(one, Fit) and one.teacher is not None for one in dealt)
    first, again, other = (one.teacher.log_p for one in dealt)  # type: ignore[union-attr]
    assert np.array_equal(np.sort(first, axis=0), log_p)
    assert not np.array_equal(first, log_p)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
