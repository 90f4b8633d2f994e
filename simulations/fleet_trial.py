"""A trial of a fused population, from its data to its verdict.

Models are judged by a sample of peers, drawn once under the run's seed, and by the mean of all models; a
verdict's `per_peer` has rows for the sample only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.events import Fact, Metrics, Vector
from p2pfl.learn import data
from p2pfl.learn.factory import build, resolve
from p2pfl.learn.numpy_learner import NumpyLearner
from p2pfl.learn.philox import SAMPLE, below, words
from p2pfl.schedule import Schedule

from . import verdict
from .fleet import Fleet
from .holdings import holdings
from .kernels import load
from .recorder import Recorder
from .scenario import Scenario
from .workload import Workload

__all__ = ["run_fleet", "sampled"]

# Peers whose models are judged: evaluation of 64-10 on 360 rows takes .2 ms, and the mean accuracy of 256
# peers has a standard error below .003 where single ones differ by .05.
_SAMPLE = 256

_Listener = Callable[[float, int, Fact], None]


def sampled(n: int, seed: int) -> NDArray[np.int64]:
    """Peers that are judged, ascending: all up to 256, otherwise 256 that are drawn."""
    if n <= _SAMPLE:
        return np.arange(n)
    found: NDArray[np.int64] = np.zeros(0, np.int64)
    number = 0
    while len(found) < _SAMPLE:
        drawn = below(words(seed, SAMPLE, number, np.zeros(1, np.int64), _SAMPLE)[0], n)
        fresh = [i for i in dict.fromkeys(drawn.tolist()) if i not in set(found.tolist())]
        found = np.concatenate([found, np.array(fresh, np.int64)])[:_SAMPLE]
        number += 1
    return np.sort(found)


def run_fleet(
    scenario: Scenario,
    listener: _Listener | None = None,
    *,
    cell: Mapping[str, str] | None = None,
    events: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The verdict on a scenario with fused kernels; see run_trial.  Raises ConfigError, LearnerError."""
    spec, options = scenario.spec, scenario.simulation
    began = time.perf_counter()
    whole = data.load(spec.learner.data.source, spec.learner.data, spec.run.seed)
    workload = Workload(factory=resolve(spec.learner), datasets=(whole,), sources=("",), pooled=whole)
    learner = build(workload.factory, workload.site(0, spec))
    course = learner.course() if isinstance(learner, NumpyLearner) else None
    if course is None:
        raise ConfigError(
            "fused kernels train the built-in models, logistic and mlp, all of whose layers are shared;"
            ' use simulation.kernels = "exact"'
        )
    fleet = Fleet(
        spec,
        holdings(whole, options.peers, options.partition, spec.run.seed),
        course,
        learner.parameters(),
        kernels=load(_teller(listener)),
        threads=options.threads,
    )
    ready = time.perf_counter()
    judge = _Judge(workload, scenario)
    recorder = None if events is None else Recorder(scenario, workload, cell)
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
            sent = fleet.bodies * fleet.body_bytes()
            recorder.after_fused(said, fleet.losses, fleet.n, sent)
        if listener is not None:
            listener(float(fleet.round), 0, _fact(said, fleet.schedule))
    fleet.finish()
    wall_s = time.perf_counter() - began
    result = _verdict(scenario, workload, fleet, judge, trained, wall_s, time.perf_counter() - ready)
    if recorder is not None and events is not None:
        recorder.finish(result)
        events += recorder.events
    return result


class _Judge:
    """Measures models of the sample, and the mean model, by the learner's own evaluation."""

    def __init__(self, workload: Workload, scenario: Scenario) -> None:
        self._workload, self._spec = workload, scenario.spec
        self._name = scenario.simulation.metric
        self.seconds = 0.0
        self.sample = sampled(scenario.simulation.peers, scenario.spec.run.seed)

    def metrics(self, models: Sequence[Vector]) -> list[Metrics]:
        return verdict.judge_models(self._workload, self._spec, models)

    def measured(self, fleet: Fleet) -> dict[str, Any]:
        """What `per_round` has of a round that is measured."""
        began = time.perf_counter()
        mean = fleet.mean_model()
        found = self.metrics([mean.astype(np.float32), *fleet.models(self.sample)])
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
    fleet: Fleet,
    judge: _Judge,
    trained: dict[str, Any] | None,
    wall_s: float,
    rounds_s: float,
) -> dict[str, Any]:
    spec, sample = scenario.spec, judge.sample
    mean = fleet.mean_model()
    # Judging is not part of a round.
    rounds_s = max(rounds_s - judge.seconds, 1e-9)
    ran = verdict.Ran(
        engine="population",
        models=list(fleet.models(sample)),
        mass=fleet.mass(),
        bytes_sent=fleet.bodies * fleet.body_bytes(),
        wall_s=wall_s,
        rounds=spec.run.rounds,
        peers=fleet.n,
        consensus_distance=fleet.consensus_distance(mean),
        per_peer=[
            {
                "peer": i,
                "peer_id": None,
                "w": float(fleet.w[i]),
                "entered": float(fleet.nominal[i]),
                "written_off": 0.0,
                "in_flight": 0.0,
                "bytes_sent": None,
                "finished": "done",
                "failed_fits": int(fleet.faults[i]),
            }
            for i in sample.tolist()
        ],
        extra={
            "control": "none",
            "kernels": fleet.kernels.name,
            "sampled": len(sample),
            "trained": trained,
            "online_loss": fleet.online_loss(),
            "per_round": fleet.per_round,
            "bounds_broken": 0,
            "failed_fits": int(fleet.faults.sum()),
            "peer_rounds_per_s": fleet.n * fleet.round / rounds_s,
        },
    )
    found = verdict.verdict(ran, workload, spec, metric=scenario.simulation.metric, with_baselines=False)
    center = judge.metrics([mean.astype(np.float32)])[0][found["metric"]["name"]]
    return {**found, "mean_model": center, "scenario": scenario.name}


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
