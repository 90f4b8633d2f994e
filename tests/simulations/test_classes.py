"""Who is slow, and who sits behind a line of their own."""

from typing import Any

import msgspec
import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.net.link_model import LinkModel
from p2pfl.simulations.classes import AccessClass, Lines, SpeedClass, factors, members
from p2pfl.simulations.scenario import load
from p2pfl.simulations.trial import make_world
from p2pfl.simulations.workload import cut


def test_a_class_has_as_many_peers_as_it_says_and_the_seed_says_who() -> None:
    classes = {"slow": SpeedClass(peers=5, factor=5.0), "fast": SpeedClass(share=0.25, factor=0.5)}
    of = [factors(classes, 16, seed).tolist() for seed in range(20)]
    assert all(sorted(one) == [0.5] * 4 + [1.0] * 7 + [5.0] * 5 for one in of)
    assert of == [factors(classes, 16, seed).tolist() for seed in range(20)]
    assert len({tuple(one) for one in of}) == 20
    # Over seeds everybody is slow about as often.
    slow = np.mean([np.array(factors(classes, 16, seed)) == 5.0 for seed in range(400)], axis=0)
    assert np.abs(slow - 5 / 16).max() < 0.1


def test_a_range_of_factors_gives_each_peer_its_own() -> None:
    one = factors({"all": SpeedClass(share=1.0, factor=(0.5, 2.0))}, 200, 7)
    assert len(set(one.tolist())) == 200
    assert one.min() >= 0.5
    assert one.max() <= 2.0
    assert one.mean() == pytest.approx(1.25, abs=0.1)


def test_without_classes_all_are_alike() -> None:
    assert factors({}, 3, 0).tolist() == [1.0] * 3
    assert members({}, 2, np.random.default_rng(0)).tolist() == [-1, -1]


def test_who_is_slow_says_nothing_of_who_has_a_bad_line() -> None:
    slow = factors({"slow": SpeedClass(peers=50, factor=2.0)}, 100, 3) == 2.0
    lines = Lines({"bad": AccessClass(peers=50, loss=0.5)}, LinkModel(), 100, 3)
    bad = np.array([lines.between(i, (i + 1) % 100).loss > 0 for i in range(100)])
    assert 10 < np.sum(slow & bad) < 90


def test_lines_of_both_ends_add_up() -> None:
    network = LinkModel(latency_s=(0.01, 0.02), loss=0.1, duplication=0.05, bandwidth_mbit_s=100)
    bad = AccessClass(share=1.0, latency_s=(0.1, 0.3), loss=0.5, bandwidth_mbit_s=4)
    both = Lines({"bad": bad}, network, 2, 0).between(0, 1)
    assert both.latency_s == pytest.approx((0.21, 0.62))
    assert both.loss == pytest.approx(1 - 0.9 * 0.5 * 0.5)
    assert both.bandwidth_mbit_s == 4
    assert both.duplication == 0.05
    lines = Lines({"bad": AccessClass(peers=1, latency_s=1.0)}, network, 3, 0)
    latencies = sorted(lines.between(a, b).latency_s[0] for a in range(3) for b in range(3) if a != b)
    assert latencies == pytest.approx([0.01] * 2 + [1.01] * 4)
    assert Lines({}, network, 2, 0).between(0, 1) == network


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"factor": 2.0}, "either"),
        ({"peers": 1, "share": 0.5}, "either"),
        ({"peers": 1, "factor": 0.0}, "factor"),
        ({"peers": 1, "factor": [3.0, 2.0]}, "factor"),
        ({"peers": -1}, "peers"),
        ({"share": 1.5}, "share"),
        ({"peers": 1, "speed": 2.0}, "speed"),
    ],
)
def test_a_speed_that_makes_no_sense_is_refused(table: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert(table, SpeedClass)


def test_a_line_that_makes_no_sense_is_refused() -> None:
    for table, words in (({"loss": 1.5}, "loss"), ({"latency_s": [2.0, 1.0]}, "latency_s")):
        with pytest.raises(msgspec.ValidationError, match=words):
            msgspec.convert({"peers": 1, **table}, AccessClass)


def test_classes_of_more_peers_than_there_are_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"\[simulation\] the classes slow, slower have 5 peers"):
        load("digits", settings=["simulation.speed={slow={peers=3}, slower={share=0.5}}"])


@pytest.mark.parametrize("key", ["speed", "access"])
def test_the_population_engine_says_that_it_has_no_classes(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"no simulation\.{key}"):
        load("digits", engine="population", settings=[f"simulation.{key}={{slow={{peers=1}}}}"])


@pytest.mark.slow
def test_a_scenario_s_classes_reach_its_world() -> None:
    scenario = load(
        "digits",
        settings=[
            "simulation.speed={slow={peers=1, factor=5}}",
            "simulation.access={far={peers=1, latency_s=1.0}}",
            "simulation.evaluate_s=0.5",
        ],
    )
    workload = cut(scenario.spec, 4, scenario.simulation.partition)
    world = make_world(scenario, workload)
    assert sorted(machine.site.fit_s for machine in world.machines) == [1.0, 1.0, 1.0, 5.0]
    assert sorted(machine.site.evaluate_s for machine in world.machines) == [0.5, 0.5, 0.5, 2.5]
    taken = sorted(world.network.arrivals(a, b, 0.0, 0)[0] for a in range(4) for b in range(4) if a != b)
    assert taken == pytest.approx([0.01] * 6 + [1.01] * 6)
