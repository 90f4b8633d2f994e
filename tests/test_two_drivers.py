"""One peer, two drivers: what World computes in virtual time, nodes compute over a transport.

Both drivers note the digest of the model with every "round committed"; equal digests are equal bits.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from memory_nodes import Sites, agreement
from tiny_learner import tiny

from p2pfl.events import Metrics, Vector
from p2pfl.learn.data import Dataset
from p2pfl.learn.factory import resolve
from p2pfl.learn.learner import Learner, LearnerFactory, Site, Update
from p2pfl.net.link_model import LinkModel
from p2pfl.run import RunSpec
from p2pfl.simulations.machine import SimulatedSite, identities
from p2pfl.simulations.world import World

_LINK = LinkModel(latency_s=(0.01, 0.01))
# Both drivers let small bodies ride in their offer.
_INLINE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A run of `n` sites whose fits take `fit_s[i]` seconds."""

    n: int
    tables: Mapping[str, Mapping[str, Any]]
    seed: int = 0
    fit_s: Sequence[float] = (1.0,)
    datasets: list[Any] | None = None
    # Steps of `local_steps` that site i has taken by the deadline of a round; empty: nobody is stopped.
    stopped_after: Mapping[int, int] = field(default_factory=dict)

    def spec(self) -> RunSpec:
        # Closing rounds take no time beyond the network's.  Among sites that are not in step they bring two
        # shares in one instant, and the order of events within an instant is each driver's own.
        closing = 2 if len(set(self.fit_s)) == 1 else 0
        run = {"rounds": 4, "closing_rounds": closing, "seed": self.seed, **self.tables.get("run", {})}
        return agreement(identities(self.n, self.seed), **{**self.tables, "run": run})

    def fit_of(self, i: int) -> float:
        return self.fit_s[i % len(self.fit_s)]

    def factory(self) -> LearnerFactory | None:
        return None if self.datasets else tiny

    def paced(self) -> LearnerFactory | None:
        """For nodes, whose fits take no time of their own: learners that are told when to stop."""
        if not self.stopped_after:
            return self.factory()
        plain = self.factory() or resolve(self.spec().learner)

        def build(site: Site) -> Learner:
            steps = self.stopped_after.get(int(site.data))
            learner: Any = plain(site)
            if steps is not None:
                looks = itertools.cycle([False] * steps + [True])
                learner.should_stop = lambda: next(looks)
            return _Deaf(learner)

        return build


@dataclass(frozen=True, slots=True)
class _Deaf:
    """A learner whose `should_stop` nobody replaces."""

    inner: Learner

    def parameters(self) -> Vector:
        return self.inner.parameters()

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        return self.inner.fit(parameters, rng)

    def evaluate(self, parameters: Vector) -> Metrics:
        return self.inner.evaluate(parameters)

    def schema_hash(self) -> bytes:
        inner: Any = self.inner
        return bytes(inner.schema_hash())


def of_world(scenario: Scenario) -> dict[int, list[tuple[int, str]]]:
    """(round, digest of the model), in order, of every peer, as World has it."""
    sites = [
        SimulatedSite(
            factory=scenario.factory() or resolve(scenario.spec().learner),
            site=Site(
                data=str(i), name=f"site{i}", dataset=scenario.datasets[i] if scenario.datasets else None
            ),
            fit_s=scenario.fit_of(i),
        )
        for i in range(scenario.n)
    ]
    world = World(scenario.spec(), sites, link=_LINK, crypto=True, inline_bytes=_INLINE_BYTES)
    assert world.run(until_s=10_000)
    return {
        machine.index: [
            (fact.fields["round"], fact.fields["model"])
            for _, fact in machine.facts
            if fact.event == "round committed"
        ]
        for machine in world.machines
    }


def of_nodes(scenario: Scenario, folder: Path) -> dict[int, list[tuple[int, str]]]:
    """The same, as nodes on the in-memory transport have it."""

    async def run() -> Sites:
        sites = Sites(
            folder,
            scenario.spec(),
            identities(scenario.n, scenario.seed),
            link=_LINK,
            fit_s=scenario.fit_of,
            factory=scenario.paced(),
            datasets=scenario.datasets,
            looks=bool(scenario.stopped_after),
        )
        with trio.fail_after(10_000):
            async with trio.open_nursery() as nursery:
                for i in range(scenario.n):
                    nursery.start_soon(sites.live, i)
        return sites

    sites = trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    assert {outcome.reason for outcome in sites.outcomes.values()} == {"done"}
    return {i: [(row["round"], row["model"]) for row in sites.rounds(i)] for i in range(scenario.n)}


def check(scenario: Scenario) -> None:
    """Both drivers give the same bits, and there is something to compare."""
    with tempfile.TemporaryDirectory() as folder:
        world, nodes = of_world(scenario), of_nodes(scenario, Path(folder))
    assert world == nodes
    digests = [digest for rounds in world.values() for _, digest in rounds]
    assert len(digests) >= scenario.n * scenario.spec().run.rounds
    assert len(set(digests)) > scenario.n


