"""Populations of tiny learners, for tests of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tiny_learner import TinyLearner

from p2pfl.learn.learner import Learner, LearnerFactory, Site, Update
from p2pfl.run import RunSpec, decode
from p2pfl.simulations.population import Population
from p2pfl.simulations.workload import Workload

__all__ = ["agreement", "made", "ran", "workload"]


@dataclass(frozen=True, slots=True)
class Tiny:
    """A learner that draws, so that the random streams of a fit count, and says how many rows it has."""

    inner: TinyLearner

    def parameters(self) -> Any:
        return self.inner.parameters()

    def fit(self, parameters: Any, rng: np.random.Generator) -> Update:
        update = self.inner.fit(parameters, rng)
        noise = rng.normal(scale=0.01, size=3).astype(np.float32)
        return Update(parameters=update.parameters + noise, samples=1, metrics={"loss": float(rng.random())})

    def evaluate(self, parameters: Any) -> Any:
        return self.inner.evaluate(parameters)

    def samples(self) -> int:
        return self.inner.rows


def _tiny(site: Site) -> Learner:
    number = float(site.data)
    return Tiny(TinyLearner(np.full(3, number, np.float32), rows=3 + int(number)))


def agreement(n: int, **tables: dict[str, Any]) -> RunSpec:
    """An agreement of `n` members; `tables` by name."""
    run = {
        "rounds": 3,
        "closing_rounds": 1,
        "deadline_s": 8.0,
        "members_at_start": n,
        **tables.pop("run", {}),
    }
    return decode({"run": run, **tables}, "test")


def workload(n: int, factory: LearnerFactory = _tiny, datasets: Any = None) -> Workload:
    """Sites that aim at their number, of 3 rows and more."""
    return Workload(
        factory=factory,
        datasets=datasets or (None,) * n,
        sources=tuple(str(i) for i in range(n)),
        pooled=None,
    )


def ran(n: int, spec: RunSpec, sites: Workload | None = None, **options: Any) -> Population:
    """A population whose run is over."""
    population = made(n, spec, sites or workload(n), **options)
    population.run()
    return population


def made(n: int, spec: RunSpec, sites: Workload, **options: Any) -> Population:
    """A population that has yet to take its first round."""
    return Population(spec, sites.factory, [sites.site(i, spec) for i in range(n)], **options)
