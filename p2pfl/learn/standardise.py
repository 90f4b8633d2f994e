"""Columns to mean 0 and standard deviation 1, exactly as if all sites' rows lay in one table.

Each site sums, per column, the count, the values and their squares over the rows where it is known.  Sums
add, so push-sum of them before round 0 gives every site the statistics of the union, and none another's rows.
Only ratios of the sums are used: their average over peers serves as well as their total.

The variance is E[x^2] - E[x]^2.  Its relative error is about 1e-16 (mean / std)^2, so float64 keeps six
digits up to |mean| = 1e5 std, which covers measurements.  Beyond 1e6 the difference is rounding: such a
column counts as constant.  Sums about a common origin would do better, but sites would have to agree on one
before they share anything.

Shapes: `n` rows, `k` columns.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn.options import Standardise

__all__ = ["sums", "from_sums", "apply", "Rows"]

_Float64 = NDArray[np.float64]
_Float32 = NDArray[np.float32]

# Variance over mean square below which a column is constant: (1e-6)^2, see above.
_CONSTANT = 1e-12


def sums(x: NDArray[Any]) -> _Float64:
    """Per column the count of known values, their sum and their sum of squares.

    x: (n, k), NaN where missing.   returns: (3k,) float64: k counts, k sums, k sums of squares.
    """
    known = ~np.isnan(x)
    values = np.where(known, x, 0).astype(np.float64)
    return np.concatenate([known.sum(axis=0).astype(np.float64), values.sum(axis=0), (values**2).sum(axis=0)])


def from_sums(total: _Float64) -> tuple[_Float64, _Float64]:
    """The mean and standard deviation per column, each (k,).

    total: (3k,) sums of any number of sites, up to one common positive factor.   The deviation is the
    population's (n below the bar) and exactly 0 where the column is constant or nowhere known.
    Raises LearnerError when the sums are not finite, not (3k,) or impossible.
    """
    if total.ndim != 1 or len(total) % 3 or not np.isfinite(total).all():
        raise LearnerError(
            f"statistics of shape {total.shape} are not finite sums (3k,): count, sum, sum of squares"
        )
    count, first, second = np.split(total.astype(np.float64), 3)
    if (count < 0).any() or (second < 0).any():
        raise LearnerError("statistics have a negative count or sum of squares; a site sent nonsense")
    known = np.maximum(count, np.finfo(np.float64).tiny)
    mean = np.where(count > 0, first / known, 0.0)
    square = np.where(count > 0, second / known, 0.0)
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > _CONSTANT * square, variance, 0.0))


def apply(x: NDArray[Any], mean: _Float64, std: _Float64, out: _Float32 | None = None) -> _Float32:
    """(x - mean) / std in float64, cast to float32; missing values and constant columns become 0.

    x: (n, k), NaN where missing.   mean, std: (k,).
    """
    z = (x.astype(np.float64) - mean) / np.where(std > 0, std, 1.0)
    z[:, std == 0] = 0.0
    z[np.isnan(z)] = 0.0
    if out is None:
        return z.astype(np.float32)
    out[...] = z
    return out


class Rows:
    """A site's rows, raw and as the model sees them.

    `x_train` and `x_test` are written in place when the statistics come, so whoever holds them sees the new
    values.  Mode `none` copies nothing and refuses missing values; `site` is ready at once; `federation` is
    ready after `standardise`.
    """

    def __init__(
        self, x_train: _Float32, x_test: _Float32, mode: Standardise = "none", names: tuple[str, ...] = ()
    ) -> None:
        self.mode = mode
        self._raw_train, self._raw_test = x_train, x_test
        self._scaling: tuple[_Float64, _Float64] | None = None
        if mode == "none":
            for column in np.flatnonzero(np.isnan(x_train).any(axis=0) | np.isnan(x_test).any(axis=0)):
                name = names[column] if names else str(column + 1)
                raise ConfigError(
                    f"column {name} has missing values, and nothing says what to put there; set"
                    ' standardise = "federation" (they become the mean of all sites) or leave it out with'
                    " data.features"
                )
            self.x_train, self.x_test = x_train, x_test
        else:
            self.x_train, self.x_test = np.zeros_like(x_train), np.zeros_like(x_test)
        if mode == "site":
            self._rewrite(sums(x_train))

    @property
    def is_ready(self) -> bool:
        """Whether the rows may be trained on."""
        return self.mode == "none" or self._scaling is not None

    @property
    def raw_train(self) -> _Float32:
        """The training rows as they came, (n, k)."""
        return self._raw_train

    def digest(self) -> str:
        """What names these rows, 64 hex digits: equal however they are ordered, split or standardised."""
        rows = (row.tobytes() for part in (self._raw_train, self._raw_test) for row in part)
        return hashlib.sha256(b"".join(sorted(hashlib.sha256(row).digest() for row in rows))).hexdigest()

    def check_ready(self) -> None:
        """Raises LearnerError while the federation's sums are still to come."""
        if not self.is_ready:
            raise LearnerError(
                'standardise = "federation" and the sums of the sites have not come;'
                " call standardise(sums) first"
            )

    def statistics(self) -> _Float64:
        """The sums of this site's training rows, (3k,); empty unless the mode is `federation`."""
        return sums(self._raw_train) if self.mode == "federation" else np.zeros(0)

    def standardise(self, total: _Float64) -> None:
        """Rewrite `x_train` and `x_test` with pooled sums (3k,); may be called again with better ones.

        Raises LearnerError when sums come that nobody asked for, or are of other columns.
        """
        if self.mode == "federation":
            self._rewrite(total)
        elif len(total):
            raise LearnerError(
                f'statistics came for a learner with standardise = "{self.mode}"; the agreements differ'
            )

    def _rewrite(self, total: _Float64) -> None:
        if len(total) != 3 * self._raw_train.shape[1]:
            raise LearnerError(
                f"statistics have {len(total)} entries, expected 3 x {self._raw_train.shape[1]} columns;"
                " check that all sites read the same columns"
            )
        self._scaling = from_sums(total)
        apply(self._raw_train, *self._scaling, out=self.x_train)
        apply(self._raw_test, *self._scaling, out=self.x_test)

    def transform(self, x: NDArray[Any]) -> _Float32:
        """New raw rows (n, k) as the model sees them."""
        self.check_ready()
        return x.astype(np.float32) if self._scaling is None else apply(x, *self._scaling)
