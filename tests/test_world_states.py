"""Models that travel as states: averaged by the plan, or by a robust rule, in a world of real peers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from worlds import agreement, facts, tiny_world

from p2pfl.errors import ConfigError
from p2pfl.run import RunSpec


def states(n: int, **options: Any) -> RunSpec:
    return agreement(n, gossip={"averaging": {"kind": "d-psgd"}, "topology": {"kind": "complete"}}, **options)


def robust(n: int, rule: str, f: float, **options: Any) -> RunSpec:
    return agreement(
        n,
        gossip={"topology": {"kind": "complete"}},
        trust={"aggregator": {"kind": rule, "f": f}},
        **options,
    )


@pytest.mark.parametrize(
    "spec", [states(4, rounds=12), robust(4, "mean", 0, rounds=12)], ids=["plan", "rule"]
)
def test_a_node_whose_disk_is_lost_ends_beside_the_others(spec: RunSpec) -> None:
    world = tiny_world(4, spec=spec)
    world.at(5.5, 0, lambda: world.lose_disk(3))
    world.at(6.0, 0, lambda: world.boot(3))
    assert world.run(until_s=1000)
    models = np.stack([world.peer(i).model() for i in range(4)])
    assert np.abs(models - models[:3].mean(axis=0)).max() < 0.6
    assert world.machines[3].finished == "done"


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["trimmed-mean", "monna", "nnm+trimmed-mean", "gts"])
def test_a_rule_in_the_peer_keeps_out_one_site_that_aims_far_away(rule: str) -> None:
    # Site i of the tiny learners aims at i; machine 6 here aims at a thousand.
    spec = robust(7, rule, 1, rounds=20)
    world = tiny_world(7, spec=spec, aims=[0, 1, 2, 3, 4, 5, 1000])
    assert world.run(until_s=1000)
    models = np.stack([world.peer(i).model() for i in range(6)])
    assert models.max() < 20
    last = facts(world, 0, "round committed")[15].fields["aggregate"]
    assert last["rule"] == rule
    assert last["f"] == 1
    assert last["inputs"] == 7
    assert not last["is_bound_broken"]
    far = world.names[6]
    assert last["weights"][far] == 0
    assert last["own"] + sum(last["weights"].values()) == pytest.approx(1)


def test_the_mean_is_dragged_away_by_the_same_site() -> None:
    world = tiny_world(7, spec=robust(7, "mean", 0, rounds=20), aims=[0, 1, 2, 3, 4, 5, 1000])
    assert world.run(until_s=1000)
    assert np.stack([world.peer(i).model() for i in range(6)]).min() > 20


def test_too_many_expected_liars_are_said_once() -> None:
    world = tiny_world(4, spec=robust(4, "trimmed-mean", 2))
    assert world.run(until_s=1000)
    warned = facts(world, 0, "robust bound broken")
    assert [fact.fields for fact in warned] == [{"rule": "trimmed-mean", "f": 2, "inputs": 4}]


def test_a_limited_neighbour_moves_half_as_far() -> None:
    models = []
    for level in ("normal", "limited"):
        world = tiny_world(2, spec=robust(2, "mean", 0, rounds=1, closing_rounds=1), aims=[0, 100])
        world.at(0.5, 0, partial(world.command, 0, "set", peer=world.names[1], accept=level))
        assert world.run(until_s=1000)
        models.append(world.peer(0).model())
    assert 0 < models[1][0] < models[0][0]


def test_a_rule_needs_weights_and_statistics_that_nobody_can_lie_about() -> None:
    with pytest.raises(ConfigError, match="samples"):
        robust(3, "monna", 1, weights="samples")
    with pytest.raises(ConfigError, match="samples"):
        states(3, weights="samples")
    with pytest.raises(ConfigError, match="federation"):
        agreement(3, trust={"aggregator": {"kind": "monna"}}, learner={"standardise": "federation"})


def test_an_unknown_rule_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"trust\.aggregator.*krum"):
        robust(3, "best", 1)
