"""What a user's learner gives, looked at before anybody reckons with it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError

__all__ = ["numbers"]


def numbers(value: Any, shape: tuple[int, ...], what: str) -> NDArray[np.floating]:
    """`value` if it is finite numbers of `shape`, where -1 is any size.  Raises LearnerError.

    >>> numbers([[1, 2]], (1, -1), "answer()").shape
    (1, 2)
    """
    found = np.asarray(value)
    fits = found.ndim == len(shape) and all(
        size in (-1, actual) for size, actual in zip(shape, found.shape, strict=True)
    )
    if not fits or found.dtype.kind not in "fiu":
        wanted = ", ".join("any" if size == -1 else str(size) for size in shape)
        raise LearnerError(f"{what} gave {found.shape} {found.dtype}; expected numbers ({wanted})")
    if not np.isfinite(found).all():
        raise LearnerError(f"{what} gave numbers that are not finite; try a smaller learning rate")
    return found
