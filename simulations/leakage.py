"""What an exchange of knowledge tells of single rows: inputs rebuilt from features, and who was trained on.

A hub, or who has broken into one, is given half of a site's rows with their features, fits a linear decoder,
and rebuilds the other half.  Whoever sees predictions, or prototypes, tells training rows from others by how
well they fit.  Both attacks are simple, so what they find is leaked at least.

`n` rows of `k` values, `d` hidden values of a row, `h` values of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.knowledge.beliefs import log_softmax
from p2pfl.run import RunSpec

from .machine import Machine

__all__ = ["check", "leaks", "membership_auc", "rebuilt_share"]

_Floats = NDArray[np.float64]

# Purpose of the draw of the half that is known: "leak" in ASCII.
_HALF = 0x6C65616B
# Of the mean squared length of a row of features: keeps the decoder of few rows from being all noise.
_RIDGE = 1e-3
# With fewer rows a half says nothing.
_FEWEST = 10


def check(is_wanted: bool, spec: RunSpec, engine: str, where: str) -> None:
    """Refuse a leakage report of a run that has none.  Raises ConfigError."""
    if is_wanted and (spec.knowledge.exchange.kind != "hub" or engine != "world"):
        raise ConfigError(
            f'{where}: simulation.leakage is for engine "world" and knowledge.exchange.kind "hub"; this is'
            f" {engine!r} and {spec.knowledge.exchange.kind!r}"
        )


def leaks(machines: Sequence[Machine], spec: RunSpec) -> dict[str, Any]:
    """`leakage` of a verdict, means over `machines` with rows enough; None where there is none.

    features: the share of the variance of inputs that a linear decoder rebuilds (R^2).   predictions: the
    AUC of the loss of the site's own model, prototypes: of the distance to the class's prototype, each by
    which training rows are told from test rows; 0.5 tells nothing.
    """
    found: dict[str, list[float]] = {"features": [], "predictions": [], "prototypes": []}
    for machine in machines:
        dataset, learner, peer = machine.site.site.dataset, machine.workshop.learner, machine.peer
        if dataset is None or peer is None or not all(hasattr(learner, n) for n in ("features", "own_rows")):
            continue
        own: Any = learner
        theta, (x, labels) = peer.model(), own.own_rows()
        if len(x) < _FEWEST or not len(dataset.x_test):
            continue
        others, other_labels = np.reshape(dataset.x_test, (-1, *x.shape[1:])), dataset.y_test
        hidden = np.asarray(own.features(theta, x), np.float64)
        rng = np.random.default_rng([spec.run.seed, _HALF, machine.index])
        found["features"].append(rebuilt_share(hidden, np.reshape(x, (len(x), -1)), rng))
        found["predictions"].append(
            membership_auc(
                _losses(own.answer(theta, x), labels), _losses(own.answer(theta, others), other_labels)
            )
        )
        centres = {c: hidden[labels == c].mean(axis=0) for c in np.unique(labels)}
        strange = np.asarray(own.features(theta, others), np.float64)
        found["prototypes"].append(
            membership_auc(_distances(hidden, labels, centres), _distances(strange, other_labels, centres))
        )
    return {name: float(np.mean(values)) if values else None for name, values in found.items()}


def rebuilt_share(hidden: _Floats, x: NDArray[Any], rng: np.random.Generator) -> float:
    """R^2 on half of the rows of a ridge regression from features, (n, d), to inputs, (n, k), of the others.

    1 is all of it, 0 no better than the mean of the known rows.
    """
    order = rng.permutation(len(x))
    known, rest = order[: len(x) // 2], order[len(x) // 2 :]
    x = np.asarray(x, np.float64)
    middle, mean = hidden[known].mean(axis=0), x[known].mean(axis=0)
    A, B = hidden[known] - middle, hidden[rest] - middle
    gram = A @ A.T
    gram[np.diag_indices_from(gram)] += _RIDGE * max(float(np.trace(gram)) / len(known), 1e-12)
    told = mean + B @ A.T @ np.linalg.solve(gram, x[known] - mean)
    whole = float(((x[rest] - mean) ** 2).sum())
    return 1.0 - float(((x[rest] - told) ** 2).sum()) / whole if whole else 0.0


def membership_auc(inside: _Floats, outside: _Floats) -> float:
    """The chance that a training row has less loss than another row; ties count half.

    >>> membership_auc(np.array([0.1, 0.2]), np.array([0.2, 0.3]))
    0.875
    """
    ordered = np.sort(outside)
    above = len(ordered) - np.searchsorted(ordered, inside, side="right")
    level = np.searchsorted(ordered, inside, side="right") - np.searchsorted(ordered, inside, side="left")
    return float((above + 0.5 * level).sum() / (len(inside) * len(outside)))


def _losses(logits: NDArray[Any], labels: NDArray[np.int64]) -> _Floats:
    losses: _Floats = -log_softmax(logits)[np.arange(len(labels)), labels]
    return losses


def _distances(rows: _Floats, labels: NDArray[np.int64], centres: dict[int, _Floats]) -> _Floats:
    """Of the rows whose class has a prototype, to it."""
    return np.array(
        [np.linalg.norm(row - centres[c]) for row, c in zip(rows, labels, strict=True) if c in centres]
    )
