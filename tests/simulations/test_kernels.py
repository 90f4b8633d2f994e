"""Compiled kernels are the ones in numpy, to rounding, whatever the threads, the blocks and the order."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from fleets import TOPOLOGIES, UNEVEN, agreement, blobs, exact, fleet, matrix_of, ran

from p2pfl.learn.options import PartitionOptions
from p2pfl.learn.philox import BATCHES, shuffled, words
from p2pfl.simulations import compiled_fits, compiled_layers, kernels
from p2pfl.simulations.compiled import Compiled
from p2pfl.simulations.fleet import Fleet
from p2pfl.simulations.plain import Plain, orders

pytestmark = pytest.mark.slow

DRAWN = PartitionOptions(kind="drawn", rows=9, classes=2)


def minibatches(n: int, **tables: dict[str, Any]) -> Any:
    """An agreement whose steps see 4 of 9 rows, so that batches span epochs."""
    learner = {"local_steps": 5, "batch_size": 4, **tables.pop("learner", {})}
    return agreement(n, learner=learner, **tables)


@pytest.mark.parametrize("averaging", ["push-sum", "d-psgd"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_compiled_rounds_are_those_of_numpy_and_of_exact_kernels(topology: str, averaging: str) -> None:
    gossip = {"topology": TOPOLOGIES[topology], "averaging": {"kind": averaging}}
    spec = agreement(8, gossip=gossip)
    models = ran(fleet(8, spec, Compiled())).models(np.arange(8))
    np.testing.assert_allclose(models, exact(8, spec).models(), rtol=0, atol=1e-6)
    spec = minibatches(8, gossip=gossip)
    models, theirs = (
        ran(fleet(8, spec, one, options=DRAWN)).models(np.arange(8)) for one in (Compiled(), Plain())
    )
    np.testing.assert_allclose(models, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("classes", "model"),
    [
        (2, {"kind": "logistic"}),
        (2, {"kind": "mlp", "hidden": [7]}),
        (5, {"kind": "mlp", "hidden": [16]}),
        (5, {"kind": "mlp", "hidden": [9, 12, 5]}),
    ],
)
def test_every_built_in_model_is_trained_as_in_numpy(classes: int, model: dict[str, Any]) -> None:
    spec = minibatches(8, learner={"model": model}, gossip={"topology": UNEVEN})
    ours, theirs = (
        ran(fleet(8, spec, one, dataset=blobs(classes=classes), options=DRAWN))
        for one in (Compiled(), Plain())
    )
    np.testing.assert_allclose(ours.models(np.arange(8)), theirs.models(np.arange(8)), rtol=0, atol=1e-6)
    losses = [[said["loss"] for said in one.per_round[:5]] for one in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    mean = ours.mean_model()
    np.testing.assert_allclose(mean, theirs.mean_model(), atol=1e-6)
    assert ours.consensus_distance(mean) == pytest.approx(theirs.consensus_distance(mean), rel=1e-4)


def test_threads_and_blocks_change_no_bit() -> None:
    spec = minibatches(300, gossip={"topology": {"kind": "random-regular", "degree": 4}})
    one, two = (ran(fleet(300, spec, Compiled(), options=DRAWN, threads=threads)) for threads in (1, 2))
    assert matrix_of(one).held.tobytes() == matrix_of(two).held.tobytes()
    assert one.mean_model().tobytes() == two.mean_model().tobytes()
    third = fleet(300, spec, Compiled(), options=DRAWN)

    class Uneven:
        def each(self, n: int, work: Any, *, block: int = 0) -> list[Any]:
            ends = [0, 1, 8, 77, 78, 200, n]
            if block:
                return [work(0, n)]
            return [work(lo, hi) for lo, hi in reversed(list(pairwise(ends)))]

    matrix_of(third).gang = Uneven()  # type: ignore[assignment]
    assert matrix_of(ran(third)).held.tobytes() == matrix_of(one).held.tobytes()


def test_the_order_of_peers_changes_no_bit() -> None:
    spec = minibatches(64, gossip={"topology": {"kind": "complete"}}, run={"rounds": 1, "closing_rounds": 0})

    def trained(order: Any) -> Fleet:
        population = fleet(64, spec, Compiled(), options=DRAWN)
        matrix = matrix_of(population)
        rows = matrix.rows
        matrix.rows = rows._replace(table=rows.table[order], counts=rows.counts[order], ids=rows.ids[order])
        population.step()
        return population

    order = np.random.default_rng(0).permutation(64)
    straight, mixed = trained(np.arange(64)), trained(order)
    assert matrix_of(mixed).held.tobytes() == matrix_of(straight).held[order].tobytes()


def test_a_compiled_fit_that_diverges_is_found() -> None:
    dataset = blobs()
    dataset.x_train[0] = np.inf
    spec = agreement(4, run={"rounds": 3, "closing_rounds": 0})
    population = ran(fleet(4, spec, Compiled(), dataset=dataset))
    assert sorted(population.faults.tolist()) == [0, 0, 0, 3]
    assert np.isfinite(population.models(np.arange(4))).all()


def test_a_single_step_to_infinity_is_left_out() -> None:
    dataset = blobs()
    dataset.x_train[:3] = 1e30
    learner = {"local_steps": 1, "optimizer": {"kind": "sgd", "lr": 1e20, "momentum": 0.0}}
    spec = agreement(8, run={"rounds": 1, "closing_rounds": 0}, learner=learner)
    ours, theirs = (ran(fleet(8, spec, one, dataset=dataset)) for one in (Compiled(), Plain()))
    assert 0 < ours.faults.sum() < 8
    assert ours.faults.tolist() == theirs.faults.tolist()
    assert np.isfinite(ours.models(np.arange(8))).all()


def test_batches_are_shuffled_as_philox_says() -> None:
    order = np.zeros(11, np.int64)
    k0, k1 = np.uint64(5), np.uint64(0)
    for epoch in (0, 3):
        compiled_fits._shuffle_c(order, epoch, 7, 2, k0, k1)
        word = words(5, BATCHES, 2, np.array([7]), 11 * (epoch + 1))[:, 11 * epoch :]
        np.testing.assert_array_equal(order, shuffled(word)[0])
    places = orders(np.array([7]), 11, 4, 9, 5, 2)
    assert places.shape == (9, 1, 4)
    epochs = places[:, 0].ravel()
    assert sorted(epochs[:11]) == sorted(epochs[11:22]) == list(range(11))


def test_without_numba_the_kernels_are_numpy_s_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    assert kernels.load(said.append).name == "numba"
    assert said == []
    monkeypatch.setitem(sys.modules, "p2pfl.simulations.compiled", None)
    monkeypatch.delattr("p2pfl.simulations.compiled", raising=False)
    assert kernels.load(said.append).name == "numpy"
    assert "pip install 'p2pfl-node[sim]'" in said[0]


def test_the_exponential_is_exact_to_float32() -> None:
    z = -np.random.default_rng(0).exponential(5, size=4096).astype(np.float32)
    z[:3] = 0, -87, -500
    out = np.empty_like(z)
    compiled_layers.exponential(z, np.empty(len(z), np.int32), out)
    expected = np.exp(np.maximum(z, -87).astype(np.float64))
    np.testing.assert_allclose(out, expected, rtol=2e-7, atol=1e-40)