_TOPOLOGIES: dict[str, dict[str, Any]] = {
    "complete": {"kind": "complete"},
    "exponential": {"kind": "exponential"},
    "one-peer-exponential": {"kind": "one-peer-exponential"},
    "directed ring": {"kind": "ring", "directed": True},
    "star": {"kind": "star"},
    "changing random graph": {"kind": "random-regular", "degree": 2, "redraw": True},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("averaging", "topology"),
    [
        *itertools.product(["push-sum", "push-pull"], _TOPOLOGIES),
        *itertools.product(["d-psgd"], ["complete", "exponential", "star"]),
    ],
)
def test_both_drivers_commit_the_same_models(averaging: str, topology: str) -> None:
    gossip = {"topology": _TOPOLOGIES[topology], "averaging": {"kind": averaging}}
    check(Scenario(n=4, tables={"gossip": gossip}))


# Those with weights of their own, or that are drawn anew every round.
_OF_THE_STUDY: dict[str, dict[str, Any]] = {
    "base": {"kind": "base"},
    "simple-base": {"kind": "simple-base", "degree": 2},
    "d-equistatic": {"kind": "d-equistatic", "degree": 5},
    "u-equistatic": {"kind": "u-equistatic", "degree": 2},
    "od-equidyn": {"kind": "od-equidyn"},
    "ou-equidyn": {"kind": "ou-equidyn"},
    "random-matching": {"kind": "random-matching"},
    "el-oracle": {"kind": "el-oracle", "degree": 2},
    "el-local": {"kind": "el-local", "degree": 2},
    "custom": {"kind": "custom", "function": "own_topology:uneven"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("averaging", "topology"),
    [*itertools.product(["push-sum"], _OF_THE_STUDY), ("d-psgd", "base"), ("d-psgd", "el-local")],
)
def test_both_drivers_commit_the_same_models_on_the_topologies_of_the_study(
    averaging: str, topology: str
) -> None:
    gossip = {"topology": _OF_THE_STUDY[topology], "averaging": {"kind": averaging}}
    # Of five, one has nobody to pair with in a round, and in closing rounds gets out of step.
    check(Scenario(n=5, tables={"gossip": gossip, "run": {"closing_rounds": 0}}))


def test_both_drivers_agree_when_some_sites_are_slower() -> None:
    check(Scenario(n=4, tables={"gossip": {"topology": {"kind": "exponential"}}}, fit_s=(0.5, 1.0, 2.0, 1.5)))


def test_a_fit_is_whole_in_both_drivers_whenever_it_began() -> None:
    """Half of these rounds begin at a time t for which (t + 1) - t < 1 in floating point."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(40, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    dataset = Dataset(x_train=x, y_train=y, x_test=x[:10], y_test=y[:10], n_classes=2)
    learner = {"model": {"kind": "logistic"}, "local_steps": 3}
    check(Scenario(n=2, tables={"learner": learner, "run": {"rounds": 12}}, datasets=[dataset] * 2))


@pytest.mark.slow
def test_both_drivers_count_what_a_slow_site_has_done_by_the_deadline() -> None:
    """Built-in learners, one with a fifth and one with half of the speed that the others have."""
    rng = np.random.default_rng(5)
    datasets = []
    for rows in (40, 60, 90, 50):
        x = rng.normal(size=(rows, 4)).astype(np.float32)
        y = (x[:, 0] > 0).astype(np.int64)
        datasets.append(Dataset(x_train=x, y_train=y, x_test=x[:10], y_test=y[:10], n_classes=2))
    learner = {"model": {"kind": "logistic"}, "local_steps": 20}
    run = {"rounds": 6, "deadline_s": 1.0}
    slow = Scenario(
        n=4,
        tables={"learner": learner, "run": run},
        datasets=datasets,
        fit_s=(1.0, 5.0, 1.0, 2.0),
        stopped_after={1: 4, 3: 10},
    )
    check(slow)
    assert of_world(slow) != of_world(replace(slow, fit_s=(1.0,)))


def test_both_drivers_agree_when_sites_pool_statistics_and_weigh_samples() -> None:
    """Opening rounds, a learner that draws random numbers, and momentum that survives a round."""
    rng = np.random.default_rng(5)
    datasets = []
    for rows in (40, 60, 90):
        x = rng.normal(size=(rows, 4)).astype(np.float32)
        y = (x[:, 0] > 0).astype(np.int64)
        datasets.append(Dataset(x_train=x, y_train=y, x_test=x[:10], y_test=y[:10], n_classes=2))
    learner: dict[str, Any] = {
        "model": {"kind": "logistic"},
        "standardise": "federation",
        "local_steps": 3,
        "optimizer": {"momentum": 0.9, "reset": False},
    }
    tables: dict[str, dict[str, Any]] = {"learner": learner, "run": {"weights": "samples"}}
    check(Scenario(n=3, tables=tables, datasets=datasets))


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    n=st.integers(2, 5),
    topology=st.sampled_from(sorted(_TOPOLOGIES)),
    averaging=st.sampled_from(["push-sum", "push-pull", "d-psgd"]),
    fit_s=st.lists(st.sampled_from([0.5, 1.0, 1.7]), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_both_drivers_agree_on_whatever_run(
    n: int, topology: str, averaging: str, fit_s: list[float], seed: int
) -> None:
    options = _TOPOLOGIES[topology]
    if averaging == "d-psgd" and options.get("directed"):
        options = {"kind": "ring"}
    if n < 4 and options["kind"] == "random-regular":
        options = {"kind": "complete"}
    gossip: dict[str, Any] = {"topology": options, "averaging": {"kind": averaging}}
    tables: dict[str, dict[str, Any]] = {"gossip": gossip, "run": {"rounds": 3}}
    check(Scenario(n=n, tables=tables, seed=seed, fit_s=fit_s))
