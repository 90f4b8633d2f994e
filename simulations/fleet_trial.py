"""A trial of a fused population, from its data to its verdict.

Models are judged by a sample of peers, drawn once under the run's seed, and by the mean of all models; a
verdict's `per_peer` has rows for the sample only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from p2pfl.errors import ConfigError
from p2pfl.events import Fact, Metrics, Vector
from p2pfl.gossip.mixing import Indices
from p2pfl.learn import data
from p2pfl.learn.factory import build, resolve
from p2pfl.learn.numpy_learner import NumpyLearner
from p2pfl.learn.philox import SAMPLE, chosen
from p2pfl.schedule import Schedule

from . import verdict
from .asynchronous import push_gossip
from .fleet import Fleet, nominal, own_matrix
from .holdings import holdings
from .kernels import aligned, drill, load
from .lazy import Pool
from .pace import pace
from .push_gossip import PushGossip
from .recorder import Recorder
from .routes import routes_of
from .scenario import Scenario
from .shards import Cluster, Shards, cluster
from .workload import Workload

__all__ = ["Engine", "mustered", "run_fleet", "sampled"]

# Peers whose models are judged: evaluation of 64-10 on 360 rows takes .2 ms, and the mean accuracy of 256
# peers has a standard error below .003 where single ones differ by .05.
_SAMPLE = 256

_Listener = Callable[[float, int, Fact], None]
Engine = Fleet | Pool | PushGossip


def sampled(peers: Indices, seed: int) -> Indices:
    """Those of `peers`, ascending, that are judged: all up to 256, otherwise 256 that are drawn."""
    if len(peers) <= _SAMPLE:
        return peers
    return peers[chosen(seed, SAMPLE, 0, len(peers), _SAMPLE)]


def run_fleet(
    scenario: Scenario,
    listener: _Listener | None = None,
    *,
    cell: Mapping[str, str] | None = None,
    events: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The verdict on a scenario with fused kernels; see run_trial.  Raises ConfigError, LearnerError."""
    began = time.perf_counter()
    with _hands(scenario) as hands:
        fleet, workload = mustered(scenario, _teller(listener), hands)
        recorder = None if events is None else Recorder(scenario, workload, cell)
        result = _ran(scenario, workload, fleet, recorder, listener, began)
    if recorder is not None and events is not None:
        recorder.finish(result)
        events += recorder.events
    return result


@contextmanager
def _hands(scenario: Scenario) -> Iterator[Cluster | None]:
    """Ray's workers where the scenario asks for several, else None."""
    options = scenario.simulation
    if options.engine != "ray" or options.shards == 1:
        yield None
        return
    with cluster(processors=options.shards * options.threads) as hands:
        yield hands


def _ran(
    scenario: Scenario,
    workload: Workload,
    fleet: Engine,
    recorder: Recorder | None,
    listener: _Listener | None,
    began: float,
) -> dict[str, Any]:
    """All rounds of `fleet`, and the verdict.   began: on the clock, with the data still to be read."""
    options, ready = scenario.simulation, time.perf_counter()
    judge = _Judge(workload, scenario)
    trained: dict[str, Any] | None = None
    while not fleet.is_over:
        fleet.step()
        said = fleet.per_round[-1]
        is_last = said["stage"] == "training" and fleet.schedule.stage(fleet.round) != "training"
        is_due = options.consensus_every and fleet.round % options.consensus_every == 0
        if is_last or is_due or (recorder is not None and recorder.is_due(said["round"])):
            said |= judge.measured(fleet)
        if is_last:
            trained = {key: said[key] for key in ("metric", "mean_model", "consensus_distance")}
        if recorder is not None:
            recorder.after_fused(said, fleet.losses, len(fleet.losses), fleet.bytes_sent())
        if listener is not None:
            listener(float(fleet.round), 0, _fact(said, fleet.schedule))
    fleet.finish()
    wall_s = time.perf_counter() - began
    return _verdict(scenario, workload, fleet, judge, trained, wall_s, time.perf_counter() - ready)


