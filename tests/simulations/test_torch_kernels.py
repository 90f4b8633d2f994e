"""Kernels in torch take the rounds of those in numpy; here on the CPU, and on a GPU where there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fleets import TOPOLOGIES, UNEVEN, agreement, blobs, fleet, ran

from p2pfl.errors import ConfigError
from p2pfl.learn.options import PartitionOptions
from p2pfl.simulations.fleet import Fleet
from p2pfl.simulations.plain import Plain
from p2pfl.simulations.scenario import load
from p2pfl.simulations.torch_kernels import OnDevice, available_bytes
from p2pfl.simulations.trial import run_trial

DRAWN = PartitionOptions(kind="drawn", rows=9, classes=2)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


def minibatches(**tables: dict[str, Any]) -> Any:
    """Steps that see 4 of 9 rows, so that batches span epochs."""
    learner = {"local_steps": 5, "batch_size": 4, **tables.pop("learner", {})}
    return agreement(8, learner=learner, **tables)


def check(device: str, spec: Any, **options: Any) -> None:
    """A run by both sets of kernels ends alike."""
    ours, theirs = (ran(fleet(8, spec, one, **options)) for one in (OnDevice(device), Plain()))
    everybody = np.arange(8)
    np.testing.assert_allclose(ours.models(everybody), theirs.models(everybody), rtol=0, atol=1e-5)
    losses = [[said["loss"] for said in one.per_round[:5]] for one in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    mean = theirs.mean_model()
    np.testing.assert_allclose(ours.mean_model(), mean, atol=1e-5)
    assert ours.consensus_distance(mean) == pytest.approx(theirs.consensus_distance(mean), abs=1e-5)


@pytest.mark.parametrize("averaging", ["push-sum", "d-psgd"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_topology_mixes_as_in_numpy(topology: str, averaging: str) -> None:
    gossip = {"topology": TOPOLOGIES[topology], "averaging": {"kind": averaging}}
    check("cpu", minibatches(gossip=gossip), options=DRAWN)


MODELS = [
    (2, {"kind": "logistic"}),
    (5, {"kind": "logistic"}),
    (2, {"kind": "mlp", "hidden": [7]}),
    (5, {"kind": "mlp", "hidden": [9, 12, 5]}),
]


@pytest.mark.parametrize(("classes", "model"), MODELS)
def test_every_built_in_model_is_trained_as_in_numpy(classes: int, model: dict[str, Any]) -> None:
    spec = minibatches(learner={"model": model}, gossip={"topology": UNEVEN})
    check("cpu", spec, dataset=blobs(classes=classes), options=DRAWN)


def test_sites_of_unequal_size_are_trained_beside_each_other() -> None:
    spec = minibatches(learner={"batch_size": 12}, run={"weights": "samples"})
    check("cpu", spec, options=PartitionOptions(kind="quantity", alpha=1.0))


def test_a_fit_that_diverges_is_found() -> None:
    dataset = blobs()
    dataset.x_train[0] = np.inf
    spec = agreement(4, run={"rounds": 3, "closing_rounds": 0})
    population: Fleet = ran(fleet(4, spec, OnDevice("cpu"), dataset=dataset))
    assert sorted(population.faults.tolist()) == [0, 0, 0, 3]
    assert np.isfinite(population.models(np.arange(4))).all()


@needs_gpu
@pytest.mark.parametrize(("classes", "model"), MODELS)
def test_a_gpu_gives_the_same(classes: int, model: dict[str, Any]) -> None:
    spec = minibatches(learner={"model": model}, gossip={"topology": UNEVEN})
    check("cuda", spec, dataset=blobs(classes=classes), options=DRAWN)
    verdict = run_trial(load("million", peers=64, rounds=5, settings=["simulation.device=cuda"]))
    assert verdict["kernels"] == "torch on cuda"


def test_a_gpu_that_is_not_there_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match='torch finds no GPU; use "cpu"'):
        OnDevice("cuda")
    assert available_bytes("cpu") is None


def test_a_gpu_takes_whole_populations_only() -> None:
    with pytest.raises(ConfigError, match="active with device 'cuda'"):
        load("lazy-million", settings=["simulation.device=cuda"])
    with pytest.raises(ConfigError, match="device are for kernels"):
        load("digits", settings=["simulation.device=cuda"])
