"""The protocol a data scientist meets: a factory from a Site to a Learner.

The same factory serves one daemon or ten thousand simulated sites.  `d` is the number of shared parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from p2pfl.events import Metrics, Vector
from p2pfl.work import Expected

__all__ = [
    "DISTILL_ROWS",
    "VALIDATION_ROWS",
    "Answers",
    "Distills",
    "DpSgd",
    "Embeds",
    "Learner",
    "LearnerFactory",
    "Pairs",
    "Near",
    "OwnRows",
    "Site",
    "Splits",
    "Update",
]

# Rows on which a model of another site is validated: the standard error of a mean loss is then a sixteenth of
# the rows' spread, and it costs less than ten steps of a fit.
VALIDATION_ROWS = 256
# Rows of a step on a probe set, where nobody says otherwise: the default of `distill`.
DISTILL_ROWS = 64


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
    `role` is which of `[learner.roles]` the site plays; `options` is then what `[learner]` says to that role.
    `exchange` is the kind of knowledge exchanged, and `probe_source`, `probe_digest`, `probe_samples` the
    probe set where there is one.
    """

    data: str = ""
    name: str = "site"
    seed: int = 0
    local_steps: int | None = None
    options: Any = None
    dataset: Any = None
    dp_sgd: DpSgd | None = None
    role: str = ""
    exchange: str = "none"
    probe_source: str = ""
    probe_digest: str = ""
    probe_samples: int = 0
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

    Exchange of knowledge needs more: `Answers` and `Distills` for probes, where `OwnRows` helps; `Embeds`,
    `Near` and `OwnRows` for prototypes; `Splits` and `OwnRows` for hubs; `Pairs` for proxies.
    `classes() -> int`: how many there are, where no `answer` shows it.   Rows `x` come raw, as the run's data
    source gives them, (n, k), and the learner prepares them like its own.
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


@runtime_checkable
class Answers(Protocol):
    """A learner that says what a model believes of given rows."""

    def answer(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:
        """Logits, (n, K), of rows (n, ...) in eval mode.

        A model that has only probabilities gives their logarithms, in -20..0.
        """
        ...


@runtime_checkable
class Distills(Protocol):
    """A learner that learns what other models believe of given rows."""

    def distill(
        self,
        parameters: Vector,
        x: NDArray[Any],
        targets: NDArray[np.floating],
        rng: np.random.Generator,
        *,
        epochs: int = 1,
        batch: int = 64,
        temperature: float = 3.0,
        alpha: float = 1.0,
        labels: NDArray[np.int64] | None = None,
    ) -> Update:
        """Train from `parameters` on the loss of distill.py.   x: (n, ...).   targets: (n, K) probabilities.

        labels: (n,) classes 0..K-1 where they are known: cross-entropy is added.   `samples` of the Update
        counts rows seen, and `distill_loss` is the mean loss.
        """
        ...


@runtime_checkable
class Embeds(Protocol):
    """A learner whose model embeds rows in h dimensions before it classifies them."""

    def features(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:
        """What enters the last layer, (n, h), of rows (n, ...) in eval mode."""
        ...


@runtime_checkable
class Near(Protocol):
    """A learner that can keep its embedding near the prototypes of the classes."""

    def fit_near(
        self,
        parameters: Vector,
        rng: np.random.Generator,
        prototypes: NDArray[np.floating],
        known: NDArray[np.bool_],
        weight: float,
    ) -> Update:
        """`fit` on its loss plus `weight` times the mean of ||f - p_y||^2 / h, 0 for a class not known.

        prototypes: (K, h).   known: (K,), where there is a prototype.   With weight 0 it is `fit`.
        Source: Tan et al. 2022, arXiv:2105.00243, equation (4), with a squared distance.
        """
        ...


@runtime_checkable
class OwnRows(Protocol):
    """A learner that shows its training rows, so that others can teach it about them."""

    def own_rows(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The training rows raw, (n, ...), and their classes 0..K-1, (n,): always the same, in one order.

        A sample is known by its number in them.
        """
        ...


@runtime_checkable
class Pairs(Protocol):
    """A learner of two models that teach each other; `parameters` are the one's that travels (ProxyFL)."""

    def fit_mutual(
        self,
        parameters: Vector,
        rng: np.random.Generator,
        *,
        alpha: float,
        beta: float,
        temperature: float,
    ) -> Update:
        """`fit` of both: the proxy on (1 - alpha) CE + alpha T^2 KL, the private model so with beta."""
        ...


@runtime_checkable
class Splits(Protocol):
    """A learner whose model is cut in two (FedGKT): `parameters` are the edge's, the hub's model stays here.

    `n` samples, `d` hidden values of each, `m` parameters of the hub's model.
    """

    def expected(self) -> Expected:
        """What it can give; the same in every process."""
        ...

    def fit_taught(
        self,
        parameters: Vector,
        x: NDArray[Any],
        labels: NDArray[np.int64],
        targets: NDArray[np.floating] | None,
        rng: np.random.Generator,
        *,
        temperature: float = 3.0,
        alpha: float = 1.0,
        is_frozen: bool = False,
    ) -> Update:
        """`fit` on CE + alpha T^2 KL of rows (n, ...); targets (n, K) probabilities, or None without KL."""
        ...

    def features(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:
        """Hidden values, (n, d), of rows (n, ...) in eval mode."""
        ...

    def answer(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:
        """Logits of the edge's own head, (n, K)."""
        ...

    def learn(
        self,
        hidden: NDArray[np.float32],
        labels: NDArray[np.int64],
        targets: NDArray[np.floating],
        rng: np.random.Generator,
        *,
        temperature: float = 3.0,
        alpha: float = 1.0,
    ) -> Metrics:
        """Train the hub's model on CE + alpha T^2 KL of hidden values (n, d), as often as it sees fit."""
        ...

    def hub_answer(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of the hub's model as it stands, (n, K), of hidden values (n, d)."""
        ...

    def hub_model(self) -> Vector:
        """The hub's model, (m,)."""
        ...

    def adopt_hub_model(self, model: Vector) -> None:
        """From now on the hub's model is `model`, (m,)."""
        ...

    @property
    def holds_hub_model(self) -> bool:
        """Whether the hub's model knows anything: it was trained here, or came from a hub."""
        ...


LearnerFactory = Callable[[Site], Learner]
