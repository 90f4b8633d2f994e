"""A site's own training rows as others are told of them: by number, and some held out to judge teachers by.

`n` rows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError

__all__ = ["held_out", "own_rows"]

# Purpose number of the draw of held-out rows: keeps it apart from every other draw of the run's seed.
_HELD_OUT = 3
# One row in ten judges a teacher; FedML's loaders keep as much.
_SHARE = 10
# With fewer rows than this none is spared.
_FEWEST = 5


def held_out(seed: int, n: int) -> NDArray[np.bool_]:
    """The rows, (n,) bool, on which a site does not fit: a tenth, at least one of five or more.

    The same in every round and in every process.   seed: the run's.

    >>> [int(held_out(0, n).sum()) for n in (4, 5, 19, 100)]
    [0, 1, 1, 10]
    """
    count = max(n // _SHARE, 1) if n >= _FEWEST else 0
    is_held_out = np.zeros(n, np.bool_)
    is_held_out[np.random.default_rng([seed, _HELD_OUT, n]).permutation(n)[:count]] = True
    return is_held_out


def own_rows(learner: Any, classes: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """What the learner's `own_rows` gives, checked: rows (n, ...) and labels (n,) in 0..classes-1.

    Raises LearnerError.
    """
    x, labels = learner.own_rows()
    x, labels = np.asarray(x), np.asarray(labels)
    if x.ndim < 2 or labels.shape != (len(x),) or labels.dtype.kind not in "iu" or not len(x):
        raise LearnerError(
            f"own_rows() gave rows {x.shape} and labels {labels.shape} {labels.dtype}; expected (n, ...) and"
            " integers (n,), n at least 1"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise LearnerError(
            f"own_rows() gave labels {labels.min()} to {labels.max()}, the model has classes 0 to"
            f" {classes - 1}"
        )
    return x, labels.astype(np.int64)
