"""Learning from another model's beliefs: the distillation loss, its gradient, and how old beliefs fade.

`n` samples, `K` classes, z the student's logits, p the teacher's probabilities, T the temperature.  Softening
takes p to q = softmax(log(p) / T), which is softmax(z_teacher / T) for whatever logits the teacher had.

loss = CE(y, z) + alpha T^2 KL(q || softmax(z / T)), the mean over samples, the first term only with labels;
d loss / dz = (softmax(z) - Y + alpha T (softmax(z / T) - q)) / n,   Y the one-hot labels.

T^2 makes the pull of the teacher as strong at every temperature: for large T both terms are linear in z.
Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531, sections 2 and 2.1.
"""

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError

__all__ = ["FADING", "LOG_FLOOR", "alpha_at", "check_lesson", "log_softmax", "mixture", "soften"]

_Matrix = NDArray[np.float64]

# What is left of a teacher's weight for each round of its age: after 6 rounds an eighth.
FADING = 0.7
# Smallest log-probability that a model without logits gives: 2e-9.
LOG_FLOOR = -20.0
# Smallest log-probability of a teacher that is told from none; divided by T = 3 it is 2e-9.
_FLOOR = -60.0
# How far a row of float16 probabilities may be from 1 in its sum, at a thousand classes.
_SLACK = 1e-2


def alpha_at(alpha: float, age: int) -> float:
    """The weight of a teacher whose beliefs are `age` rounds old.

    >>> [round(alpha_at(1.0, age), 3) for age in (0, 1, 2)]
    [1.0, 0.7, 0.49]
    """
    return float(alpha * FADING ** max(age, 0))


def check_lesson(rows: int, targets: NDArray[np.floating], classes: int, temperature: float) -> None:
    """Raises LearnerError unless `targets` are probabilities (rows, classes) and the temperature positive."""
    if targets.shape != (rows, classes):
        raise LearnerError(
            f"targets have shape {targets.shape}, expected ({rows}, {classes}): a row for each sample, a"
            " column for each class; check that the sites agree on the samples and the classes"
        )
    if not (np.isfinite(targets).all() and (targets >= 0).all()):
        raise LearnerError("targets hold a negative or infinite probability; send softmax(logits)")
    if rows and abs(targets.sum(axis=1, dtype=np.float64) - 1).max() > _SLACK:
        raise LearnerError("targets are no probabilities: a row does not sum to 1; send softmax(logits)")
    if not 0 < temperature < np.inf:
        raise LearnerError(f"temperature {temperature:g} is not a positive number; 1 to 5 is usual")


def log_softmax(z: NDArray[np.floating]) -> _Matrix:
    """Logarithms of the softmax of logits (n, K), in float64."""
    wide = z.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def soften(p: NDArray[np.floating], temperature: float) -> _Matrix:
    """softmax(log(p) / T) of probabilities (n, K).

    >>> soften(np.array([[0.9, 0.1]]), 2.0).round(3).tolist()
    [[0.75, 0.25]]
    """
    log_p = np.log(np.maximum(p.astype(np.float64), np.exp(_FLOOR)))
    return np.asarray(np.exp(log_softmax(log_p / temperature)))


def mixture(
    z: NDArray[np.floating],
    q: _Matrix,
    labels: NDArray[np.int64] | None,
    *,
    temperature: float,
    alpha: float,
) -> tuple[float, _Matrix]:
    """The loss above in nats, and its derivative by z, (n, K).

    z: (n, K) logits.   q: (n, K), softened by the same T.   labels: (n,), or None without a first term.
    """
    n, T = len(z), temperature
    log_s = log_softmax(z.astype(np.float64) / T)
    entropy = q * np.log(np.maximum(q, np.finfo(np.float64).tiny))
    loss = alpha * T**2 * float((entropy - q * log_s).sum()) / n
    dz = alpha * T * (np.exp(log_s) - q)
    if labels is not None:
        log_p = log_softmax(z)
        loss -= float(log_p[np.arange(n), labels].sum()) / n
        dz += np.exp(log_p)
        dz[np.arange(n), labels] -= 1
    return loss, dz / n
