"""The rows behind a torch loader, as arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from p2pfl.errors import LearnerError

__all__ = ["count_of", "rows_of"]


def count_of(loader: Any) -> int:
    """The number of rows: of the loader's data set, or of one pass where that has no size."""
    rows = getattr(loader, "dataset", None)
    if rows is not None and hasattr(rows, "__len__"):
        return len(rows)
    return sum(len(targets) for _, targets in loader)


def rows_of(loader: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The rows (n, ...) and classes (n,) of the loader's data set, in its own order.

    Each is read once: a data set that augments what it gives is known by its first draw.
    Raises LearnerError unless the data set can be indexed and gives (row, class) of one shape.
    """
    dataset = getattr(loader, "dataset", None)
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise LearnerError(
            "knowledge about single samples needs a training loader with a map-style data set (__getitem__"
            f" and __len__), and this one has {'none' if dataset is None else type(dataset).__name__}"
        )
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        x, y = (np.asarray(tensor.detach().cpu()) for tensor in dataset.tensors)
    else:
        x, y = _read(dataset)
    if y.ndim != 1 or len(y) != len(x) or y.dtype.kind not in "iu" or (len(y) and y.min() < 0):
        raise LearnerError(
            f"the training data give targets {y.shape} {y.dtype}; knowledge is of classes 0, 1, 2, ..."
        )
    return x, y.astype(np.int64)


def _read(dataset: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    xs, ys = [], []
    for number in range(len(dataset)):
        try:
            x, y = dataset[number]
        except (TypeError, ValueError) as error:
            raise LearnerError(f"sample {number} of the training data is no (row, class)") from error
        xs.append(np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x))
        ys.append(np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y))
    try:
        return np.stack(xs), np.stack(ys)
    except ValueError as error:
        raise LearnerError(f"samples of the training data do not stack to one array: {error}") from error
