"""Learners of a few numbers that can give and take knowledge, for tests of everything but learning."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.events import Metrics, Vector
from p2pfl.learn.learner import Site, Update
from p2pfl.work import Expected

__all__ = ["CLASSES", "ROWS", "WIDTH", "TinySplitter", "splitter"]

CLASSES, ROWS, WIDTH = 3, 12, 4


@dataclass(slots=True)
class TinySplitter:
    """An edge of two numbers and a hub of two; each fit adds 1 to both, each teacher 10 to the second.

    Hidden values tell the class, a head that was never taught does not.
    """

    number: int
    expects: Expected
    hub: Vector = field(default_factory=lambda: np.zeros(2, np.float32))
    is_held: bool = False
    learned_from: list[int] = field(default_factory=list)
    distilled: list[NDArray[np.floating]] = field(default_factory=list)

    def parameters(self) -> Vector:
        return np.zeros(2, np.float32)

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        return Update(parameters=parameters + np.float32(1), samples=ROWS, metrics={"loss": 1.0})

    def evaluate(self, parameters: Vector) -> Metrics:
        found = {"fits": float(parameters[0]), "taught": float(parameters[1] - parameters[0]) / 10}
        return found | ({"hub": float(self.hub[0])} if self.is_held else {})

    def own_rows(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        labels = (np.arange(ROWS) + self.number) % CLASSES
        return np.eye(WIDTH, dtype=np.float32)[labels], labels

    def features(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(x, np.float32)

    def answer(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:
        return np.zeros((len(x), CLASSES), np.float32)

    def fit_taught(
        self,
        parameters: Vector,
        x: NDArray[Any],
        labels: NDArray[np.int64],
        targets: NDArray[np.floating] | None,
        rng: np.random.Generator,
        **how: Any,
    ) -> Update:
        moved = parameters + np.float32(1)
        if targets is not None:
            # The teacher's answers must be for these very rows.
            assert (targets.argmax(axis=1) == labels).all()
            moved[1] += 10
        return Update(parameters=moved, samples=len(x), metrics={"loss": 1.0})

    def fit_near(self, parameters: Vector, rng: np.random.Generator, *how: Any) -> Update:
        return self.fit(parameters, rng)

    def fit_mutual(self, parameters: Vector, rng: np.random.Generator, **how: Any) -> Update:
        return self.fit(parameters, rng)

    def learn(
        self,
        hidden: NDArray[np.float32],
        labels: NDArray[np.int64] | None,
        targets: NDArray[np.floating],
        rng: np.random.Generator,
        **how: Any,
    ) -> Metrics:
        self.hub = self.hub + np.float32(1 + self.number)
        self.is_held = True
        self.learned_from.append(len(hidden))
        return {"loss": 1.0}

    def hub_distill(
        self, hidden: NDArray[np.float32], targets: NDArray[np.floating], rng: np.random.Generator, **how: Any
    ) -> Metrics:
        self.distilled.append(np.asarray(targets))
        return {"distill_loss": 1.0}

    def hub_answer(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(8 * hidden[:, :CLASSES], np.float32)

    def hub_model(self) -> Vector:
        return self.hub

    def adopt_hub_model(self, model: Vector) -> None:
        self.hub, self.is_held = np.array(model), True

    @property
    def holds_hub_model(self) -> bool:
        return self.is_held

    def expected(self) -> Expected:
        return self.expects


def splitter(site: Site) -> TinySplitter:
    """Site `hub 3` is a hub of capacity 1, site `edge 4` none."""
    kind, _, number = site.data.partition(" ")
    expects = Expected(
        classes=CLASSES, width=WIDTH, split=b"\x01" * 32, model=b"\x02" * 32, model_values=2, capacity=0.0
    )
    return TinySplitter(int(number), replace(expects, capacity=float(kind == "hub")))
