"""The population engine is the world on a perfect network, bit for bit."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from populations import agreement, made, workload
from worlds import facts

from p2pfl.learn.data import Dataset
from p2pfl.learn.factory import resolve
from p2pfl.net.link_model import LinkModel
from p2pfl.run import RunSpec
from p2pfl.simulations.machine import SimulatedSite
from p2pfl.simulations.workload import Workload
from p2pfl.simulations.world import World

_TOPOLOGIES: dict[str, dict[str, Any]] = {
    "complete": {"kind": "complete"},
    "exponential": {"kind": "exponential"},
    "one-peer-exponential": {"kind": "one-peer-exponential"},
    "directed ring": {"kind": "ring", "directed": True},
    "ring": {"kind": "ring"},
    "star": {"kind": "star"},
    "uneven digraph": {
        "kind": "explicit",
        "edges": [[0, 1], [1, 2], [2, 0], [0, 2], [2, 3], [3, 0]],
        "directed": True,
    },
    "changing random graph": {"kind": "random-regular", "degree": 2, "redraw": True},
}


# Those with weights of their own, or that are drawn anew every round; d-equistatic gives unequal parts.
_OF_THE_STUDY: dict[str, dict[str, Any]] = {
    "base": {"kind": "base"},
    "base of two neighbours": {"kind": "base", "degree": 2},
    "simple-base": {"kind": "simple-base"},
    "d-equistatic": {"kind": "d-equistatic", "degree": 5},
    "u-equistatic": {"kind": "u-equistatic", "degree": 5},
    "od-equidyn": {"kind": "od-equidyn"},
    "ou-equidyn": {"kind": "ou-equidyn"},
    "random-matching": {"kind": "random-matching"},
    "el-oracle": {"kind": "el-oracle", "degree": 2},
    "el-local": {"kind": "el-local", "degree": 2},
    "custom": {"kind": "custom", "function": "own_topology:uneven"},
}


def check(n: int, spec: RunSpec, sites: Workload) -> None:
    """Both engines commit the same bits in every round, and end within float32 rounding of each other."""
    machines = [SimulatedSite(factory=sites.factory, site=sites.site(i, spec)) for i in range(n)]
    world = World(spec, machines, link=LinkModel(latency_s=(0.01, 0.01)), inline_bytes=16 * 1024)
    assert world.run(until_s=10_000)
    population = made(n, spec, sites)
    while not population.is_over:
        population.step()
        for i, machine in enumerate(world.machines):
            committed = facts(world, i, "round committed")[population.round - 1].fields
            assert machine.name == population.names[i]
            assert committed["round"] == population.round - 1
            assert committed["w"] == population.held.w[i]
            tracked = b"" if population.tracked is None else population.tracked.x[i].tobytes()
            told = hashlib.sha256(tracked + population.held.x[i].tobytes()).hexdigest()
            assert committed["model"] == told
    assert len(facts(world, 0, "round committed")) == population.round
    population.finish()
    models, is_exact = population.models(), population.mass() is None or population.tracked is not None
    for i in range(n):
        state = world.peer(i).state
        if is_exact:
            assert models[i].tobytes() == world.peer(i).model().tobytes()
        np.testing.assert_allclose(models[i], world.peer(i).model(), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(population.held.w[i], state.mass.w, rtol=1e-14)
        if state.pooled is not None:
            assert population.pooled is not None
            assert population.pooled[i].tobytes() == state.pooled.tobytes()
    audit = population.mass()
    assert audit is None or audit["sum"] == pytest.approx(world.mass().sum, rel=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("averaging", "topology"),
    [
        *itertools.product(["push-sum", "push-pull"], _TOPOLOGIES),
        *itertools.product(["d-psgd"], ["complete", "exponential", "star", "ring", "uneven digraph"]),
    ],
)
def test_both_engines_commit_the_same_bits(averaging: str, topology: str) -> None:
    gossip = {"topology": _TOPOLOGIES[topology], "averaging": {"kind": averaging}}
    check(4, agreement(4, gossip=gossip), workload(4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("averaging", "topology"), [*itertools.product(["push-sum", "push-pull", "d-psgd"], _OF_THE_STUDY)]
)
def test_both_engines_commit_the_same_bits_on_the_topologies_of_the_study(
    averaging: str, topology: str
) -> None:
    options = _OF_THE_STUDY[topology]
    if averaging == "d-psgd" and topology == "custom":
        options = {"kind": "custom", "function": "own_topology:turning"}
    gossip = {"topology": options, "averaging": {"kind": averaging}}
    # In a round without training whoever hears nobody does not wait, and gives before the others have mixed.
    check(5, agreement(5, gossip=gossip, run={"rounds": 5, "closing_rounds": 0}), workload(5))


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    n=st.integers(2, 9),
    topology=st.sampled_from(sorted(_TOPOLOGIES)),
    averaging=st.sampled_from(["push-sum", "push-pull", "d-psgd"]),
    rounds=st.integers(0, 5),
    closing=st.integers(0, 4),
    weights=st.sampled_from(["uniform", "samples"]),
    seed=st.integers(0, 2**31),
)
def test_both_engines_agree_on_whatever_run(
    n: int, topology: str, averaging: str, rounds: int, closing: int, weights: str, seed: int
) -> None:
    options = _TOPOLOGIES[topology]
    if n < 4 and options["kind"] in ("random-regular", "explicit"):
        options = {"kind": "complete"}
    if options["kind"] == "explicit":
        options = {**options, "edges": [*options["edges"], *([i, (i + 1) % n] for i in range(3, n))]}
        options["edges"] = sorted({tuple(edge) for edge in options["edges"]})
    if averaging != "push-sum":
        weights = "uniform"
    run = {"rounds": rounds, "closing_rounds": closing, "weights": weights, "seed": seed}
    gossip = {"topology": options, "averaging": {"kind": averaging}}
    check(n, agreement(n, run=run, gossip=gossip), workload(n))


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    n=st.integers(4, 9),
    topology=st.sampled_from(sorted(set(_TOPOLOGIES) - {"uneven digraph"})),
    rule=st.sampled_from(["nnm+trimmed-mean", "monna", "gts", "balance", "coordinate-median"]),
    f=st.sampled_from([0.0, 0.25, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_both_engines_agree_on_whatever_rule(n: int, topology: str, rule: str, f: float, seed: int) -> None:
    trust = {"aggregator": {"kind": rule, "f": f}}
    gossip = {"topology": _TOPOLOGIES[topology]}
    check(n, agreement(n, run={"seed": seed}, gossip=gossip, trust=trust), workload(n))


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    n=st.integers(2, 5),
    topology=st.sampled_from(["exponential", "star", "directed ring"]),
    standardise=st.sampled_from(["none", "federation"]),
    hidden=st.sampled_from([(), (5,)]),
    reset=st.booleans(),
    weights=st.sampled_from(["uniform", "samples"]),
)
def test_both_engines_agree_on_networks_that_train_together(
    n: int, topology: str, standardise: str, hidden: tuple[int, ...], reset: bool, weights: str
) -> None:
    """Stacks of unequal batch sizes, momentum that stays, and statistics pooled in opening rounds."""
    rng = np.random.default_rng(5)
    datasets = []
    for rows in (40, 3, 60, 90, 5)[:n]:
        x = rng.normal(size=(rows, 4)).astype(np.float32)
        y = np.arange(rows) % 3
        datasets.append(Dataset(x_train=x, y_train=y, x_test=x[:10], y_test=y[:10], n_classes=3))
    learner: dict[str, Any] = {
        "model": {"kind": "mlp", "hidden": hidden} if hidden else {"kind": "logistic"},
        "standardise": standardise,
        "local_steps": 3,
        "batch_size": 8,
        "optimizer": {"momentum": 0.9, "reset": reset, "schedule": "cosine"},
    }
    spec = agreement(n, learner=learner, gossip={"topology": _TOPOLOGIES[topology]}, run={"weights": weights})
    check(n, spec, workload(n, resolve(spec.learner), tuple(datasets)))
