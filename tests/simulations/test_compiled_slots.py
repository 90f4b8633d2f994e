"""The compiled wheel makes the batches of the calendar in numpy, and compiled ticks are the oracle's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gossipers import course, gossip, oracle_of

from p2pfl.simulations import compiled_slots, fleet_trial
from p2pfl.simulations.compiled_pushes import CompiledPushes
from p2pfl.simulations.compiled_slots import Wheel
from p2pfl.simulations.plain import Plain
from p2pfl.simulations.plain_push import PlainPushes
from p2pfl.simulations.push_gossip import PushGossip
from p2pfl.simulations.scenario import load
from p2pfl.simulations.slot_calendar import Calendar
from p2pfl.simulations.slots import Schedule
from p2pfl.simulations.trial import run_trial

pytestmark = pytest.mark.slow

_FOR_EVER = 1 << 62
_COLUMNS = ("slots", "times", "peers", "numbers", "steps", "out", "first", "places", "events", "lost")


def _columns(timetable: Schedule, most: int) -> dict[str, list[Any]]:
    """All batches of a schedule, and what waits at its end."""
    found: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    while (batch := timetable.until(_FOR_EVER, most)) is not None:
        for name in ("peers", "numbers", "steps", "out", "places"):
            found[name] += getattr(batch, name).tolist()
        found["slots"] += np.diff(batch.slots).tolist()
        found["first"] += np.diff(batch.first).tolist()
        found["times"] += batch.times.tolist()
        found["events"].append(batch.events)
        found["lost"].append(batch.lost)
    for name in ("events", "lost"):
        found[name] = [sum(found[name])]
    return {**found, "waiting": [column.tolist() for column in timetable.waiting()]}


@pytest.mark.parametrize(
    "options",
    [
        {"n": 7},
        {"n": 300, "crashes": 200, "topology": {"kind": "complete"}},
        {"n": 64, "crashes": 500, "loss": 0.5, "topology": {"kind": "one-peer-exponential"}},
        {"n": 50, "fit_s": 1.0, "latency": (100_000, 100_000), "topology": {"kind": "star"}},
        {"n": 33, "latency": (1_000, 3_000_000), "topology": {"kind": "random-regular", "degree": 4}},
        {"n": 20, "deadline_s": 1.0, "loss": 1.0},
    ],
)
def test_the_wheel_turns_as_the_calendar_does(options: dict[str, Any]) -> None:
    plan = course(**options)
    for places in (1, 5000):
        calendar, wheel = _columns(Calendar(plan, places), 100), _columns(Wheel(plan, places), 100)
        assert len(calendar["peers"]) > 20
        for name, column in calendar.items():
            assert wheel[name] == column, name


def test_a_wheel_of_few_buckets_keeps_what_is_due_in_later_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = course(40, crashes=20)
    usual = _columns(Wheel(plan, 10), 50)
    monkeypatch.setattr(compiled_slots, "_REACH", 2)
    assert _columns(Wheel(plan, 10), 50) == usual


def ran(population: PushGossip) -> PushGossip:
    while not population.is_over:
        population.step()
        assert population.mass()["error"] == 0.0
    population.finish()
    return population


@pytest.mark.parametrize("crashes", [0, 20])
def test_compiled_ticks_are_those_of_a_queue_of_events(crashes: int) -> None:
    plan = course(40, crashes=crashes, topology={"kind": "complete"}, deadline_s=1.5)
    population = ran(gossip(plan, Wheel(plan, 4), CompiledPushes()))
    told = oracle_of(population, plan)
    assert [peer.w for peer in told.peers] == population.w.tolist()
    np.testing.assert_allclose(np.stack([peer.x for peer in told.peers]), population.held, rtol=0, atol=2e-6)
    plain = ran(gossip(plan, Calendar(plan, 4), PlainPushes()))
    assert [said["lost"] for said in plain.per_round] == [said["lost"] for said in population.per_round]
    for one, other in zip(plain.per_round, population.per_round, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_threads_change_no_bit_of_an_asynchronous_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pfl.simulations.push_gossip._SHARED", 4)
    plan = course(200, crashes=50, topology={"kind": "complete"})
    one, two = (ran(gossip(plan, Wheel(plan, 4), CompiledPushes(), threads=threads)) for threads in (1, 2))
    assert one.held.tobytes() == two.held.tobytes()
    assert one.w.tobytes() == two.w.tobytes()


def test_numpy_and_numba_reach_the_same_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = load("asynchronous", peers=60, rounds=10, settings=["simulation.churn.crashes=20"])
    compiled = run_trial(scenario)
    monkeypatch.setattr(fleet_trial, "load", lambda *_: Plain())
    plain = run_trial(scenario)
    assert (compiled["kernels"], plain["kernels"]) == ("numba", "numpy")
    for name in ("events", "shares_sent", "shares_lost", "virtual_s", "bytes_sent", "mass"):
        assert compiled[name] == plain[name]
    assert compiled["mean_model"] == pytest.approx(plain["mean_model"], abs=0.01)
    assert compiled["mass"]["error"] < 1e-12
    assert len(compiled["per_round"]) == 10 + scenario.spec.run.closing_rounds
    assert compiled["virtual_s"] == pytest.approx(10.0 + 0.4 * scenario.spec.run.closing_rounds)


def test_peers_on_their_own_clocks_learn_the_digits() -> None:
    quiet = ["run.closing_rounds=30", "simulation.churn.crashes=150"]
    verdict = run_trial(load("asynchronous", peers=300, rounds=80, settings=quiet))
    assert verdict["trained"]["mean_model"] > 0.85
    assert verdict["metric"]["min"] > verdict["mean_model"] - 0.05
    assert verdict["shares_lost"] > 0.08 * verdict["shares_sent"]
