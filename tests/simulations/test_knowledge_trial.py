"""Whole runs that exchange knowledge, simulated: sites by role, and how long their jobs take."""

from typing import Any

import numpy as np
import pytest
from lessons import PROBE

from p2pfl.errors import ConfigError
from p2pfl.events import Started
from p2pfl.ids import PeerId
from p2pfl.learn.learner import Site, Update
from p2pfl.run import decode as decode_run
from p2pfl.simulations.attacks import AttackOptions
from p2pfl.simulations.machine import Machine, SimulatedSite, founded_by, identities
from p2pfl.simulations.poisoning import byzantine_site
from p2pfl.simulations.scenario import Scenario, decode
from p2pfl.simulations.trial import make_world, run_trial
from p2pfl.simulations.workload import cut
from p2pfl.work import Answer, Distill, Fit, Fitted, Learn, Samples, Work

KNOWN = {"source": PROBE["probe_source"], "digest": PROBE["probe_digest"], "samples": PROBE["probe_samples"]}
PROBING: dict[str, Any] = {
    "run": {"rounds": 4, "closing_rounds": 0, "deadline_s": 30.0},
    "learner": {
        "data": {"source": "sklearn:digits#0-800"},
        "local_steps": 20,
        "optimizer": {"lr": 0.05},
        "roles": {
            "image": {"model": {"kind": "cnn", "channels": [4, 8]}},
            "wide": {"model": {"kind": "mlp"}},
            "plain": {"model": {"kind": "logistic"}},
        },
    },
    "gossip": {"topology": {"kind": "complete"}, "averaging": {"kind": "none"}},
    "knowledge": {"exchange": {"kind": "probe"}, "probe": KNOWN},
    "simulation": {"peers": 4, "roles": ["image", "wide", "plain"], "baselines": False},
}


def _scenario(**simulation: Any) -> Scenario:
    table = {**PROBING, "simulation": {**PROBING["simulation"], **simulation}}
    return decode(table, "here", "probing")


def test_roles_are_dealt_in_turn_and_the_last_attacker_gets_its_own() -> None:
    scenario = _scenario()
    workload = cut(scenario.spec, 3, scenario.simulation.partition, roles=scenario.simulation.roles)
    sites = [workload.site(i, scenario.spec) for i in range(3)]
    assert [site.role for site in sites] == ["image", "wide", "plain"]
    assert [site.options.model.kind for site in sites] == ["cnn", "mlp", "logistic"]
    assert {site.exchange for site in sites} == {"probe"}
    liar = byzantine_site(workload, AttackOptions(), scenario.spec, 0)
    assert liar.role == "image"
    assert liar.dataset is sites[0].dataset
    assert byzantine_site(workload, AttackOptions(), scenario.spec, 2).role == "plain"


