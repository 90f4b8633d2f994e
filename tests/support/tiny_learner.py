"""A learner of three numbers, for tests of everything but learning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from p2pfl.events import Metrics, Vector
from p2pfl.learn.learner import Site, Update

__all__ = ["TinyLearner", "stepwise", "tiny", "tiny_of_many_rows"]


@dataclass(slots=True)
class TinyLearner:
    """Each step of a fit goes `rate` of the way to `target`."""

    target: Vector
    rate: float = 0.1
    rows: int = 1
    steps: int = 1
    is_over: Callable[[], bool] = field(default=lambda: False)

    def parameters(self) -> Vector:
        return np.zeros(3, np.float32)

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        moved, done = parameters, 0
        while done < self.steps and not self.is_over():
            moved = (moved + np.float32(self.rate) * (self.target - moved)).astype(np.float32)
            done += 1
        metrics = {"loss": 1.0} | ({"steps": float(done)} if self.steps > 1 else {})
        return Update(parameters=moved, samples=self.rows, metrics=metrics)

    def evaluate(self, parameters: Vector) -> Metrics:
        return {"distance": float(np.linalg.norm(parameters - self.target))}

    def samples(self) -> int:
        return self.rows


def tiny(site: Site) -> TinyLearner:
    """The target is the site's number, three times."""
    return TinyLearner(np.full(3, float(site.data or 0), np.float32))


def tiny_of_many_rows(site: Site) -> TinyLearner:
    """As `tiny`, with one row more than what it aims at."""
    learner = tiny(site)
    learner.rows = 1 + int(float(site.data))
    return learner


def stepwise(site: Site) -> TinyLearner:
    """As `tiny`, in as many steps as the agreement says, stopping when the site says so."""
    learner = tiny(site)
    learner.steps, learner.is_over = site.options.local_steps, site.should_stop
    return learner
