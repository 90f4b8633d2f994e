"""How good a model is, and how far apart the models of many peers are.

Shapes: `n` rows (or peers), `C` classes, `d` parameters.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError

__all__ = ["by_class", "accuracy", "auc", "log_loss", "consensus_distance"]

_Array = NDArray[Any]
# Rows turned to float64 at once in consensus_distance: 4,096 rows of 10,000 parameters are 0.3 GB.
_ROWS_AT_ONCE = 4096


def accuracy(labels: _Array, predicted: _Array) -> float:
    """The share of rows, 0..1, whose predicted class is the label.   both: (n,) integers, n > 0."""
    _check_rows(labels, predicted)
    return float(np.mean(labels == predicted))


def auc(labels: _Array, scores: _Array) -> float:
    """The area under the ROC curve, ties counted half; NaN when every row has one and the same class.

    labels: (n,) integers.   scores: (n,) for class 1 of two, or (n, C): then the plain mean over the classes
    that occur and do not fill all rows, each against the rest.   O(n log n) per class.
    Source: Hanley & McNeil 1982, Radiology 143(1): the area is the Mann-Whitney statistic over n1 n0.
    """
    _check_rows(labels, scores)
    if scores.ndim == 1:
        return _binary_auc(labels == 1, scores)
    if scores.shape[1] == 2:
        return _binary_auc(labels == 1, scores[:, 1])
    areas = [_binary_auc(labels == c, scores[:, c]) for c in range(scores.shape[1])]
    defined = [area for area in areas if not np.isnan(area)]
    return float(np.mean(defined)) if defined else float("nan")


def log_loss(labels: _Array, probabilities: _Array) -> float:
    """The mean negative log-likelihood in nats.

    labels: (n,) integers.   probabilities: (n, C), rows sum to 1, or (n,) for class 1 of two.
    Probabilities are clipped away from 0 and 1 by their dtype's epsilon, so the loss stays finite.
    """
    _check_rows(labels, probabilities)
    if probabilities.ndim == 1:
        picked = np.where(labels == 1, probabilities, 1 - probabilities)
    else:
        picked = probabilities[np.arange(len(labels)), labels]
    epsilon = np.finfo(picked.dtype).eps
    return float(-np.mean(np.log(np.clip(picked.astype(np.float64), epsilon, 1 - epsilon))))


def consensus_distance(models: _Array) -> float:
    """The root mean square distance of the peers' models from their mean.

    models: (n, d), one row a peer.   returns: sqrt(1/n sum_i ||x_i - mean||^2), in float64.   O(n d).
    Source: Kong et al. 2021, arXiv:2102.04828, equation (3) (Xi_t).

    >>> consensus_distance(np.array([[0.0, 0.0], [2.0, 0.0]]))
    1.0
    """
    mean = _mean_model(models)
    total = 0.0
    for start in range(0, len(models), _ROWS_AT_ONCE):
        gap = models[start : start + _ROWS_AT_ONCE].astype(np.float64) - mean
        total += float(np.vdot(gap, gap))
    return float(np.sqrt(total / len(models)))


def _mean_model(models: _Array) -> NDArray[np.float64]:
    if models.ndim != 2 or len(models) == 0:
        raise LearnerError(f"models have shape {models.shape}, expected (n, d) with at least one peer")
    return np.asarray(np.mean(models, axis=0, dtype=np.float64))


def _binary_auc(positive: _Array, scores: _Array) -> float:
    n1 = int(positive.sum())
    n0 = len(positive) - n1
    if n1 == 0 or n0 == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # The mid-rank of a tied group that ends at rank e and has c members is e - (c - 1) / 2.
    midrank = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(midrank[inverse][positive].sum())
    return (rank_sum - n1 * (n1 + 1) / 2) / (n1 * n0)


def _check_rows(labels: _Array, other: _Array) -> None:
    if len(labels) == 0 or len(labels) != len(other):
        raise LearnerError(
            f"{len(labels)} labels and {len(other)} predictions; both need the same rows, not none"
        )


def by_class(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], own: NDArray[np.int64], n_classes: int
) -> dict[str, float]:
    """`accuracy_C` of each class in the test rows, and `local_accuracy`: weighted as the site's own classes.

    labels, predicted: (n,) of test rows.   own: (m,) classes of training rows.   A class without a test row
    has no accuracy, and its weight goes to the others.

    >>> by_class(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([1, 1, 1, 0]), 3)
    {'accuracy_0': 0.5, 'accuracy_1': 1.0, 'local_accuracy': 0.875}
    """
    tested = np.bincount(labels, minlength=n_classes)
    right = np.bincount(labels[predicted == labels], minlength=n_classes)
    shares = np.bincount(own, minlength=n_classes) * (tested > 0)
    accuracies = right / np.maximum(tested, 1)
    found = {f"accuracy_{c}": float(accuracies[c]) for c in np.flatnonzero(tested)}
    if shares.sum():
        found["local_accuracy"] = float((accuracies * shares).sum() / shares.sum())
    return found