@pytest.mark.parametrize(
    ("simulation", "said"),
    [
        ({"roles": ["image", "wider"]}, "no role 'wider'"),
        ({"roles": []}, "image, plain, wide"),
        ({"roles": ["image"] * 5}, "5 roles for 4 peers"),
        ({"engine": "population"}, "learner.roles|knowledge"),
    ],
)
def test_roles_that_cannot_be_dealt_are_refused(simulation: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        _scenario(**simulation)


def test_a_round_of_sites_with_models_of_different_sizes_is_recorded() -> None:
    told: list[dict[str, Any]] = []
    table: dict[str, Any] = {
        **PROBING,
        "run": {**PROBING["run"], "rounds": 2},
        "learner": {
            **PROBING["learner"],
            "data": {"source": "sklearn:digits#0-100", "test_fraction": 0.2},
            "local_steps": 2,
            "roles": {"wide": {"model": {"kind": "mlp"}}, "plain": {"model": {"kind": "logistic"}}},
        },
        "simulation": {"peers": 2, "roles": ["wide", "plain"], "baselines": False},
    }
    run_trial(decode(table, "here", "recorded"), events=told)
    rounds = [event for event in told if event["event"] == "round"]
    assert len(rounds) == 2
    assert {event["consensus_distance"] for event in rounds} == {None}


@pytest.mark.slow
def test_a_hub_of_the_built_in_models_answers_its_edges_in_a_simulated_run() -> None:
    table: dict[str, Any] = {
        **PROBING,
        "run": {"rounds": 3, "closing_rounds": 0, "deadline_s": 30.0},
        "learner": {
            "data": {"source": "sklearn:digits#0-160"},
            "model": {"kind": "gkt"},
            "local_steps": 4,
            "batch_size": 16,
            "optimizer": {"lr": 0.02},
            "hub_epochs": 1,
            "roles": {"hub": {"capacity": 1.0}, "edge": {}},
        },
        "knowledge": {"exchange": {"kind": "hub", "share_features": True}},
        "simulation": {"peers": 3, "roles": ["hub", "edge", "edge"], "baselines": False, "learn_s": 4.0},
    }
    told: list[dict[str, Any]] = []
    scenario = decode(table, "here", "hub")
    workload = cut(scenario.spec, 3, scenario.simulation.partition, roles=scenario.simulation.roles)
    world = make_world(scenario, workload, listener=lambda _, i, fact: told.append({"i": i, **fact.fields}))
    assert world.run(until_s=1e4)
    # Three rounds of a fit (1 s) and what follows it; a hub learns four seconds long.
    assert world.now > 3 * (1.0 + 4.0)
    for machine in world.machines:
        assert machine.finished == "done"
        assert not [fact for _, fact in machine.facts if fact.event == "knowledge job failed"]


# --- how long a job takes ------------------------------------------------------------------------------


class Looking:
    """A learner that looks at the clock at every step."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.steps = 0

    def parameters(self) -> Any:
        return np.zeros(2, np.float32)

    def fit(self, parameters: Any, rng: Any) -> Update:
        self.steps = 0
        while self.steps < 10 and not self.site.should_stop():
            self.steps += 1
        return Update(parameters=parameters, samples=self.steps, metrics={"steps": self.steps})

    def evaluate(self, parameters: Any) -> Any:
        return {}

    def classes(self) -> int:
        return 10

    def answer(self, parameters: Any, x: Any) -> Any:
        return np.zeros((len(x), 10), np.float32)

    def distill(self, parameters: Any, x: Any, targets: Any, rng: Any, **how: Any) -> Update:
        return self.fit(parameters, rng)


def _machine(**times: float) -> tuple[Machine, Started]:
    spec = decode_run(
        {
            "run": {"members_at_start": 1},
            "learner": {"module": "mine:learner", "local_steps": 10},
            "gossip": PROBING["gossip"],
            "knowledge": PROBING["knowledge"],
        },
        "here",
    )
    (key,) = identities(1, 0)
    site = SimulatedSite(factory=Looking, **times)  # type: ignore[arg-type]
    machine = Machine(0, key, site, spec, founded_by(key.peer_id, [key.peer_id]), 0)  # type: ignore[arg-type]
    return machine, machine.boot()


def _work(job: Any, deadline: float = 100.0) -> Work:
    return Work(
        round=0,
        number=1,
        job=job,
        parameters=np.zeros(2, np.float32),
        seed=(1,),
        progress=0.0,
        deadline=deadline,
    )


DISTILL = Distill(p=np.full((40, 10), 0.1), is_used=np.ones(40, bool), alpha=1.0, temperature=1.0, epochs=4)
LEARN = Learn(
    features={PeerId("a"): Samples(hidden=np.zeros((64, 2)), z=np.zeros((64, 2)), labels=np.zeros(64, int))},  # type: ignore[arg-type]
    only_answer={},
    alpha=1.0,
    temperature=1.0,
)


def test_a_fit_takes_its_time_a_hub_its_own_and_the_rest_an_evaluations() -> None:
    machine, started = _machine(fit_s=3.0, evaluate_s=0.5)
    assert started.expected is not None
    assert started.expected.classes == 10
    ends = [machine.work_ends_at(_work(job), 10.0) for job in (Fit(), DISTILL, LEARN, Answer())]
    assert ends == [13.0, 13.0, 13.0, 10.5]
    machine, _ = _machine(fit_s=3.0, evaluate_s=0.5, learn_s=20.0)
    ends = [
        machine.work_ends_at(_work(job, deadline=25.0), 10.0) for job in (Fit(), DISTILL, LEARN, Answer())
    ]
    assert ends == [13.0, 25.0, 25.0, 10.5]


def test_what_does_not_end_by_the_deadline_is_partial_work() -> None:
    machine, _ = _machine(fit_s=5.0)
    whole = machine.work(_work(Fit()), took_s=5.0)
    assert (whole.result, whole.metrics) == (Fitted(), {"steps": 10.0})
    assert machine.work(_work(Fit()), took_s=2.0).metrics == {"steps": 4.0}
    # Four epochs of 40 rows are three steps of 64.
    assert machine.work(_work(DISTILL), took_s=3.4).metrics == {"steps": 2.0}
    assert machine.work(_work(Fit()), took_s=5.0).metrics == {"steps": 10.0}
