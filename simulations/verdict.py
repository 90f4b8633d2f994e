"""The verdict on a finished run: one JSON object, the same from a simulation and from real nodes."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError
from p2pfl.events import Evaluate, Metrics, Train, Vector
from p2pfl.learn.factory import build
from p2pfl.learn.jobs import Workshop
from p2pfl.learn.learner import Site
from p2pfl.learn.metrics import consensus_distance
from p2pfl.run import RunSpec, run_id

from .attacks import AttackOptions
from .histogram import class_counts
from .poisoning import triggered
from .summary import is_lower_better
from .workload import Workload

__all__ = [
    "Ran",
    "backdoor",
    "baselines",
    "judge",
    "judge_kept",
    "judge_models",
    "name_of",
    "peak_rss_mb",
    "spread",
    "verdict",
]

_Sums = NDArray[np.float64] | None

# Purpose of the baselines' random draws: not the peers' own (p2pfl.rounds), so neither repeats the other.
_BASELINE = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a driver knows when a run is over.

    models: one (d,) an honest peer, by peer number.   mass: sums over them, None where models are states.
    attack: its kind.   byzantine: how many peers there were beside the honest.
    per_peer: further fields of each honest peer's row.
    measured: the metrics of `models`, where they are not all that a site has; None measures them here.
    peers, consensus_distance: of all, where `models` are those of a sample; None takes them from `models`.
    """

    engine: str
    models: Sequence[Vector]
    mass: Mapping[str, float] | None
    bytes_sent: int
    wall_s: float
    rounds: int
    attack: str | None = None
    byzantine: int = 0
    per_peer: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    report: str | None = None
    measured: Sequence[Metrics] | None = None
    peers: int | None = None
    consensus_distance: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, least and greatest."""
    return {"mean": float(np.mean(values)), "min": float(np.min(values)), "max": float(np.max(values))}


def peak_rss_mb(*, children: bool = False) -> float:
    """The largest memory this process (or the largest of its ended children) has held, in MB."""
    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(who).ru_maxrss * unit / 1e6


def judge(workload: Workload, spec: RunSpec) -> Callable[[int, Vector], Metrics]:
    """What gives peer i's model its metrics on the common test rows (its site's own where the user's module
    has the data), by learners that are built once and are nobody else's.

    It raises LearnerError when the learner cannot evaluate.
    """
    shops: dict[str | int, tuple[Workshop, _Sums]] = {}

    def measure(index: int, model: Vector) -> Metrics:
        # On common rows all sites of a role measure alike.
        key = index if workload.pooled is None else workload.role(index)
        if key not in shops:
            site = workload.site(index, spec)
            if workload.pooled is not None:
                site = replace(site, dataset=workload.pooled)
            shop = _workshop(workload, site)
            shops[key] = shop, _sums(shop)
        return _measured(*shops[key], model)

    return measure


def judge_models(workload: Workload, spec: RunSpec, models: Sequence[Vector]) -> list[Metrics]:
    """Each model's metrics, as `judge` gives them.  Raises LearnerError when the learner cannot evaluate."""
    measure = judge(workload, spec)
    return [measure(i, model) for i, model in enumerate(models)]


def judge_kept(
    workload: Workload, spec: RunSpec, models: Sequence[Vector], kept: Sequence[tuple[_Sums, bytes]]
) -> list[Metrics]:
    """Each model's metrics by a learner of its site that has back what that keeps to itself.

    kept: of each, the sums it standardises with, and its learner's state.   Raises LearnerError.
    """
    found = []
    for i, (model, (sums, state)) in enumerate(zip(models, kept, strict=True)):
        found.append(_measured(_workshop(workload, workload.site(i, spec)), sums, model, state))
    return found


def name_of(metrics: Mapping[str, float]) -> str:
    """The metric that is reported unless another is asked for: accuracy, else auc, else the first."""
    return next((name for name in ("accuracy", "auc") if name in metrics), next(iter(metrics), ""))


def backdoor(
    workload: Workload, attack: AttackOptions, spec: RunSpec, models: Sequence[Vector]
) -> list[float]:
    """How often each model gives the target's class to a test row of another class that carries the trigger.

    Raises LearnerError when the learner cannot evaluate.
    """
    assert workload.pooled is not None, "rows that can be poisoned are ours"
    stamped = replace(workload, pooled=triggered(workload.pooled, attack))
    return [metrics["accuracy"] for metrics in judge_models(stamped, spec, models)]


