"""Ray, where it is installed: a population over its workers, and trials side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleets import TOPOLOGIES, agreement, fleet, ran

from p2pfl.errors import ConfigError, LocalError
from p2pfl.learn.options import PartitionOptions
from p2pfl.simulations import shards, sweep
from p2pfl.simulations.kernels import load as load_kernels
from p2pfl.simulations.scenario import Scenario, load
from p2pfl.simulations.shard import Order
from p2pfl.simulations.shards import Cluster
from p2pfl.simulations.trial import run_trial

DRAWN = PartitionOptions(kind="drawn", rows=6, classes=2)
STUDY = """
[run]
rounds = 2
closing_rounds = 0

[learner]
local_steps = 1
data = { source = "sklearn:wine" }
model = { kind = "logistic" }

[simulation]
peers = 2
baselines = false

[simulation.grid]
"learner.optimizer.lr" = [0.1, 0.2]
"""


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    """One Ray for all tests here; it takes some seconds to begin."""
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'p2pfl-node[ray]'")
    with shards.cluster("local", 2) as cluster:
        yield cluster


class Cramped:
    """A cluster that says of every shard that a million share its machine."""

    machines = 1

    def __init__(self, ray: Cluster) -> None:
        self._ray = ray
        self.hire, self.get = ray.hire, ray.get

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        return self._ray.call(
            worker,
            method,
            *(one._replace(sharers=10**6) if isinstance(one, Order) else one for one in arguments),
        )


def study(folder: Path, **changes: Any) -> Scenario:
    (folder / "study.toml").write_text(STUDY)
    return load(str(folder / "study.toml"), **changes)


@pytest.mark.slow
def test_one_shard_does_without_ray_and_two_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    settings = ["simulation.partition.rows=4"]
    one = load("million", peers=8, rounds=1, engine="ray", settings=[*settings, "simulation.shards=1"])
    verdict = run_trial(one)
    assert (verdict["engine"], verdict["shards"]) == ("ray", 1)
    with pytest.raises(ConfigError, match=r"pip install 'p2pfl-node\[ray\]'"):
        run_trial(load("million", peers=8, rounds=1, engine="ray", settings=settings))


def test_trials_that_are_split_over_workers_are_not_run_side_by_side(tmp_path: Path) -> None:
    split = load("million", peers=8, rounds=1, engine="ray")
    with pytest.raises(ConfigError, match="one trial at a time; leave --jobs out"):
        sweep.run(sweep.trials(split, (0, 1)), jobs=2)


def test_what_fused_kernels_lack_is_refused_on_ray_with_another_cure() -> None:
    with pytest.raises(ConfigError, match=r"no learner\.standardise; use --engine population"):
        load("million", peers=8, engine="ray", settings=["learner.standardise=site"])


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["one-peer-exponential", "random graph"])
def test_workers_of_ray_have_the_bits_of_one_process(ray: Cluster, topology: str) -> None:
    n = 3000
    spec = agreement(
        n, gossip={"topology": TOPOLOGIES[topology]}, learner={"batch_size": 4}, run={"rounds": 3}
    )
    one = ran(fleet(n, spec, load_kernels(), options=DRAWN))
    two = ran(fleet(n, spec, load_kernels(), options=DRAWN, shards=2, hands=ray))
    assert two.matrix.shards == 2
    peers = np.arange(n)
    np.testing.assert_array_equal(two.models(peers), one.models(peers))
    assert [said["loss"] for said in two.per_round] == [said["loss"] for said in one.per_round]
    assert two.consensus_distance(one.mean_model()) == pytest.approx(one.consensus_distance(one.mean_model()))


@pytest.mark.slow
def test_trials_at_workers_of_ray_give_the_same_verdicts_and_keep_them(ray: Cluster, tmp_path: Path) -> None:
    assert ray.machines == 1
    todo = sweep.trials(study(tmp_path), (0, 1))
    results = tmp_path / "results"
    results.mkdir()
    told: list[str] = []
    apart = sweep.run(
        todo, jobs=2, on_ray=True, folder=results, done=lambda trial, *_: told.append(trial.name)
    )
    assert told == [trial.name for trial in todo]
    here = sweep.run(todo)
    assert [v["metric"] for v in apart] == [v["metric"] for v in here]
    again = sweep.run(todo, folder=results)
    assert [v["trial"] for v in again] == [v["trial"] for v in apart]
    assert all(v["wall_s"] == old["wall_s"] for v, old in zip(again, apart, strict=True))


@pytest.mark.slow
def test_what_fails_at_a_worker_is_named_here(ray: Cluster, tmp_path: Path) -> None:
    stuck = study(tmp_path, settings=["simulation.network.loss=1.0", "simulation.until_s=50.0"])
    with pytest.raises(LocalError, match=r"^lr 0\.[12], seed 0: the run has not ended"):
        sweep.run(sweep.trials(stuck, (0,)), jobs=2, on_ray=True)
    with pytest.raises(ConfigError, match="processors, and 3 workers of 1 threads each do not fit"):
        sweep.run(sweep.trials(study(tmp_path), (0, 1)), jobs=3, on_ray=True)
    spec = agreement(8, learner={"batch_size": 4})
    with pytest.raises(ConfigError, match=r"shards of 8 peers .* are free"):
        fleet(8, spec, load_kernels(), options=DRAWN, shards=2, hands=Cramped(ray))


@pytest.mark.slow
def test_a_cluster_is_joined_by_its_address_and_only_one_object_is_printed(ray: Cluster) -> None:
    words = ["simulate", "million", "--engine", "ray", "--ray-address", ray.address, "--json"]
    words += ["--peers", "600", "--rounds", "2", "--set", "simulation.expect=[]"]
    done = subprocess.run(
        [sys.executable, "-m", "p2pfl", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert (verdict["engine"], verdict["peers"], verdict["shards"]) == ("ray", 600, 2)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, ray: Cluster) -> None:
    import ray as library

    def refuse(**_: Any) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(library, "is_initialized", lambda: False)
    monkeypatch.setattr(library, "init", refuse)
    monkeypatch.setattr(library, "shutdown", lambda: None)
    said = r"Ray at 10\.0\.0\.9:6379 does not answer: nobody there; does it run"
    with pytest.raises(LocalError, match=said), shards.cluster("10.0.0.9:6379"):
        pass
