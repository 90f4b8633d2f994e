"""Attackers of a population forge what those of the world forge, and harm as much."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from populations import agreement, made, ran, workload

from p2pfl.simulations.attacks import KINDS, WORLD_KINDS, AttackOptions
from p2pfl.simulations.population import Population
from p2pfl.simulations.scenario import Scenario, load
from p2pfl.simulations.trial import _sites, make_world, run_trial
from p2pfl.simulations.workload import Workload, cut

_REFUSED = ("nan", "inf", "huge", "silent")
_SEEN = sorted(set(KINDS) - {"none", *WORLD_KINDS, *_REFUSED})


def _scenario(kind: str, *settings: str, engine: str = "population", placement: str = "members") -> Scenario:
    attack = f"{{kind='{kind}', byzantine=2, placement='{placement}', starts_at=1}}"
    if kind in ("label-flip", "backdoor"):
        attack = attack.replace("starts_at=1", "starts_at=0")
    # Without latency attackers act in the instant of the honest, and so see what these have just made.
    return load(
        "digits",
        peers=6,
        rounds=4,
        engine=engine,
        settings=[
            "learner.local_steps=2",
            "learner.model.hidden=[4]",
            "gossip.topology.kind='complete'",
            "simulation.partition={kind='iid'}",
            "simulation.baselines=false",
            "run.closing_rounds=2",
            f"simulation.attack={attack}",
            *settings,
        ],
    )


def _both(scenario: Scenario) -> tuple[Any, Any]:
    """The honest peers' last models, as the world and as the population has them."""
    options, spec = scenario.simulation, scenario.spec
    sites: Workload = cut(spec, options.peers - options.attack.byzantine, options.partition)
    world = make_world(scenario, sites)
    assert world.run(until_s=10_000)
    population = Population(spec, sites.factory, _sites(scenario, sites), attack=options.attack)
    population.run()
    honest = population.honest
    return np.stack([world.peer(i).model() for i in range(honest)]), population.models()[:honest]


@pytest.mark.slow
@pytest.mark.parametrize("kind", _SEEN)
def test_a_robust_rule_meets_the_same_lies_in_both_engines(kind: str) -> None:
    world, population = _both(_scenario(kind, "trust.aggregator={kind='coordinate-median', f=2}"))
    np.testing.assert_allclose(population, world, rtol=2e-5, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sign-flip", "alie", "gaussian", "dissensus", "free-ride", "silent", "nan"])
def test_states_that_are_averaged_meet_the_same_lies_in_both_engines(kind: str) -> None:
    settings = ["gossip.averaging.kind='d-psgd'"]
    if kind in ("silent", "nan"):
        settings.append("run.deadline_s=5.0")
    world, population = _both(_scenario(kind, *settings))
    np.testing.assert_allclose(population, world, rtol=2e-5, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sign-flip", "min-max", "gaussian", "free-ride"])
def test_shares_that_are_added_meet_the_same_lies_in_both_engines(kind: str) -> None:
    world, population = _both(_scenario(kind))
    np.testing.assert_allclose(population, world, rtol=2e-5, atol=2e-6)


def test_attackers_everywhere_are_joined_with_every_honest_peer() -> None:
    # Closing rounds take no time, so on a sparse graph the world's attackers see some peers a round ahead.
    settings = ["gossip.topology.kind='ring'", "trust.aggregator={kind='gts', f=2}", "run.closing_rounds=0"]
    world, population = _both(_scenario("dissensus", *settings, placement="everywhere"))
    np.testing.assert_allclose(population, world, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", _REFUSED)
@pytest.mark.parametrize("averaging", ["push-sum", "d-psgd"])
def test_what_a_peer_refuses_is_not_mixed_and_no_mass_is_lost(kind: str, averaging: str) -> None:
    gossip = {"topology": {"kind": "complete"}, "averaging": {"kind": averaging}}
    attacked = ran(5, agreement(5, gossip=gossip), attack=AttackOptions(kind=kind, byzantine=1))
    assert np.isfinite(attacked.models()).all()
    assert np.abs(attacked.models()).max() < 10
    mass = attacked.mass()
    assert mass is None or mass["error"] < 1e-12
    # What was refused is with the attacker: it gets from four and gives nobody.
    assert mass is None or attacked.held.w[4] > 2


def test_before_it_attacks_a_sleeper_is_as_honest_as_any() -> None:
    spec, sites = agreement(5, run={"rounds": 6}), workload(5)
    sleeper = AttackOptions(kind="foe", byzantine=2, starts_at=3)
    honest, attacked = made(5, spec, sites), made(5, spec, sites, attack=sleeper)
    apart = []
    for _ in range(6):
        honest.step()
        attacked.step()
        apart.append(not np.array_equal(honest.models()[:3], attacked.models()[:3]))
    # What is sent in round 3 is mixed in round 4.
    assert apart == [False] * 4 + [True] * 2


def test_the_verdict_is_on_the_honest() -> None:
    verdict = run_trial(_scenario("sign-flip"))
    assert (verdict["attack"], verdict["byzantine"], verdict["peers"]) == ("sign-flip", 2, 6)
    assert [row["peer"] for row in verdict["per_peer"]] == [0, 1, 2, 3]
    mean = np.mean([row["metrics"]["accuracy"] for row in verdict["per_peer"]])
    assert verdict["honest"]["mean"] == pytest.approx(mean)
