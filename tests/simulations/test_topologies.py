"""The scenario `topologies`: exactness and pace of every family, by the engine that has nothing to learn."""

from pathlib import Path

import pytest

from p2pfl.simulations import expect, sweep
from p2pfl.simulations.scenario import load

# The cells of many peers are for `p2pfl simulate topologies`.
_MOST_PEERS = 100


@pytest.mark.slow
def test_topologies_mix_as_their_papers_say() -> None:
    scenario = load("topologies")
    trials = [t for t in sweep.trials(scenario, (0, 1)) if t.scenario.simulation.peers <= _MOST_PEERS]
    verdicts = sweep.run(trials)
    ran = {trial.cases["topology"] for trial in trials}
    judged = [e for e in scenario.expectations if set(e.when["topology"]) <= ran]
    assert len(judged) >= len(scenario.expectations) - 4
    assert [o.text for e in judged if not (o := expect.judge(e, verdicts)).is_met] == []


def test_every_case_of_the_scenario_is_expected_something_of() -> None:
    scenario = load("topologies")
    expected = {case for e in scenario.expectations for case in e.when["topology"]}
    assert expected == {cell.cases["topology"] for cell in scenario.cells}


def test_a_base_graph_of_whole_peers_is_exact_though_one_has_no_neighbour_in_a_round(tmp_path: Path) -> None:
    path = tmp_path / "still.toml"
    path.write_text(
        """
        [run]
        rounds = 1
        closing_rounds = 6
        [learner]
        model = { kind = "vector", size = 400 }
        [gossip]
        topology = { kind = "base" }
        [simulation]
        peers = 5
        baselines = false
        network = { latency_s = 0.01 }
        expect = ["each consensus_distance <= 1e-5", "each metric.max <= 0.55", "each mass.error <= 1e-12"]
        """
    )
    scenario = load(str(path))
    verdicts = sweep.run(sweep.trials(scenario, (0, 1)))
    assert [o for e in scenario.expectations if not (o := expect.judge(e, verdicts)).is_met] == []
    assert verdicts[0]["data"] is None
