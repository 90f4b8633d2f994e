"""Which rows are kept for evaluation."""

import hashlib
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError
from p2pfl.learn.options import DataOptions

__all__ = ["Rows", "held_out", "permuted_split", "stratified_split"]

Rows: TypeAlias = NDArray[np.int64]

# Purpose number of the split's draw: keeps it apart from every other draw of the run's seed.
_SPLIT = 2


def held_out(x: NDArray[Any], y: NDArray[Any], options: DataOptions, seed: int) -> tuple[Rows, Rows]:
    """Training and test row numbers, as `options` say.   seed: the run's.   Raises ConfigError."""
    if options.split_seed is not None:
        return permuted_split(len(y), options.test_fraction, options.split_seed)
    return stratified_split(y, options.test_fraction, _split_rng(seed, x, y))


def permuted_split(n: int, test_fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Training and test row numbers, sorted: the first floor(n (1 - test_fraction)) of a permutation train.

    Raises ConfigError when either side would be empty.

    >>> [len(rows) for rows in permuted_split(1797, 0.2, seed=0)]
    [1437, 360]
    """
    order, training = np.random.default_rng(seed).permutation(n), int(n * (1 - test_fraction))
    return _checked(np.sort(order[:training]), np.sort(order[training:]), test_fraction)


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
    return _checked(np.setdiff1d(np.arange(len(labels)), chosen), chosen, test_fraction)


def _checked(kept: Rows, chosen: Rows, test_fraction: float) -> tuple[Rows, Rows]:
    if not len(chosen) or not len(kept):
        raise ConfigError(
            f"{len(kept) + len(chosen)} rows with test_fraction {test_fraction:g} leave {len(kept)} to train"
            f" on and {len(chosen)} to test; bring more rows or change test_fraction"
        )
    return kept, chosen


def _split_rng(seed: int, x: NDArray[Any], y: NDArray[Any]) -> np.random.Generator:
    """A generator that two readers of the same rows share, wherever their file lies."""
    digest = hashlib.sha256(np.ascontiguousarray(x).tobytes() + np.ascontiguousarray(y).tobytes()).digest()
    return np.random.default_rng([seed, _SPLIT, int.from_bytes(digest[:8], "little")])
