"""Shipped scenarios meet what they promise, and a verdict says what happened."""

import json

import numpy as np
import pytest

from p2pfl.errors import LocalError
from p2pfl.simulations import expect, sweep
from p2pfl.simulations.scenario import Scenario, load, parse_seeds
from p2pfl.simulations.trial import run_trial
from p2pfl.simulations.workload import cut

_FIELDS = """v engine peers rounds metric pooled alone consensus_distance mass bytes_sent bytes_per_peer_round
wall_s peak_rss_mb seed run_id report per_peer peer_rounds_per_s attack aggregator byzantine honest"""


def _unmet(scenario: Scenario, seeds: str) -> list[str]:
    verdicts = [run_trial(scenario.with_seed(seed)) for seed in parse_seeds(seeds)]
    return [o.text for e in scenario.expectations if not (o := expect.judge(e, verdicts)).is_met]


@pytest.mark.slow
def test_four_sites_learn_the_digits_as_one_without_a_server() -> None:
    scenario = load("digits")
    workload = cut(scenario.spec, 4, scenario.simulation.partition)
    sizes = [len(dataset.x_train) for dataset in workload.datasets if dataset is not None]
    assert min(sizes) >= 64
    assert workload.pooled is not None
    assert sum(sizes) == len(workload.pooled.x_train)
    assert 358 <= len(workload.pooled.x_test) <= 361
    verdict = run_trial(scenario)
    assert [o.text for e in scenario.expectations if not (o := expect.judge(e, [verdict])).is_met] == []
    assert set(verdict) >= set(_FIELDS.split())
    assert json.loads(json.dumps(verdict)) == verdict
    assert [row["finished"] for row in verdict["per_peer"]] == ["done"] * 4
    assert verdict["mass"]["sum"] == pytest.approx(4, abs=1e-9)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_verdict_and_another_seed_another() -> None:
    short = load("crash", rounds=4, settings=["simulation.baselines=false"])
    timing = {"wall_s", "peak_rss_mb", "events_per_s", "peer_rounds_per_s"}
    first, second, other = (
        {k: v for k, v in run_trial(short.with_seed(seed)).items() if k not in timing} for seed in (1, 1, 2)
    )
    assert first == second
    assert first["metric"] != other["metric"]


def test_a_run_that_cannot_end_says_who_is_stuck() -> None:
    stuck = load("digits", rounds=2, settings=["simulation.network.loss=1.0", "simulation.until_s=500.0"])
    with pytest.raises(LocalError, match="waiting"):
        run_trial(stuck)


@pytest.mark.slow
def test_a_network_cut_in_two_heals() -> None:
    cut_ = "simulation.network.partitions=[{start_s=3.5, end_s=9.5, groups=[[0,1],[2,3]]}]"
    scenario = load("digits", rounds=15, settings=[cut_, "run.quorum=0.0"])
    verdict = run_trial(scenario)
    assert verdict["mass"]["sum"] == pytest.approx(4, abs=1e-9)
    assert verdict["metric"]["min"] > 0.9


def test_standardising_over_the_federation_is_as_exact_as_pooling_all_rows() -> None:
    from p2pfl.simulations.trial import make_world

    scenario = load(
        "digits",
        rounds=1,
        settings=[
            "learner.standardise='federation'",
            "learner.data.source='sklearn:wine'",
            "simulation.partition={kind='iid'}",
            "learner.model={kind='logistic'}",
        ],
    )
    workload = cut(scenario.spec, 4, scenario.simulation.partition)
    world = make_world(scenario, workload)
    assert world.run(until_s=1e5)
    assert workload.pooled is not None
    x = workload.pooled.x_train.astype(np.float64)
    for i in range(4):
        pooled = world.peer(i).state.pooled
        assert pooled is not None
        count, total, squares = np.split(pooled, 3)
        mean, variance = total / count, squares / count - (total / count) ** 2
        np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(variance, x.var(axis=0), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "loss", "crash"])
def test_shipped_scenarios_meet_their_expectations_over_two_seeds(name: str) -> None:
    # Over five: `p2pfl simulate NAME --seeds 0-4`.
    assert _unmet(load(name), "0-1") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attacks"),
    [
        ("robust-dense", ("sign-flip",)),
        ("robust-sparse", ("sign-flip", "alie")),
        ("robust-beyond", ("sign-flip", "alie")),
    ],
)
def test_rules_keep_what_their_scenarios_promise_under_an_attack_or_two(
    name: str, attacks: tuple[str, ...]
) -> None:
    # All attacks over five seeds: `p2pfl simulate NAME`.
    scenario = load(name)
    trials = [t for t in sweep.trials(scenario, (0,)) if t.cases["attack"] in attacks]
    verdicts = sweep.run(trials)
    outcomes = [expect.judge(expectation, verdicts) for expectation in scenario.expectations]
    assert [o.text for o in outcomes if not o.is_met] == []


@pytest.mark.slow
def test_short_rounds_beat_few_where_some_sites_are_slow() -> None:
    # The whole study, 15 trials of 35 to 175 rounds, takes some minutes: `p2pfl simulate stragglers`.
    cells = "synchronous={'run.rounds'=16}, stopped={'run.rounds'=4}"
    cells += ", quarter={'run.rounds'=20, 'run.deadline_s'=1.0}"
    short = load("stragglers", settings=[f"simulation.grid={{schedule={{{cells}}}}}"])
    verdicts = {v["cell"]["schedule"]: v for v in sweep.run(sweep.trials(short, (0,)))}
    assert verdicts["synchronous"]["virtual_s"] == pytest.approx(80, abs=0.2)
    assert verdicts["quarter"]["virtual_s"] == pytest.approx(20, abs=0.2)
    assert verdicts["stopped"]["virtual_s"] == pytest.approx(20, abs=0.2)
    lost = {
        name: verdicts["synchronous"]["metric"]["mean"] - v["metric"]["mean"] for name, v in verdicts.items()
    }
    assert lost["quarter"] < 0.02
    assert lost["stopped"] > 0.05
    assert verdicts["quarter"]["mass"]["error"] < 1e-12


@pytest.mark.slow
def test_lies_about_weights_buy_nothing_on_one_graph_and_seed() -> None:
    # The whole grid, 70 trials of whole peers, takes nine minutes: `p2pfl simulate weight-lies`.
    scenario = load("weight-lies")
    trials = [
        t
        for t in sweep.trials(scenario, (0,))
        if t.cases["lie"] in ("none", "million") and "complete" in t.cases["topology"]
    ]
    assert len(trials) == 2
    verdicts = sweep.run(trials)
    outcomes = [expect.judge(expectation, verdicts) for expectation in scenario.expectations]
    assert [o.text for o in outcomes if not o.is_met] == []
