"""What is recorded of a trial: the same of both engines, without changing a bit of it, and bounded."""

from __future__ import annotations

import math
from typing import Any

import pytest

from p2pfl.simulations import recorder, scenario
from p2pfl.simulations.trial import run_trial

_TIMES = {"wall_s", "peak_rss_mb", "events_per_s", "peer_rounds_per_s"}


def _tables(**changes: Any) -> dict[str, Any]:
    run = {"rounds": 6, "closing_rounds": 2, "deadline_s": 20.0}
    learner = {"local_steps": 1, "data": {"source": "sklearn:wine"}, "model": {"kind": "logistic"}}
    simulation = {"peers": 4, "baselines": False, "network": {"latency_s": 0.01}}
    tables: dict[str, Any] = {"run": run, "learner": learner, "simulation": simulation}
    for key, value in changes.items():
        tables[key] = {**tables.get(key, {}), **value}
    return tables


def _recorded(**changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return run_trial(scenario.decode(_tables(**changes), "test", "study"), events=events), events


def _rounds(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "round"]


def test_a_trial_begins_goes_on_round_by_round_and_finishes() -> None:
    verdict, events = _recorded()
    assert [event["event"] for event in events] == ["run began", *["round"] * 8, "run finished"]
    assert {event["v"] for event in events} == {1}
    began, *_, last, finished = events
    assert (began["peers"], began["training"], began["closing"]) == (4, 6, 2)
    assert began["spectral_gap"] == pytest.approx(2 / 3, rel=1e-5)
    assert len(began["graph"]["links"]) == began["graph"]["links_in_all"] == 8
    assert [event["stage"] for event in _rounds(events)] == ["training"] * 6 + ["closing"] * 2
    assert last["metric"]["name"] == "accuracy"
    assert all(event["mass"]["error"] <= 1e-9 for event in _rounds(events))
    assert finished["metric"]["mean"] == pytest.approx(verdict["metric"]["mean"], rel=1e-5)
    assert finished["per_peer"]["peer"] == [0, 1, 2, 3]
    sent = [event["bytes_sent"] for event in _rounds(events)]
    assert sent == sorted(sent)
    assert sent[-1] <= finished["bytes_sent"]


@pytest.mark.parametrize("averaging", ["push-sum", "d-psgd"])
def test_both_engines_record_the_same_of_one_run(averaging: str) -> None:
    gossip = {"averaging": {"kind": averaging}, "topology": {"kind": "ring"}}
    _, world = _recorded(gossip=gossip)
    _, population = _recorded(gossip=gossip, simulation={"engine": "population"})
    assert len(_rounds(world)) == len(_rounds(population)) == 8
    for ours, theirs in zip(_rounds(world), _rounds(population), strict=True):
        for name in ("round", "stage", "peers", "metric", "by_peer"):
            assert ours[name] == theirs[name], name
        for name in ("loss", "w"):
            assert ours[name] == (None if theirs[name] is None else pytest.approx(theirs[name], rel=1e-5))
        assert ours["consensus_distance"] == pytest.approx(theirs["consensus_distance"], rel=1e-4)
        assert (ours["mass"] is None) == (theirs["mass"] is None) == (averaging == "d-psgd")
        assert ours["at"] == pytest.approx(theirs["at"], abs=0.05)


@pytest.mark.parametrize("engine", ["world", "population"])
def test_recording_and_measuring_change_no_bit_of_the_run(engine: str) -> None:
    changes: dict[str, Any] = {"simulation": {"engine": engine, "measure_every": 1}}
    plain = run_trial(scenario.decode(_tables(**changes), "test", "study"))
    recorded, _ = _recorded(**changes)
    assert {k: v for k, v in recorded.items() if k not in _TIMES} == {
        k: v for k, v in plain.items() if k not in _TIMES
    }


@pytest.mark.parametrize(
    ("every", "measured"), [(0, []), (3, [0, 2, 5, 7]), (1, list(range(8))), (100, [0, 7])]
)
def test_models_are_measured_as_often_as_the_scenario_says(every: int, measured: list[int]) -> None:
    _, events = _recorded(simulation={"measure_every": every, "engine": "population"})
    assert [event["round"] for event in _rounds(events) if "metric" in event] == measured


def test_unless_it_says_so_about_twenty_rounds_are_measured() -> None:
    _, events = _recorded(run={"rounds": 100}, simulation={"engine": "population"})
    measured = [event["round"] for event in _rounds(events) if "metric" in event]
    assert 15 <= len(measured) <= 22
    assert (measured[0], measured[-1]) == (0, 101)


def test_the_number_of_rounds_and_peers_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_ROUNDS", 10)
    monkeypatch.setattr(recorder, "_PEERS", 3)
    monkeypatch.setattr(recorder, "_FEW_PEERS", 3)
    _, events = _recorded(run={"rounds": 50}, simulation={"engine": "population"})
    rounds = _rounds(events)
    assert len(rounds) == 10
    assert (rounds[0]["round"], rounds[-1]["round"]) == (0, 51)
    assert events[-1]["per_peer"]["peer"] == [0, 2, 3]
    assert len(events[-1]["deciles"]) == 11
    assert not any("by_peer" in event for event in events)


@pytest.mark.slow
def test_every_round_is_told_once_though_machines_crash_and_lose_disks() -> None:
    churn = {"crashes": 3, "lost_disks": 1, "restored_backups": 1, "down_s": [1.0, 4.0]}
    network = {"latency_s": [0.01, 0.1], "loss": 0.05}
    run = {"rounds": 10, "closing_rounds": 3, "deadline_s": 5.0}
    verdict, events = _recorded(run=run, simulation={"churn": churn, "network": network, "peers": 5})
    numbers = [event["round"] for event in _rounds(events)]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 12
    at = [event["at"] for event in _rounds(events)]
    assert at == sorted(at)
    assert all(event["mass"]["error"] <= 1e-9 for event in _rounds(events))
    assert all(1 <= event["peers"] <= 5 for event in _rounds(events))
    assert events[-1]["warnings"]
    assert sum(events[-1]["warnings"].values()) >= len([e for e in events if e["event"] == "fact"]) > 0
    assert math.isfinite(verdict["metric"]["mean"])


@pytest.mark.slow
def test_attackers_are_neither_measured_nor_counted() -> None:
    attack = {"kind": "sign-flip", "byzantine": 1}
    tables: dict[str, Any] = {
        "gossip": {"topology": {"kind": "complete"}},
        "trust": {"aggregator": {"kind": "monna", "f": 1}},
    }
    for engine in ("world", "population"):
        _, events = _recorded(**tables, simulation={"peers": 5, "attack": attack, "engine": engine})
        began, finished = events[0], events[-1]
        assert (began["peers"], began["honest"], began["attack"]) == (5, 4, "sign-flip")
        assert began["spectral_gap"] is None
        assert {event["peers"] for event in _rounds(events)} == {4}
        assert all(event["mass"] is None for event in _rounds(events))
        assert finished["per_peer"]["peer"] == [0, 1, 2, 3]
