"""Which rows each local step sees: epochs of shuffled rows, end to end."""

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError

__all__ = ["batches"]


def batches(rows: int, batch_size: int, steps: int | None, rng: np.random.Generator) -> NDArray[np.int64]:
    """Row numbers of each step, (steps, min(batch_size, rows)).

    The rows are shuffled anew for every epoch and the epochs laid end to end before they are cut, so no row
    is dropped, none comes a second time before all came once, and a batch may span two epochs.
    steps: None is one epoch, rounded up.
    """
    if rows == 0:
        raise LearnerError("there are no training rows; check the site's data source")
    size = min(batch_size, rows)
    steps = -(-rows // size) if steps is None else steps
    epochs = -(-steps * size // rows)
    order = np.concatenate([rng.permutation(rows) for _ in range(epochs)] or [np.zeros(0, np.int64)])
    return order[: steps * size].reshape(steps, size)
