"""The protocol a data scientist meets: a factory from a Site to a Learner.

The same factory serves one daemon or ten thousand simulated sites.  `d` is the number of shared parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from p2pfl.events import Metrics, Vector

__all__ = ["DpSgd", "VALIDATION_ROWS", "Learner", "LearnerFactory", "Site", "Update"]

# Rows on which a model of another site is validated: the standard error of a mean loss is then a sixteenth of
# the rows' spread, and it costs less than ten steps of a fit.
VALIDATION_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one fit gives: the new parameters, how many samples it saw, and what it measured."""

    parameters: Vector
    samples: int
    metrics: Metrics = field(default_factory=dict)


def _never() -> bool:
    return False


def _zero() -> float:
    return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DpSgd:
    """What the agreement asks of each step: gradients of rows cut to norm `clip`, and Gaussian noise of
    deviation `noise_multiplier` times `clip` on their sum.
    """

    clip: float
    noise_multiplier: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One site, as the learner factory sees it.

    `data` is the source from this site's node.toml (a path or `csv:...`); `seed` the run's; `local_steps`,
    `options` come from `[learner]` of the agreement.  `should_stop()` turns true at the round's deadline: a
    fit that looks at it between batches returns its partial work.  `progress()` is the share of training
    rounds done, 0..1, for schedules.  `dataset` is the rows themselves where a driver already holds them.
    `dp_sgd` is set where the agreement protects single rows; the learner then says what it does (`release`).
    """

    data: str = ""
    name: str = "site"
    seed: int = 0
    local_steps: int | None = None
    options: Any = None
    dataset: Any = None
    dp_sgd: DpSgd | None = None
    should_stop: Callable[[], bool] = _never
    progress: Callable[[], float] = _zero


@runtime_checkable
class Learner(Protocol):
    """A model and its data.  Optional methods are looked up by name; see docs of each adapter.

    `state() -> bytes` and `restore(bytes)`: what must survive a crash.  `samples() -> int`: training rows.
    `statistics() -> (k,) float64` and `standardise(sums)`: sums to pool across sites before round 0.
    `validate(parameters, rng) -> float`: the mean loss on VALIDATION_ROWS training rows that `rng` draws, NaN
    when there is none to measure; reputation uses it, and does without.
    `data_set() -> str`: names the rows in the privacy account, instead of `site.data`.
    `release() -> Release | None`: what one whole fit releases, when the learner noises the gradients of rows.
    """

    def parameters(self) -> Vector:
        """The shared parameters now, (d,) float32."""
        ...

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        """Train from `parameters`, (d,) float32; every random choice comes from `rng`."""
        ...

    def evaluate(self, parameters: Vector) -> Metrics:
        """Measure `parameters` on the site's own test rows."""
        ...


LearnerFactory = Callable[[Site], Learner]
