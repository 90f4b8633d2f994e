"""What a model believes of a sample: log-probabilities over K classes, bounded, as they travel.

Logits matter only up to a constant, at any temperature T: softmax(z / T) is the same for z and for
log softmax(z).  So what travels is log softmax(z), never below a floor: it has one spelling, its range is
known, and no sender can shout.   `n` samples, `K` classes; `p` are probabilities, `log_p` their logarithms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PROBE_FLOOR",
    "LOGIT_FLOOR",
    "LEVELS",
    "Beliefs",
    "log_softmax",
    "softmax",
    "to_codes",
    "from_codes",
    "cross_entropy",
    "agreement",
]

Beliefs = NDArray[np.float64]

# Predictions on a probe are averaged over peers: 2e-9 more or less of a class is nobody's knowledge.
PROBE_FLOOR = -20.0
# Soft labels are divided by a temperature of about 3 before use: exp(-60 / 3) is 2e-9 again.
LOGIT_FLOOR = -60.0
# One byte a value: steps of .078 nats on a probe.
LEVELS = 255


def log_softmax(z: NDArray[np.floating], floor: float = PROBE_FLOOR) -> Beliefs:
    """(n, K) logits of any float type as log-probabilities in floor..0, float64.

    A value that is not finite, as a diverged model gives, counts as the floor below the largest finite one;
    a row without a finite value becomes uniform.

    >>> log_softmax(np.array([[0.0, 0.0], [2.0, 0.0]])).round(3).tolist()
    [[-0.693, -0.693], [-0.127, -2.127]]
    """
    wide = np.asarray(z, np.float64)
    wide = np.where(np.isfinite(wide), wide, -np.inf)
    top = wide.max(axis=1, keepdims=True)
    wide = np.maximum(np.where(np.isfinite(top), wide - np.where(np.isfinite(top), top, 0.0), 0.0), floor)
    log_p: Beliefs = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return np.maximum(log_p, floor)


def softmax(z: NDArray[np.floating]) -> Beliefs:
    """(n, K) logits or log-probabilities as probabilities whose rows sum to 1."""
    p = np.exp(log_softmax(z))
    total: Beliefs = p / p.sum(axis=1, keepdims=True)
    return total


def to_codes(log_p: NDArray[np.floating]) -> NDArray[np.uint8]:
    """log-probabilities in PROBE_FLOOR..0 as one byte each, off by at most half of 20/255 nats.

    >>> to_codes(np.array([[0.0, -20.0, -0.1]])).tolist()
    [[0, 255, 1]]
    """
    return np.rint(np.asarray(log_p, np.float64) * (LEVELS / PROBE_FLOOR)).astype(np.uint8)


def from_codes(codes: NDArray[np.uint8]) -> Beliefs:
    """The log-probabilities that `codes` stand for."""
    values: Beliefs = codes.astype(np.float64) * (PROBE_FLOOR / LEVELS)
    return values


def cross_entropy(log_p: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Mean of -log p of the true class, nats.   log_p: (n, K), n at least 1; labels: (n,) below K."""
    return float(
        -np.take_along_axis(np.asarray(log_p, np.float64), labels[:, None].astype(np.int64), 1).mean()
    )


def agreement(log_p: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The share of samples, 0..1, whose likeliest class is the true one."""
    return float((np.argmax(log_p, axis=1) == labels).mean())