def mustered(
    scenario: Scenario, say: Callable[[str], None] = lambda _: None, hands: Cluster | None = None
) -> tuple[Engine, Workload]:
    """The population of a scenario before its first round, and what its models are judged with.

    say: is told when kernels are slow.   hands: who is to hold its rows; None: this process.
    Raises ConfigError, LearnerError.
    """
    spec, options = scenario.spec, scenario.simulation
    whole = data.load(spec.learner.data.source, spec.learner.data, spec.run.seed)
    whole = replace(whole, x_train=aligned(whole.x_train))
    workload = Workload(factory=resolve(spec.learner), datasets=(whole,), sources=("",), pooled=whole)
    learner = build(workload.factory, workload.site(0, spec))
    course = learner.course() if isinstance(learner, NumpyLearner) else None
    if course is None:
        raise ConfigError(
            "fused kernels train the built-in models, logistic and mlp, all of whose layers are shared;"
            ' use simulation.kernels = "exact"'
        )
    held = holdings(whole, options.peers, options.partition, spec.run.seed)
    theta, threads, free = learner.parameters(), options.threads, None
    if hands is not None:
        shards = options.shards or max(2, hands.machines)
        threads, routes = hands.threads(shards, threads), routes_of(spec, held.n)
        weights, does, seed = nominal(spec, held), drill(course), spec.run.seed
        split = Shards(hands, held, weights, theta, does, seed, routes, shards=shards, threads=threads)
        return Fleet(spec, held, course, theta, split), workload
    kernels = load(say, options.device)
    if options.schedule == "asynchronous":
        return push_gossip(scenario, held, course, theta, kernels), workload
    if options.device == "cuda":
        from .torch_kernels import available_bytes

        # One thread hands work to a GPU; what it can hold is its own.
        threads, free = 1, available_bytes(options.device)
    if not options.active:
        matrix = own_matrix(spec, held, course, theta, kernels=kernels, threads=threads, available=free)
        return Fleet(spec, held, course, theta, matrix), workload
    resume, active = options.resume, options.active
    pool = Pool(spec, held, course, theta, active=active, resume=resume, kernels=kernels, threads=threads)
    return pool, workload


class _Judge:
    """Measures models of the sample, and the mean model, by the learner's own evaluation."""

    def __init__(self, workload: Workload, scenario: Scenario) -> None:
        self._workload, self._spec = workload, scenario.spec
        self._name = scenario.simulation.metric
        self.seconds = 0.0

    def metrics(self, models: Sequence[Vector]) -> list[Metrics]:
        return verdict.judge_models(self._workload, self._spec, models)

    def measured(self, fleet: Engine) -> dict[str, Any]:
        """What `per_round` has of a round that is measured."""
        began = time.perf_counter()
        mean = fleet.mean_model()
        sample = sampled(fleet.judged(), self._spec.run.seed)
        found = self.metrics([mean.astype(np.float32), *fleet.models(sample)])
        name = self._name or verdict.name_of(found[0])
        center, *values = (metrics[name] for metrics in found)
        self.seconds += time.perf_counter() - began
        return {
            "consensus_distance": fleet.consensus_distance(mean),
            "metric": {"name": name, **verdict.spread(values)},
            "mean_model": center,
        }


def _verdict(
    scenario: Scenario,
    workload: Workload,
    fleet: Engine,
    judge: _Judge,
    trained: dict[str, Any] | None,
    wall_s: float,
    rounds_s: float,
) -> dict[str, Any]:
    spec = scenario.spec
    sample = sampled(fleet.judged(), spec.run.seed)
    mean = fleet.mean_model()
    # Judging is not part of a round.
    rounds_s = max(rounds_s - judge.seconds, 1e-9)
    ran = verdict.Ran(
        engine=scenario.simulation.engine,
        models=list(fleet.models(sample)),
        mass=fleet.mass(),
        bytes_sent=fleet.bytes_sent(),
        wall_s=wall_s,
        rounds=spec.run.rounds,
        peers=fleet.n,
        consensus_distance=fleet.consensus_distance(mean),
        per_peer=[
            {
                "peer": i,
                "peer_id": None,
                "written_off": 0.0,
                "in_flight": 0.0,
                "bytes_sent": None,
                "finished": "done",
                **row,
            }
            for i, row in zip(sample.tolist(), fleet.book(sample), strict=True)
        ],
        extra={
            "control": "none",
            "kernels": fleet.kernels,
            "shards": fleet.shards,
            "sampled": len(sample),
            "trained": trained,
            "online_loss": fleet.online_loss(),
            "per_round": fleet.per_round,
            "mixing": pace(fleet.per_round),
            "bounds_broken": 0,
            "failed_fits": fleet.failed_fits,
            "trained_peers": fleet.trained if isinstance(fleet, Pool) else fleet.n,
            "peer_rounds_per_s": fleet.peer_rounds / rounds_s,
            "round_s": rounds_s / max(1, fleet.round),
            **(fleet.timing(rounds_s) if isinstance(fleet, PushGossip) else {}),
        },
    )
    found = verdict.verdict(ran, workload, spec, metric=scenario.simulation.metric, with_baselines=False)
    center = judge.metrics([mean.astype(np.float32)])[0][found["metric"]["name"]]
    return {**found, "knowledge": None, "compute": None, "mean_model": center, "scenario": scenario.name}


def _fact(said: dict[str, Any], rounds: Schedule) -> Fact:
    """One fact for all peers: a million lines a round would tell nobody anything."""
    fields = {
        "round": said["round"],
        "training_round": said["round"] - rounds.opening,
        "stage": said["stage"],
        "loss": said["loss"],
        "metrics": {},
    }
    return Fact(event="round committed", level="info", fields=fields)


def _teller(listener: _Listener | None) -> Callable[[str], None]:
    def tell(words: str) -> None:
        if listener is not None:
            listener(0.0, 0, Fact(event=words, level="warning", fields={}))

    return tell
