"""Virtual peers behind one node: what their fit gives, what they keep, and what they refuse to stand for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.gossip import topology
from p2pfl.gossip.options import TopologyOptions
from p2pfl.learn import data
from p2pfl.learn.factory import build, resolve
from p2pfl.learn.learner import DpSgd, Site
from p2pfl.learn.options import LearnerOptions, PartitionOptions
from p2pfl.run import RunSpec, decode
from p2pfl.simulations.mixed import Front, FrontOptions, inner_rounds_of, learning
from p2pfl.simulations.workload import cut

PEERS = 12
# The whole of a site's rows is one batch, so that its order is all that is drawn.
LEARNER = {"model": {"kind": "logistic"}, "local_steps": 4, "batch_size": 64, "optimizer": {"momentum": 0.0}}
QUANTITY = PartitionOptions(kind="quantity", alpha=1.0)


def agreement(rows: Path, **learner: Any) -> RunSpec:
    table = {**LEARNER, **learner, "data": {"source": f"npz:{rows}"}}
    return decode({"run": {"seed": 5, "rounds": 2, "closing_rounds": 0}, "learner": table}, "test")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = data.load("sklearn:wine")
    x = (whole.x_train - whole.x_train.mean(axis=0)) / whole.x_train.std(axis=0)
    path = tmp_path_factory.mktemp("rows") / "rows.npz"
    data.save(path, replace(whole, x_train=x.astype(np.float32)))
    return path


def site_of(spec: RunSpec, **changes: Any) -> Site:
    return Site(seed=spec.run.seed, options=spec.learner, **changes)


def made(spec: RunSpec, *, site: dict[str, Any] | None = None, **options: Any) -> Front:
    return Front(FrontOptions(peers=PEERS, **options), site_of(spec, **(site or {})))


def test_a_fit_gives_the_weighted_mean_of_what_every_virtual_peer_learns_alone(rows: Path) -> None:
    spec = agreement(rows, batch_size=1000)
    workload = cut(spec, PEERS, QUANTITY)
    learners = [build(workload.factory, workload.site(i, spec)) for i in range(PEERS)]
    start = learners[0].parameters()
    ends = np.stack([one.fit(start, np.random.default_rng(i)).parameters for i, one in enumerate(learners)])
    samples = np.array([len(one.x_train) for one in workload.datasets if one is not None], np.float64)
    assert samples.min() < samples.max() / 3
    uniform = made(spec, partition=QUANTITY).fit(start, np.random.default_rng(0)).parameters
    counted = made(spec, partition=QUANTITY, weights="samples").fit(start, np.random.default_rng(0))
    np.testing.assert_allclose(uniform, ends.mean(axis=0), atol=2e-6)
    np.testing.assert_allclose(counted.parameters, samples @ ends / samples.sum(), atol=2e-6)
    assert np.abs(uniform - counted.parameters).max() > 1e-3
    assert counted.samples == samples.sum()


def test_between_inner_rounds_virtual_peers_mix_on_an_exponential_graph_and_their_mean_stays(
    rows: Path,
) -> None:
    spec = agreement(rows, local_steps=8, batch_size=1000, optimizer={"momentum": 0.0, "lr": 0.5})
    front = made(spec, inner_rounds=2)
    half = msgspec.structs.replace(spec, learner=msgspec.structs.replace(spec.learner, local_steps=4))
    workload = cut(half, PEERS, PartitionOptions())
    learners = [build(workload.factory, workload.site(i, half)) for i in range(PEERS)]
    graph = topology.plan(TopologyOptions(kind="exponential"), 0, PEERS, 0)

    def fitted(models: Any) -> Any:
        pairs = zip(learners, models, strict=True)
        return np.stack([one.fit(z, np.random.default_rng(0)).parameters for one, z in pairs])

    apart = fitted([front.parameters()] * PEERS)
    mixed = np.stack([apart[[i, *graph.in_neighbours(i)]].mean(axis=0) for i in range(PEERS)])
    np.testing.assert_allclose(mixed.mean(axis=0), apart.mean(axis=0), atol=1e-6)
    update = front.fit(front.parameters(), np.random.default_rng(1))
    np.testing.assert_allclose(update.parameters, fitted(mixed).mean(axis=0), atol=2e-6)
    assert np.abs(update.parameters - fitted(apart).mean(axis=0)).max() > 1e-3
    assert (update.metrics["fits"], update.metrics["failed_fits"]) == (2 * PEERS, 0)


def test_who_has_not_trained_when_the_site_says_stop_counts_with_what_it_has(rows: Path) -> None:
    spec = agreement(rows)
    asked = 0

    def soon() -> bool:
        nonlocal asked
        asked += 1
        return asked > 1

    front = made(spec, site={"should_stop": lambda: True})
    start = front.parameters()
    np.testing.assert_array_equal(front.fit(start, np.random.default_rng(0)).parameters, start)
    # Peers with another number of rows are another crew, and the second one is not asked any more.
    partial = made(spec, site={"should_stop": soon}, partition=QUANTITY)
    update = partial.fit(start, np.random.default_rng(0))
    assert 0 < update.metrics["fits"] < PEERS
    assert np.abs(update.parameters - start).max() > 0


def test_momentum_that_is_kept_survives_a_restart_and_another_number_of_peers_is_refused(rows: Path) -> None:
    spec = agreement(rows, optimizer={"momentum": 0.9, "reset": False})
    first, again = made(spec), made(spec)
    start = first.parameters()
    middle = first.fit(start, np.random.default_rng(1)).parameters
    state = first.state()
    assert state
    again.restore(state)
    ends = [front.fit(middle, np.random.default_rng(2)).parameters for front in (first, again, made(spec))]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])
    with pytest.raises(LearnerError, match="the saved state is not that of"):
        Front(FrontOptions(peers=PEERS - 1), site_of(spec)).restore(state)
    assert made(agreement(rows)).state() == b""


@pytest.mark.parametrize("mode", ["site", "federation"])
def test_virtual_peers_have_the_statistics_of_their_site_or_of_all_sites(rows: Path, mode: str) -> None:
    spec = agreement(rows, standardise=mode, batch_size=1000)
    front = Front(FrontOptions(peers=1), site_of(spec))
    alone = build(resolve(spec.learner), site_of(spec, data=spec.learner.data.source))
    learner: Any = alone
    if mode == "federation":
        np.testing.assert_array_equal(front.statistics(), learner.statistics())
        sums = 3 * learner.statistics()
        for one in (front, learner):
            one.standardise(sums)
    start = front.parameters()
    ours = front.fit(start, np.random.default_rng(0)).parameters
    np.testing.assert_allclose(ours, alone.fit(start, np.random.default_rng(0)).parameters, atol=2e-6)
    assert front.evaluate(ours) == alone.evaluate(ours)
    assert front.schema_hash() == learner.schema_hash()
    assert front.data_set().removeprefix("rows ") == learner.data_set()
    assert front.samples() == learner.samples()


@pytest.mark.parametrize(
    ("learner", "site", "options", "what"),
    [
        ({"module": "mine:learner", "model": None}, {}, {}, "reads by itself"),
        ({"share": ["0.*"]}, {}, {}, "share"),
        ({}, {"dp_sgd": DpSgd(clip=1.0, noise_multiplier=1.0)}, {}, "dp-sgd"),
        ({}, {}, {"inner_rounds": 3}, "do not divide"),
        ({}, {}, {"peers": 10_000}, "cannot give 10000 parts"),
    ],
)
def test_what_virtual_peers_cannot_stand_for_is_refused_with_the_cure(
    rows: Path, learner: dict[str, Any], site: dict[str, Any], options: dict[str, Any], what: str
) -> None:
    spec = agreement(rows)
    changed = msgspec.convert({**LEARNER, "data": {"source": f"npz:{rows}"}, **learner}, LearnerOptions)
    spec = msgspec.structs.replace(spec, learner=changed)
    with pytest.raises(ConfigError, match=what):
        Front(FrontOptions(**{"peers": PEERS, **options}), site_of(spec, **site))
    if not site and "peers" not in options:
        with pytest.raises(ConfigError, match=what):
            learning(FrontOptions(**{"peers": PEERS, **options}), spec, "process")


def test_an_exchange_of_knowledge_is_not_for_virtual_peers(rows: Path) -> None:
    spec = agreement(rows)
    exchange = msgspec.structs.replace(spec.knowledge.exchange, kind="proxy")
    knowledge = msgspec.structs.replace(spec.knowledge, exchange=exchange)
    with pytest.raises(ConfigError, match="asks one learner about its rows"):
        learning(FrontOptions(peers=PEERS), msgspec.structs.replace(spec, knowledge=knowledge), "process")


def test_virtual_peers_mix_once_between_two_halves_of_their_steps_where_there_are_halves() -> None:
    assert inner_rounds_of(LearnerOptions(local_steps=50), None) == 2
    assert inner_rounds_of(LearnerOptions(local_steps=5), None) == 1
    assert inner_rounds_of(LearnerOptions(local_steps=50), 10) == 10


def test_a_front_whose_every_virtual_fit_diverges_says_so(rows: Path) -> None:
    front = made(agreement(rows, optimizer={"lr": 1e30, "weight_decay": 1e9}))
    with pytest.raises(LearnerError, match="every fit of 12 virtual peers failed"):
        front.fit(front.parameters(), np.random.default_rng(0))
