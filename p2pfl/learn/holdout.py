"""Which rows are kept for evaluation."""

import hashlib
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError

__all__ = ["Rows", "split_rng", "stratified_split"]

Rows: TypeAlias = NDArray[np.int64]

# Purpose number of the split's draw: keeps it apart from every other draw of the run's seed.
_SPLIT = 2


def stratified_split(
    labels: NDArray[Any], test_fraction: float, rng: np.random.Generator
) -> tuple[Rows, Rows]:
    """Training and test row numbers, sorted; of each class round(n_c test_fraction) rows are for the test.

    Raises ConfigError when either side would be empty.
    """
    test: list[Rows] = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        test.append(rows[: int(np.floor(len(rows) * test_fraction + 0.5))])
    chosen = np.sort(np.concatenate(test)) if test else np.zeros(0, np.int64)
    kept = np.setdiff1d(np.arange(len(labels)), chosen)
    if not len(chosen) or not len(kept):
        raise ConfigError(
            f"{len(labels)} rows with test_fraction {test_fraction:g} leave {len(kept)} to train on and"
            f" {len(chosen)} to test; bring more rows or change test_fraction"
        )
    return kept, chosen


def split_rng(seed: int, x: NDArray[Any], y: NDArray[Any]) -> np.random.Generator:
    """A generator that two readers of the same rows share, wherever their file lies."""
    digest = hashlib.sha256(np.ascontiguousarray(x).tobytes() + np.ascontiguousarray(y).tobytes()).digest()
    return np.random.default_rng([seed, _SPLIT, int.from_bytes(digest[:8], "little")])
