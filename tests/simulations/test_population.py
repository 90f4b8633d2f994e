"""The population engine's controls are what they say, and it refuses what it cannot do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from populations import agreement, ran, workload
from tiny_learner import TinyLearner

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.events import Fact
from p2pfl.learn.learner import Learner, Site, Update
from p2pfl.simulations.memory import available_bytes, needed_bytes, refuse_if_too_large
from p2pfl.simulations.population import Control, Population
from p2pfl.simulations.scenario import load
from p2pfl.simulations.trial import run_trial


def _means(population: Population) -> list[float]:
    return [float(model.mean()) for model in population.models()]


def _controlled(control: Control, n: int = 4, **tables: dict[str, Any]) -> Population:
    tables.setdefault("run", {"rounds": 200, "closing_rounds": 0})

    def still(site: Site) -> Learner:
        return TinyLearner(np.full(3, float(site.data), np.float32))

    return ran(n, agreement(n, **tables), workload(n, still), control=control)


def test_who_is_alone_goes_to_its_own_optimum() -> None:
    alone = _controlled("alone")
    assert _means(alone) == pytest.approx([0, 1, 2, 3], abs=1e-3)
    assert alone.mass() is None
    assert alone.sent_bodies.sum() == 0


def test_centralised_peers_are_one_model_at_the_common_optimum() -> None:
    population = _controlled("centralised")
    assert _means(population) == pytest.approx([1.5] * 4, abs=1e-4)
    assert np.ptp(population.models(), axis=0).max() == 0
    run = {"rounds": 200, "closing_rounds": 0, "weights": "samples"}
    weighted = ran(4, agreement(4, run=run), workload(4), control="centralised")
    # Sites of 3, 4, 5 and 6 rows at 0, 1, 2 and 3.
    assert _means(weighted)[0] == pytest.approx(32 / 18, abs=0.05)


# Peer 0 hears the two others and tells one of them: its in- and out-degrees differ.
_LOPSIDED = {
    "kind": "explicit",
    "edges": [[0, 1], [1, 2], [2, 0], [1, 0]],
    "directed": True,
}


def test_weights_are_what_makes_a_lopsided_digraph_average() -> None:
    gossip = {"topology": _LOPSIDED}
    push_sum = _controlled("none", 3, gossip=gossip, run={"rounds": 0, "closing_rounds": 60})
    assert _means(push_sum) == [0.0] * 3
    steady = {"rounds": 400, "closing_rounds": 0}
    exact, without, rows = (
        _controlled(control, 3, gossip=gossip, run=steady)
        for control in ("none", "without-weights", "row-stochastic")
    )
    # The Perron vector of the row-stochastic matrix weighs peers unequally, and models that are not divided
    # by w grow where much arrives; push-sum alone is centred on the mean of 0, 1 and 2.
    assert abs(np.mean(_means(exact)) - 1) < 0.1
    assert np.ptp(_means(without)) > 2 * np.ptp(_means(exact))
    assert abs(np.mean(_means(rows)) - 1) > abs(np.mean(_means(exact)) - 1)


@pytest.mark.parametrize("control", ["without-weights", "row-stochastic"])
def test_on_a_regular_graph_controls_are_what_they_are_controls_of(control: Control) -> None:
    gossip = {"topology": {"kind": "exponential"}, "averaging": {"kind": "d-psgd"}}
    if control == "without-weights":
        gossip["averaging"] = {"kind": "push-sum"}
    run = {"rounds": 10, "closing_rounds": 0}
    reference = _controlled("none", gossip=gossip, run=run)
    np.testing.assert_allclose(
        _controlled(control, gossip=gossip, run=run).models(), reference.models(), rtol=1e-5
    )


def test_without_weights_is_the_dense_product_of_the_columns() -> None:
    """x <- C x + (step at x), a fit that goes a tenth of the way to its target."""
    from p2pfl.gossip.options import TopologyOptions
    from p2pfl.gossip.topology import matrix, plan

    population = _controlled("without-weights", 3, gossip={"topology": _LOPSIDED}, run={"rounds": 6})
    options = TopologyOptions(kind="explicit", edges=((0, 1), (1, 2), (2, 0), (1, 0)), directed=True)
    C, target, x = matrix(plan(options, 0, 3, 0)), np.arange(3.0), np.zeros(3)
    for number in range(7):
        # Round 6 is a closing round; the shares of the last round are absorbed without a further step.
        x = (C @ x if number else x) + (0.1 * (target - x) if number < 6 else 0.0)
    np.testing.assert_allclose(_means(population), C @ x, rtol=1e-5)


def test_rounds_are_told_with_their_losses() -> None:
    told: list[Fact] = []
    population = ran(3, agreement(3), consensus_every=2, listener=lambda _, __, fact: told.append(fact))
    assert [row["stage"] for row in population.per_round] == ["training"] * 3 + ["closing"]
    assert [("consensus_distance" in row) for row in population.per_round] == [False, True, False, True]
    losses = [fact.fields["loss"] for fact in told if fact.fields["stage"] == "training"]
    assert len(told) == 12
    assert population.online_loss() == pytest.approx(np.mean(losses))
    assert population.per_round[0]["loss"] == pytest.approx(np.mean(losses[:3]))


@dataclass(slots=True)
class _Fragile:
    """Fails from its second fit on."""

    fits: int = 0

    def parameters(self) -> Any:
        return np.zeros(2, np.float32)

    def fit(self, parameters: Any, rng: np.random.Generator) -> Update:
        self.fits += 1
        if self.fits > 1:
            raise ValueError("no more rows")
        return Update(parameters=parameters + 1, samples=1)

    def evaluate(self, parameters: Any) -> Any:
        return {"sum": float(parameters.sum())}


def test_a_fit_that_fails_costs_its_step_and_all_that_fail_end_the_run() -> None:
    def one_is_fragile(site: Site) -> Learner:
        return _Fragile() if site.data == "0" else _Fragile(fits=-100)

    population = ran(3, agreement(3), workload(3, one_is_fragile))
    assert population.faults.tolist() == [2, 0, 0]
    assert population.online_loss() is None
    with pytest.raises(LearnerError, match=r"every fit of round 1 failed.*no more rows"):
        ran(3, agreement(3), workload(3, lambda _: _Fragile()))


@dataclass(slots=True)
class _Start:
    """Starts where its site says."""

    at: float

    def parameters(self) -> Any:
        return np.full(2, self.at, np.float32)

    def fit(self, parameters: Any, rng: np.random.Generator) -> Update:
        return Update(parameters=parameters, samples=1)

    def evaluate(self, parameters: Any) -> Any:
        return {}


def _other_start(site: Site) -> Learner:
    return _Start(float(site.data))


def test_sites_that_start_from_different_models_are_refused() -> None:
    with pytest.raises(LearnerError, match="site 1 starts from another model"):
        ran(2, agreement(2), workload(2, _other_start))


def test_memory_is_planned_before_it_is_taken() -> None:
    assert needed_bytes(1000, 10**6) == pytest.approx(36e9, rel=0.01)
    refuse_if_too_large(4, 1000, available=2**30)
    with pytest.raises(ConfigError, match=r"need 36\.\d GB, and 1\.1 GB are free; lower simulation\.peers"):
        refuse_if_too_large(1000, 10**6, available=2**30)
    known = available_bytes()
    assert known is None or known > 2**20
    with pytest.raises(ConfigError, match=r"lower simulation\.peers"):
        refuse_if_too_large(10**6, 10**9)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("simulation.churn.crashes=1", "churn"),
        ("simulation.network.loss=0.1", "loss"),
        ("simulation.network.latency_s=[0.0, 0.1]", "latency_s as a range"),
        ("simulation.network.partitions=[{start_s=1.0, end_s=2.0, groups=[[0]]}]", "partitions"),
        ("simulation.network.bandwidth_mbit_s=1.0", "bandwidth"),
        ("simulation.fit_s=[1.0, 2.0]", "unequal times"),
        ("simulation.fit_s=61.0", "deadline_s"),
        ("simulation.crypto=true", "crypto"),
        ("simulation.reference='perfect-network'", "reference"),
        ("run.members_at_start=3", "members_at_start"),
        ("trust.max_norm=10.0", "trust table"),
        ("simulation.attack={kind='bomb', byzantine=1}", "attack 'bomb'"),
    ],
)
def test_what_the_population_cannot_do_is_refused_with_the_engine_that_can(setting: str, match: str) -> None:
    with pytest.raises(ConfigError, match=f"{match}.*--engine world"):
        load("digits", engine="population", settings=[setting])


@pytest.mark.parametrize("setting", ["simulation.control='alone'", "simulation.consensus_every=1"])
def test_what_the_world_cannot_do_is_refused_with_the_engine_that_can(setting: str) -> None:
    with pytest.raises(ConfigError, match="--engine population"):
        load("digits", settings=[setting])


def test_both_engines_give_the_same_verdict_on_a_shipped_scenario() -> None:
    same = ["metric", "pooled", "alone", "seed", "honest", "rounds", "peers"]
    options: dict[str, Any] = {"rounds": 4, "settings": ["learner.local_steps=5"]}
    world = run_trial(load("digits", **options))
    population = run_trial(load("digits", engine="population", **options))
    assert population["engine"] == "population"
    assert {key: population[key] for key in same} == {key: world[key] for key in same}
    assert population["consensus_distance"] == pytest.approx(world["consensus_distance"], rel=1e-5)
    assert population["online_loss"] == pytest.approx(world["online_loss"], rel=1e-6)
    assert population["mass"]["sum"] == pytest.approx(4, abs=1e-12)
    # The population counts bodies alone; a world's headers, statements and hellos come on top.
    assert 0.5 * world["bytes_sent"] < population["bytes_sent"] < world["bytes_sent"]
    assert set(population) >= set(world) - {"virtual_s", "events", "events_per_s"}


def test_a_rule_whose_bound_is_broken_is_counted() -> None:
    """Of seven inputs two may lie, not four."""
    trust = [{"aggregator": {"kind": "coordinate-median", "f": f}} for f in (2.0, 4.0)]
    gossip = {"topology": {"kind": "complete"}}
    kept, broken = (ran(7, agreement(7, gossip=gossip, trust=one)).per_round for one in trust)
    assert [row["bounds_broken"] for row in kept] == [0] * 4
    # In the first round nobody has heard anybody.
    assert [row["bounds_broken"] for row in broken] == [0, 7, 7, 7]