def baselines(workload: Workload, spec: RunSpec, name: str) -> tuple[float | None, list[float] | None]:
    """Metric `name` after training with the same steps a peer has: on all rows together, and on each site's
    alone; judged on the common test rows.  None where the rows are not ours to pool, or it is not measured.
    """
    sites = [workload.site(i, spec) for i in range(len(workload.datasets))]
    alone = [_trained(workload, spec, site, i).get(name) for i, site in enumerate(sites)]
    found = [value for value in alone if value is not None]
    pooled = None
    if workload.pooled is not None:
        site = replace(workload.site(0, spec), dataset=workload.pooled)
        pooled = _trained(workload, spec, site, len(workload.datasets)).get(name)
    return pooled, found if len(found) == len(alone) and found else None


def verdict(
    ran: Ran, workload: Workload, spec: RunSpec, *, metric: str = "", with_baselines: bool = True
) -> dict[str, Any]:
    """The verdict as a JSON object; fields that do not apply are None.

    metric: the one reported; empty takes the one that `name_of` does.   Raises LearnerError.
    """
    measured = judge_models(workload, spec, ran.models) if ran.measured is None else ran.measured
    name = metric or name_of(measured[0])
    values = [m[name] for m in measured if name in m]
    if len(values) < len(measured):
        raise LearnerError(f"the learner's evaluation gives {sorted(measured[0])}, there is no {name!r}")
    pooled, alone = baselines(workload, spec, name) if with_baselines else (None, None)
    # Less of a loss is a gain, too.
    sign = -1.0 if is_lower_better(name) else 1.0
    is_paired = alone is not None and len(alone) == len(values)
    gains = [sign * (v - a) for v, a in zip(values, alone or (), strict=True)] if is_paired else None
    peers = ran.peers or len(ran.models) + ran.byzantine
    distance = ran.consensus_distance
    rows = list(ran.per_peer) or [{} for _ in ran.models]
    return {
        "v": 1,
        "engine": ran.engine,
        "peers": peers,
        "rounds": ran.rounds,
        "metric": {"name": name, **spread(values)},
        "pooled": pooled,
        "alone": None if alone is None else spread(alone),
        "gain": None if gains is None else spread(gains),
        "consensus_distance": _consensus_distance(ran.models) if distance is None else distance,
        "mass": dict(ran.mass) if ran.mass is not None else None,
        "bytes_sent": ran.bytes_sent,
        "bytes_per_peer_round": ran.bytes_sent / max(1, peers * ran.rounds),
        "wall_s": ran.wall_s,
        "peak_rss_mb": peak_rss_mb(),
        "seed": spec.run.seed,
        "run_id": run_id(spec),
        "report": ran.report,
        "attack": ran.attack,
        "aggregator": spec.trust.aggregator.kind if spec.trust.aggregator.kind != "none" else None,
        "byzantine": ran.byzantine or None,
        "honest": {"mean": float(np.mean(values)), "min": float(np.min(values))},
        "data": class_counts(workload),
        **ran.extra,
        "per_peer": [
            {"peer": i, **row, "metrics": dict(m), "gain": None if gains is None else gains[i]}
            for i, (row, m) in enumerate(zip(rows, measured, strict=True))
        ],
    }


def _consensus_distance(models: Sequence[Vector]) -> float | None:
    """None where sites have models of different sizes."""
    if len({model.size for model in models}) > 1:
        return None
    return consensus_distance(np.stack(models))


def _workshop(workload: Workload, site: Site) -> Workshop:
    return Workshop(partial(build, workload.factory), site)


def _sums(shop: Workshop) -> _Sums:
    """The sums over a learner's own training rows, which it standardises with: all sites' for a pooled data
    set, and the site's for one that trained alone.  Asked for once, because all rows are read for it.
    """
    statistics = shop.ready().statistics
    return statistics if statistics.size else None


def _measured(shop: Workshop, sums: _Sums, model: Vector, state: bytes = b"") -> Metrics:
    metrics = shop.evaluate(Evaluate(round=0, parameters=model, statistics=sums), state).metrics
    if shop.fault:
        raise LearnerError(shop.fault)
    return metrics


def _trained(workload: Workload, spec: RunSpec, site: Site, number: int) -> Metrics:
    """Metrics after all rounds on the site's rows, by the learner that trained, with all that it keeps."""
    shop = _workshop(workload, site)
    statistics = _sums(_workshop(workload, site))
    model = shop.ready().parameters
    for round_ in range(spec.run.rounds):
        done = shop.train(
            Train(
                round=round_,
                parameters=model,
                seed=(spec.run.seed, _BASELINE, number, round_),
                progress=round_ / max(1, spec.run.rounds),
                deadline=float("inf"),
                statistics=statistics,
            )
        )
        if done.parameters is None:
            raise LearnerError(done.fault)
        model = done.parameters
    return _measured(shop, statistics, model)
