"""Robust aggregation: one vector from n of which up to f may say anything.

`n` rows of `d` parameters, `f` of them Byzantine; the anchor, where there is one, is the receiver's own model
and among the rows.

1. `trust/rules.py` knows the rules by name, their parameters and their bounds.
2. `trust/finite.py` aggregates: distances (`trust/gram.py`), NNM or bucketing as a mixing matrix, the rule,
   either from distances (`trust/selection.py`) or by coordinates (`trust/coordinates.py`), and the sum.
3. Only when a value on the way is not finite are the rows looked at one by one.  A row that is not finite
   counts as Byzantine and farther away than any other: it is left out, and f is one less.  Where the squares
   of the rest do not fit in float32, all is done again in float64.

A rule whose bound is broken still gives its best, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import AggregationError
from p2pfl.trust import gram
from p2pfl.trust.finite import Task, solve
from p2pfl.trust.gram import Floats, Rows, Vector
from p2pfl.trust.rules import ANCHORED, PRE, RULES, check, count_f, largest_f, options_of
from p2pfl.trust.screening import norm

__all__ = [
    "RULES",
    "PRE",
    "ANCHORED",
    "Weighing",
    "aggregate",
    "weigh",
    "check",
    "count_f",
    "largest_f",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighing:
    """What a rule made of its rows, and why.

    vector: (d,) float32.
    weights: (n,) float64, how much of it came from each row.  They sum to 1; what only the anchor stands for,
    as where differences are clipped, counts as the first row equal to the anchor, and is missing from
    the sum if none is.  Of a rule per coordinate, the mean over coordinates; of fltrust, the scores
    before scaling.
    distances: (n,) float64, from the anchor, or from `vector` where there is none; infinite for bad rows.
    is_bound_broken: more may be Byzantine than the rule bears: f exceeds its bound, or the bad rows exceed f.
    bad: the rows, in rising order, that were not finite.
    """

    vector: Vector
    weights: Floats
    distances: Floats
    is_bound_broken: bool
    bad: tuple[int, ...]


def aggregate(
    rule: str,
    vectors: Rows,
    *,
    f: float,
    anchor: Vector | None = None,
    **parameters: Any,
) -> Vector:
    """The vector of `weigh`, (d,) float32, without the time that the rest takes."""
    return _weigh(rule, vectors, f, anchor, parameters, explain=False).vector


def weigh(
    rule: str,
    vectors: Rows,
    *,
    f: float,
    anchor: Vector | None = None,
    **parameters: Any,
) -> Weighing:
    """What `rule` makes of the rows, and how much of it came from each.

    vectors: (n, d) float32, or n arrays (d,) float32; left as they are.   f: how many may be Byzantine; a
    float is a fraction in [0, .5) of the n - 1 in-edges, rounded up.   anchor: (d,) float32, the
    receiver's own model, which is among the rows (rules in ANCHORED need it; the others have
    only their bound from it, and centered-clipping its start).

    Parameters, each of the rules that `check` lets it go with:
    m: rows that multi-krum averages, n - f.   tau: radius of clipping.   iterations: of centered-clipping, 3.
    weights: (n,), how the receiver weighs the rows, at least 0, at most 1 in all; what is missing is its
    own; 1/n each.   losses: (n,), of each row on the receiver's data, for ubar, which needs them.   rho: the
    part of the neighbours that ubar keeps; all but f.   alpha: what ubar and balance keep of the own model,
    .5.   gamma, kappa, progress: balance accepts within gamma exp(-kappa progress) |own|, .3, 1 and 0;
    progress is t/T.   limit: norm-filter's, 3.   size, rng: of buckets, 2; a seeded generator, else
    rows go into buckets in their order.

    Nothing in a row raises: bad rows are left out, and count.  With no finite row the vector is the anchor;
    without that, NaN.   Ties go to the lower row; otherwise the order of the rows does not matter.
    O(nd) to O(n^2 d) time; some megabytes beyond input and output.
    Raises ConfigError as `check` does, and AggregationError when there is no row and no anchor, an array is
    not (d,) float32, or the anchor is missing or not finite.
    """
    return _weigh(rule, vectors, f, anchor, parameters, explain=True)


def _weigh(
    rule: str,
    vectors: Rows,
    f: float,
    anchor: Vector | None,
    parameters: Mapping[str, Any],
    *,
    explain: bool,
) -> Weighing:
    pre, name, options = options_of(rule, parameters)
    rows = vectors if isinstance(vectors, np.ndarray) else list(vectors)
    _check_rows(name, rows, anchor)
    n = len(rows)
    count = count_f(f, n)
    own = None if anchor is None else _index_of(anchor, rows)
    weights = _mixing_weights(options.get("weights"), n)
    if name == "ubar":
        options["losses"] = _losses(options["losses"], n, own)
    is_broken = count > largest_f(rule, n, is_anchored=anchor is not None, size=int(options.get("size", 2)))
    task = Task(
        pre=pre,
        name=name,
        options=options,
        rows=rows,
        f=count,
        anchor=anchor,
        own=own,
        weights=weights,
        wide=False,
        explain=explain,
    )
    good = np.arange(n)
    result = solve(task) if n else None
    if result is None:
        good = np.flatnonzero(np.isfinite([norm(row) for row in rows]))
        if not good.size:
            return _nothing_finite(rows, anchor)
        task = _restrict(task, good)
        result = solve(task) or solve(replace(task, wide=True))
        assert result is not None
    vector, shares = result
    bad = tuple(np.delete(np.arange(n), good).tolist())
    all_shares, distances = np.zeros(n), np.full(n, np.inf)
    if explain:
        all_shares[good] = shares
        distances[good] = _distances(task.rows, vector if anchor is None else anchor)
    return Weighing(
        vector=vector,
        weights=all_shares,
        distances=distances,
        is_bound_broken=is_broken or len(bad) > count,
        bad=bad,
    )


def _check_rows(name: str, rows: Rows, anchor: Vector | None) -> None:
    if anchor is None and (not len(rows) or name in ANCHORED):
        raise AggregationError(
            f"rule {name!r} needs an anchor, the receiver's own model"
            if len(rows)
            else "there is nothing to aggregate: no row and no anchor"
        )
    d = np.size(rows[0] if anchor is None else anchor)
    for row in (*rows, *(() if anchor is None else (anchor,))):
        if row.shape != (d,) or row.dtype != np.float32:
            raise AggregationError(f"an array of shape {row.shape} {row.dtype}, expected ({d},) float32")
    if anchor is not None and not np.isfinite(norm(anchor)):
        raise AggregationError("the anchor, the receiver's own model, is not finite; restore an earlier one")


def _index_of(anchor: Vector, rows: Rows) -> int | None:
    """The first row equal to the anchor."""
    for j, row in enumerate(rows):
        # Nearly every other row differs in its first values.
        if row is anchor or (np.array_equal(row[:16], anchor[:16]) and np.array_equal(row, anchor)):
            return j
    return None


def _mixing_weights(values: Any, n: int) -> Floats:
    if values is None:
        return np.full(n, 1.0 / max(1, n))
    weights = np.asarray(values, np.float64)
    if weights.shape != (n,) or not (weights >= 0).all() or weights.sum() > 1.0 + 1e-9:
        raise AggregationError(
            f"weights of shape {weights.shape}; give {n}, one a row, none negative, at most 1 in all"
        )
    return weights


def _losses(values: Any, n: int, own: int | None) -> Floats:
    losses = np.asarray([] if values is None else values, np.float64)
    if losses.shape != (n,) or (n and own is None):
        raise AggregationError(
            f"ubar got {losses.size} losses for {n} rows; give one for each, the anchor's own among them"
        )
    return losses


def _restrict(task: Task, good: NDArray[np.int64]) -> Task:
    """`task` with the good rows only; each of the others was one of the f."""
    n = len(task.rows)
    options = dict(task.options)
    if options.get("losses") is not None:
        options["losses"] = options["losses"][good]
    return replace(
        task,
        rows=[task.rows[j] for j in good],
        f=max(0, task.f - (n - len(good))),
        own=None if task.own is None else int(np.searchsorted(good, task.own)),
        weights=task.weights[good],
        options=options,
    )


def _distances(rows: Rows, point: Vector) -> Floats:
    squared = gram.squares_to(rows, point)
    if not np.isfinite(squared).all():
        squared = gram.squares_to(rows, point, wide=True)
    return np.sqrt(squared)


def _nothing_finite(rows: Rows, anchor: Vector | None) -> Weighing:
    return Weighing(
        vector=np.full(len(rows[0]), np.nan, np.float32) if anchor is None else anchor.copy(),
        weights=np.zeros(len(rows)),
        distances=np.full(len(rows), np.inf),
        is_bound_broken=len(rows) > 0,
        bad=tuple(range(len(rows))),
    )
