"""A learner of three numbers, for tests of everything but learning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from p2pfl.events import Metrics, Vector
from p2pfl.learn.learner import Site, Update

__all__ = ["TinyLearner", "tiny", "tiny_of_many_rows"]


@dataclass(slots=True)
class TinyLearner:
    """Each fit goes `rate` of the way to `target`."""

    target: Vector
    rate: float = 0.1
    rows: int = 1

    def parameters(self) -> Vector:
        return np.zeros(3, np.float32)

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        moved = parameters + np.float32(self.rate) * (self.target - parameters)
        return Update(parameters=moved.astype(np.float32), samples=self.rows, metrics={"loss": 1.0})

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
